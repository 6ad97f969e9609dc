"""Which environments this process has defined, and where: the place of a definition is what makes it the same one.

Running a notebook cell again, reloading a module or calling a factory twice defines "the same" environment anew: the
new object replaces the old one. The same name at another place is a conflict as long as somebody holds the old object.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .environment import TaskEnvironment
    from .task import AnyTask


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was defined."""

    module: str
    qualname: str
    """The function around an environment's definition (`<module>` for none), or the function that is a task."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def is_line_of(self, other: Place) -> bool:
        """Whether both are one line of one file: a script that is also imported runs under two module names."""
        return (self.file, self.line) == (other.file, other.line)

    def is_scope_of(self, other: Place) -> bool:
        """Whether both have one qualified name in one module, on whatever line."""
        return (self.module, self.qualname) == (other.module, other.qualname)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two definitions that claim one name."""

    kind: str
    """`"environment"` or `"task"`."""

    name: str
    first: Place
    second: Place
    """The definition that is in use."""

    def __str__(self) -> str:
        return (
            f"Two {self.kind}s are named {self.name!r}: one is defined at {self.first}, the other at {self.second}. "
            "Give one of them another name."
        )


@dataclass(frozen=True, slots=True)
class _Replaced:
    kind: str
    name: str
    place: Place
    old: weakref.ref[Any]
    #: Finds what has the name now, with its place.
    current: Callable[[], tuple[Any, Place] | None]


_environments: dict[str, TaskEnvironment] = {}
_replaced: list[_Replaced] = []


def environments() -> dict[str, TaskEnvironment]:
    """All environments that this process has defined, by name."""
    return dict(_environments)


def conflicts() -> list[Conflict]:
    """Names that two environments, or two functions of one environment, claim.

    Processes that take or submit work refuse to start while there is one.
    """
    # Whoever let go of the old object has replaced it.
    _replaced[:] = [replaced for replaced in _replaced if replaced.old() is not None]
    found: list[Conflict] = []
    for replaced in _replaced:
        current = replaced.current()
        if current is None or current[0] is replaced.old():
            continue
        conflict = Conflict(replaced.kind, replaced.name, replaced.place, current[1])
        if conflict not in found and not _in_place(replaced, current[1]):
            found.append(conflict)
    return found


def check_conflicts() -> None:
    """Refuse to submit or take work while two definitions claim one name.

    Raises:
        ValueError: Names both places of every conflict, and what to do.
    """
    if _replaced and (found := conflicts()):
        raise ValueError(" ".join(str(conflict) for conflict in found))


def add_environment(environment: TaskEnvironment) -> None:
    """Make an environment known by its name, in place of an earlier one."""
    name = environment.name
    earlier = _environments.get(name)
    if earlier is not None and earlier is not environment:

        def current() -> tuple[Any, Place] | None:
            now = _environments.get(name)
            return None if now is None else (now, now.place)

        _replaced.append(_Replaced("environment", name, earlier.place, weakref.ref(earlier), current))
    _environments[name] = environment


def task_replaced(environment: TaskEnvironment, earlier: AnyTask) -> None:
    """Note that another function of an environment takes the name of an earlier task."""
    name, owner = earlier.name, weakref.ref(environment)

    def current() -> tuple[Any, Place] | None:
        living = owner()
        now = None if living is None else living.tasks.get(name)
        return None if now is None else (now, place_of_function(now.func))

    place = place_of_function(earlier.func)
    _replaced.append(_Replaced("task", name, place, weakref.ref(earlier), current))


def _in_place(replaced: _Replaced, now: Place) -> bool:
    """Whether the new definition is the old one, made again."""
    if replaced.place.is_line_of(now):
        return True
    if not replaced.place.is_scope_of(now) or now.qualname.endswith("<lambda>"):
        return False
    # At the top level of a module, two lines are two definitions while both objects are reachable by name; a reload
    # or another run of a notebook cell has bound the variable anew.
    return now.qualname != "<module>" or not _is_global(replaced.old(), now.module)


def _is_global(value: object, module: str) -> bool:
    # IPython keeps results under names like _, __ and _3.
    names = vars(sys.modules[module]) if module in sys.modules else {}
    return any(held is value for name, held in list(names.items()) if not name.startswith("_"))


def calling_place() -> Place:
    """Where the code outside of this package is that led here."""
    frame = inspect.currentframe()
    while frame is not None and _is_machinery(frame):
        frame = frame.f_back
    if frame is None:
        return Place("", "", "<unknown>", 0)
    code = frame.f_code
    return Place(str(frame.f_globals.get("__name__", "")), code.co_qualname, code.co_filename, frame.f_lineno)


def _is_machinery(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    # A subclass of an environment has constructors of its own; dataclasses generate them, and `replace` calls them.
    constructor = frame.f_code.co_name in ("__init__", "__post_init__")
    return module.partition(".")[0] in ("flyte_celery", "dataclasses") or constructor


def place_of_function(func: Callable[..., Any]) -> Place:
    """Where a function is defined."""
    inner = inspect.unwrap(func)
    code = getattr(inner, "__code__", None)
    return Place(
        str(getattr(func, "__module__", "")),
        str(getattr(func, "__qualname__", repr(func))),
        code.co_filename if code is not None else "<built-in>",
        code.co_firstlineno if code is not None else 0,
    )
