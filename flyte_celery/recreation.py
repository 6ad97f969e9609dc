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


class _Both(type):
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
        fields = {name: value for name, value in _fields(original).items() if name != "__notes__"}
        both = _made(cls, original.args, {**fields, **vars(error)})
    except Exception:
        return error  # what can be made cannot be foreseen for every user's class, and the failure has to arrive
    return cast(E, both)


#: An exception's class, its `args`, and everything else that it holds.
Parts = tuple[type[BaseException], tuple[Any, ...], dict[str, Any]]


def taken_apart(exc: BaseException) -> Parts:
    """All that `made_again` needs."""
    return type(exc), exc.args, _fields(exc)


def made_again(pickled: bytes) -> BaseException:
    """The exception of pickled parts, a pair of its own and its cause's, or None for that; raises what pickle does."""
    parts, cause = pickle.loads(pickled)
    error = _made(*parts)
    if cause is not None:
        error.__cause__ = _made(*cause)
    return error


def _fields(exc: BaseException) -> dict[str, Any]:
    """What an exception holds beside its `args`, with fields that live outside its `__dict__` (`OSError.errno`)."""
    fields: dict[str, Any] = {}
    for cls in type(exc).__mro__:
        for name, member in vars(cls).items():
            outside = isinstance(member, (MemberDescriptorType, GetSetDescriptorType))
            if outside and name != "args" and not name.startswith("__"):
                with contextlib.suppress(AttributeError):
                    fields[name] = getattr(exc, name)
    return fields | vars(exc)


def _made(cls: type[BaseException], args: tuple[Any, ...], fields: dict[str, Any]) -> BaseException:
    """An instance made without `__init__`, whose signature nobody knows."""
    maker: type = cls
    while isinstance(maker, _Both):
        maker = maker.__bases__[1]
    exc: BaseException
    try:
        exc = maker.__new__(cls, *args)
    except TypeError:
        # Its own `__new__` wants other arguments, or is `MemoryError`'s, which makes no combined class.
        exc = BaseException.__new__(cls, *args)
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
