"""Failures of a bounded size, whatever was raised: a failure is pickled, logged and stored several times over."""

from __future__ import annotations

import contextlib
import pickle
import reprlib
from collections.abc import Callable, Iterator
from typing import Any

from .recreation import fields_of

#: Characters of a message, of an argument and of a field of an exception, and of a remote traceback.
MOST_TEXT = 64 * 1024

#: Characters of a child's traceback in the traceback of its parent, which is quoted by that one's parent in turn.
MOST_QUOTED = 16 * 1024

#: Arguments of an exception whose arguments together are too large.
MOST_ARGUMENTS = 20

#: Exceptions that are looked at, for one that was raised: its causes and members.
MOST_EXCEPTIONS = 100


def cut(text: str, most: int = MOST_TEXT) -> str:
    """The text, or its beginning and its end with the number of characters between them."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def shorten(exc: BaseException, clean: Callable[[Any], Any] = lambda value: value) -> None:
    """Cut what is too long in an exception, and in its causes and members; the exception itself is changed.

    Args:
        exc: The exception.
        clean: Takes secrets out of a value that is to be cut: of one that is cut through nobody finds the halves.
    """
    for each in _all_of(exc):
        with contextlib.suppress(Exception):  # what a user's class does cannot be foreseen
            _shorten_one(each, clean)


def _shorten_one(exc: BaseException, clean: Callable[[Any], Any]) -> None:
    if not isinstance(exc, BaseExceptionGroup) and _too_large(exc.args):
        exc.args = tuple(_short(arg, clean) for arg in exc.args[:MOST_ARGUMENTS])
    for name, value in fields_of(exc).items():
        if name == "__notes__":
            exc.__notes__ = [_short(note, clean) for note in value[:MOST_ARGUMENTS]]
        elif name != "exceptions" and _too_large(value):
            with contextlib.suppress(AttributeError, TypeError):  # it is read-only
                setattr(exc, name, _short(value, clean))


def _all_of(exc: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting and len(seen) < MOST_EXCEPTIONS:
        each = waiting.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def _short(value: Any, clean: Callable[[Any], Any]) -> Any:
    """A value; if it is too large cut where it can be, else described."""
    if not _too_large(value):
        return value
    value = clean(value)
    if type(value) is str:
        return cut(value)
    if type(value) in (bytes, bytearray):
        return bytes(value[: MOST_TEXT // 2])
    return cut(reprlib.repr(value))


def _too_large(value: Any) -> bool:
    """Whether its pickle is longer than `MOST_TEXT`; of one that cannot be pickled as far as that gets."""
    if value is None or type(value) in (bool, float):
        return False
    if type(value) in (str, bytes):
        return len(value) > MOST_TEXT
    try:
        pickle.Pickler(_Scale(), pickle.HIGHEST_PROTOCOL).dump(value)
    except _TooLarge:
        return True
    except Exception:
        return False
    return False


class _TooLarge(Exception):
    pass


class _Scale:
    """A file for pickle, which only weighs what is written."""

    def __init__(self) -> None:
        self._left = MOST_TEXT

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise _TooLarge
        return len(data)
