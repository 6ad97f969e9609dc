"""An exception taken apart and made again: in another process, or as an instance of a second class.

No class's `__init__` is called, because nobody knows its signature: an exception is its class, its `args`, and
everything else that it holds.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import pickle
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, TypeVar, cast

E = TypeVar("E", bound=BaseException)


class _StandIn(type):
    """The class of classes that are made here in place of one that this process has not, or cannot fill."""


class _Both(_StandIn):
    """The class of classes that are made here of a chosen error and a user's exception."""


@functools.lru_cache(maxsize=1024)
def _class_of_both(chosen: type[Any], other: type[Any]) -> type[Any]:
    """A class whose instances are caught as either one; `chosen` itself where there can be none.

    It has the name and module of `other`: Celery stores those, so that any client can re-create the user's exception.
    """
    if issubclass(other, chosen):
        return other
    if not issubclass(other, Exception) or issubclass(other, (StopIteration, StopAsyncIteration)):
        return chosen
    if issubclass(chosen, other):
        return chosen
    namespace = {
        "__module__": other.__module__,
        "__qualname__": other.__qualname__,
        "__doc__": other.__doc__,
        # An error's own fields win over what `other` may have under these names, a read-only property for instance.
        **dict.fromkeys(("code", "kind", "worker", "_message")),
    }
    try:
        return _Both(other.__name__, (chosen, other), namespace)
    except Exception:
        # Memory layouts or metaclasses conflict, or `other` refuses to be subclassed.
        return chosen


def _recipe(cls: _Both) -> Any:
    """How pickle makes the class again, which exists in no module."""
    return _class_of_both, cls.__bases__


copyreg.pickle(_Both, _recipe)


def also_an_instance(error: E, original: BaseException) -> E:
    """The same error as an instance of the original's class too, with what the original holds; itself if that fails."""
    chosen, other = cast("tuple[Any, Any]", (type(error), type(original)))
    cls = _class_of_both(chosen, other)
    if cls is chosen and not isinstance(original, chosen):
        return error
    try:
        # Its notes are shown with the cause already.
        fields = {name: value for name, value in fields_of(original).items() if name != "__notes__"}
        both = made(cls, original.args, {**fields, **vars(error)})
    except Exception:
        return error  # what can be made cannot be foreseen for every user's class, and the failure has to arrive
    return cast(E, both)


# -- Stand-ins -------------------------------------------------------------------------------------------------------

#: What a stand-in says, among its fields.
_TEXT = "__text__"


def stand_in(
    base: Any, name: tuple[str, str], args: tuple[Any, ...], fields: dict[str, Any], text: str
) -> BaseException:
    """An exception in place of one whose class this process has not, or cannot fill as its methods need it.

    Args:
        base: The class that it is for `except`.
        name: Module and qualified name of the class for which it stands; its own has the same.
        args: The original's.
        fields: Those of the original that are known. Others it has not: asking for one is an `AttributeError`.
        text: What it says.

    Raises:
        TypeError: Nothing can be derived from `base`, or made of it.
    """
    return made(_class_standing_in(base, *name), args, {**fields, _TEXT: text})


@functools.lru_cache(maxsize=1024)
def _class_standing_in(base: type[Any], module: str, qualname: str) -> type[Any]:
    namespace = {
        "__module__": module,
        "__qualname__": qualname,
        "__doc__": base.__doc__,
        "__str__": _text_of,
        "__repr__": lambda self: f"{type(self).__name__}({_text_of(self)!r})",
        "__getattr__": _not_known,
        "__reduce__": lambda self: (made, taken_apart(self)),
    }
    try:
        return _StandIn(qualname.rpartition(".")[2], (base,), namespace)
    except Exception as problem:  # metaclasses conflict, or it refuses to be subclassed, by whatever it likes to raise
        raise TypeError(f"nothing can be derived from {base.__name__}") from problem


def _text_of(exc: BaseException) -> str:
    return str(vars(exc).get(_TEXT, ""))


def _not_known(exc: BaseException, name: str) -> Any:
    raise AttributeError(f"{type(exc).__name__!r} object has no attribute {name!r} here; where it was raised it may.")


def _standing_recipe(cls: _StandIn) -> Any:
    """How pickle makes the class again, which exists in no module."""
    return _class_standing_in, (*cls.__bases__, cls.__module__, cls.__qualname__)


copyreg.pickle(_StandIn, _standing_recipe)

# -- Parts -----------------------------------------------------------------------------------------------------------

#: Flag of classes that a `class` statement made (`Py_TPFLAGS_HEAPTYPE`).
_IS_MADE_IN_PYTHON = 1 << 9

#: An exception's class, its `args`, and everything else that it holds.
Parts = tuple[type[BaseException], tuple[Any, ...], dict[str, Any]]


def taken_apart(exc: BaseException) -> Parts:
    """All that `made_again` needs."""
    return type(exc), exc.args, fields_of(exc)


def made_again(pickled: bytes) -> BaseException:
    """The exception of pickled parts, a pair of its own and its cause's, or None for that; raises what pickle does."""
    parts, cause = pickle.loads(pickled)
    error = made(*parts)
    if cause is not None:
        error.__cause__ = made(*cause)
    return error


def fields_of(exc: BaseException) -> dict[str, Any]:
    """What an exception holds beside its `args`, with fields that live outside its `__dict__` (`OSError.errno`)."""
    fields: dict[str, Any] = {}
    cls: Any = type(exc)
    for name, shows_none in _outside(cls):
        with contextlib.suppress(AttributeError):
            if (value := getattr(exc, name)) is not None or not shows_none:
                fields[name] = value
    return fields | vars(exc)


@functools.lru_cache(maxsize=1024)
def _outside(cls: Any) -> list[tuple[str, bool]]:
    """Fields that instances of a class have outside their `__dict__`, and whether None stands for a missing one."""
    return [
        # So a built-in class shows what is not there, and it does not take it back as that.
        (name, not each.__flags__ & _IS_MADE_IN_PYTHON)
        for each in cls.__mro__
        for name, member in vars(each).items()
        if isinstance(member, (MemberDescriptorType, GetSetDescriptorType))
        and name != "args"
        and not name.startswith("__")
    ]


def users_class(cls: type[Any]) -> type[Any]:
    """The class itself; of one that was made of an error and a user's exception, the user's."""
    while isinstance(cls, _Both):
        cls = cls.__bases__[1]
    return cls


def _new(cls: type[Any], args: tuple[Any, ...]) -> BaseException:
    """An empty instance."""
    maker = users_class(cls)
    # Its own `__new__` may want other arguments; Python makes no instance by that of a class with another layout.
    native = next(base for base in maker.__mro__ if not base.__flags__ & _IS_MADE_IN_PYTHON)
    for each in (maker, native):
        with contextlib.suppress(TypeError):
            return cast(BaseException, each.__new__(cls, *args))
    # `MemoryError`'s makes no combined class.
    return cast(BaseException, BaseException.__new__(cls, *args))


def made(cls: type[BaseException], args: tuple[Any, ...], fields: dict[str, Any]) -> BaseException:
    """An instance made without `__init__`, whose signature nobody knows."""
    exc = _new(cls, args)
    BaseException.__setattr__(exc, "args", args)
    inside = vars(exc)
    for name, value in fields.items():
        if isinstance(getattr(cls, name, None), (MemberDescriptorType, GetSetDescriptorType)):
            # Some are read-only and were set by `__new__`: the members of an exception group.
            with contextlib.suppress(AttributeError, TypeError):
                BaseException.__setattr__(exc, name, value)
        else:
            inside[name] = value
    return exc
