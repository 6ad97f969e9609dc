"""`Cache`: whether a result is reused, and which changes of a task's code make old results useless."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args, runtime_checkable

if TYPE_CHECKING:
    from .image import Image

CacheBehavior = Literal["auto", "override", "disable"]

#: Other words for two of the behaviours, in any case.
_ALIASES: dict[str, CacheBehavior] = {
    **dict.fromkeys(("enable", "enabled", "on", "true", "yes"), "auto"),
    **dict.fromkeys(("off", "false", "no", "none"), "disable"),
}


#: CPython 3.11 raises SystemError where threads parse at the same time and a garbage collection comes between
#: (gh-106905), as with a web server's first calls of a cached task.
_parsing = threading.Lock()


@dataclass(frozen=True)
class VersionParameters:
    """What a cache policy may derive a version from.

    Args:
        func: The task's function.
        image: The image of its environment.
        code_bundle: Version of the packed code; None where code is not packed.
    """

    func: Callable[..., Any] | None
    image: str | Image | None = None
    code_bundle: str | None = None


@runtime_checkable
class CachePolicy(Protocol):
    """Derives a version from a task: results that were stored under another version are not used."""

    def get_version(self, salt: str, params: VersionParameters) -> str:
        """The version, any text.

        Args:
            salt: The cache's `salt`, to be mixed in.
            params: What is known about the task.
        """
        ...


@dataclass(frozen=True)
class FunctionBodyPolicy:
    """The version changes with the function's code, and not with its comments and white space.

    The code of functions that it calls is not looked at: change `salt` or `version_override` for those.
    """

    def get_version(self, salt: str, params: VersionParameters) -> str:
        """SHA-256 of the function's syntax tree and the salt; `""` without a function.

        Raises:
            ValueError: The source of the function cannot be read, as for builtins and code made by `exec`.
        """
        if params.func is None:
            return ""
        try:
            source = _source(params.func)
            with _parsing:
                tree = ast.parse(source)
        except (OSError, TypeError, SyntaxError) as error:
            raise ValueError(
                f"The source of {params.func!r} cannot be read ({error}), so no cache version follows from it: "
                "give one with Cache(..., version_override=...)."
            ) from error
        return hashlib.sha256((ast.dump(tree) + salt).encode()).hexdigest()


def _source(function: Callable[..., Any]) -> str:
    # What `exec` makes has this name, and so has what `python -c` runs, whose source Python 3.13 would give for it.
    if inspect.getfile(inspect.unwrap(function)) == "<string>":
        raise OSError("it was made by exec")
    return textwrap.dedent(inspect.getsource(function))


@dataclass
class Cache:
    """How results of a task are cached.

    Args:
        behavior: `"auto"`: use a stored result, or run and store. `"override"`: always run, then store.
            `"disable"`: neither. `enable enabled on true yes` mean `"auto"` and `off false no none` mean `"disable"`,
            in any case.
        version_override: The version. None: the policies compute it.
        serialize: Of identical calls at the same time one runs and the others wait for its result.
        ignored_inputs: Parameters that are not part of the key: one name, or several. Kept as a tuple.
        salt: Mixed into the versions that the policies compute; change it to forget all results.
        policies: What computes the version, one or several. None: `FunctionBodyPolicy`, unless disabled.
        max_age: Seconds, or a `timedelta`, after which a stored result is not used any more. Kept as a `timedelta`.
            None: never.

    Raises:
        TypeError: `max_age`, `ignored_inputs` or `policies` has the wrong type.
        ValueError: There is no such behaviour, `max_age` is negative, or no policy and no version is given.
    """

    behavior: CacheBehavior
    version_override: str | None = None
    serialize: bool = False
    ignored_inputs: tuple[str, ...] | str = ()
    salt: str = ""
    policies: list[CachePolicy] | CachePolicy | None = None
    max_age: timedelta | int | None = None

    def __post_init__(self) -> None:
        self.behavior = _behavior(self.behavior)
        self.ignored_inputs = _names(self.ignored_inputs)
        self.max_age = _age(self.max_age)
        if self.policies is None and self.is_enabled():
            self.policies = [FunctionBodyPolicy()]
        if self.policies is not None:
            self.policies = _policies(self.policies)
        if self.is_enabled() and self.version_override is None and not self.policies:
            raise ValueError(
                "policies=[] without a version leaves the cache without one: "
                "give version_override, a policy, or leave policies out."
            )

    @classmethod
    def of(cls, raw: object) -> Cache:
        """What `cache=` of a task or an environment means, checked when a task is made.

        Args:
            raw: A `Cache`, or a behaviour.

        Raises:
            ValueError: It is neither; None, True and False are neither.
        """
        return raw if isinstance(raw, Cache) else cls(_behavior(raw))

    def is_enabled(self) -> bool:
        """Whether results are stored."""
        return self.behavior != "disable"

    def get_ignored_inputs(self) -> tuple[str, ...]:
        """Parameters that are not part of the key."""
        return _names(self.ignored_inputs)

    def get_version(self, params: VersionParameters | None = None) -> str:
        """The version that results are stored under; `""` when nothing is stored.

        Args:
            params: What is known about the task; not needed with `version_override`.

        Raises:
            ValueError: There is no `version_override` and no `params`, or a policy finds no version.
        """
        if not self.is_enabled():
            return ""
        if self.version_override is not None:
            return self.version_override
        if params is None:
            raise ValueError("A cache without version_override needs the task to find its version: give params.")
        versions = [policy.get_version(self.salt, params) for policy in _policies(self.policies or ())]
        return hashlib.sha256("".join(versions).encode()).hexdigest()


#: What `cache=` of a task or an environment may be.
CacheRequest = CacheBehavior | Cache


def _behavior(raw: object) -> CacheBehavior:
    if isinstance(raw, str):
        if raw in get_args(CacheBehavior):
            return cast(CacheBehavior, raw)
        if alias := _ALIASES.get(raw.lower()):
            return alias
    raise ValueError(
        f"cache={raw!r} is no cache behaviour: use one of {', '.join(get_args(CacheBehavior))} "
        f"(or {', '.join(_ALIASES)}), or a Cache."
    )


def _names(raw: object) -> tuple[str, ...]:
    if raw is None or isinstance(raw, str):
        return () if raw is None else (raw,)
    names = tuple(raw) if isinstance(raw, Iterable) else (raw,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"ignored_inputs={raw!r} is not possible: use the name of a parameter, or a tuple of names.")
    return cast("tuple[str, ...]", names)


def _policies(raw: object) -> list[CachePolicy]:
    policies: list[Any] = list(raw) if isinstance(raw, list | tuple) else [raw]
    if not all(isinstance(policy, CachePolicy) for policy in policies):
        raise TypeError(f"policies={raw!r} is not possible: a policy has a method get_version(salt, params).")
    return policies


def _age(raw: object) -> timedelta | None:
    if isinstance(raw, int) and not isinstance(raw, bool):
        raw = timedelta(seconds=raw)
    if not isinstance(raw, timedelta | None):
        raise TypeError(f"max_age={raw!r} must be an int (seconds), a timedelta or None: use 3600, for instance.")
    if raw is not None and raw < timedelta(0):
        raise ValueError(f"max_age={raw!r} is negative: use 0 or more, or None for no limit.")
    return raw
