"""An exception as JSON, and made again from it by a process that may know its class, or not.

Celery stores the name of a class and `args`, and makes the exception by `cls(*args)`. That loses what `args` does not
say, and for a class with another signature all of it. Here are also the fields, the causes, the members of a group, the
classes that it derives from, and what it says.

What is read comes from the result store, and is trusted as far as Celery trusts it: only exception classes of modules
that are imported already are looked up, no `__init__` is called, and nothing is unpickled.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import decimal
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from .errors import REMOTE_TRACEBACK, BaseRuntimeError, message_of
from .recreation import fields_of, made, stand_in, users_class
from .shortening import MOST_TEXT, cut

#: Characters of one description, about: fields that do not fit are left out.
MOST = 4 * MOST_TEXT

#: Causes of causes, and members of groups in groups, that are described.
MOST_DEPTH = 10

#: Exceptions in one description.
MOST_EXCEPTIONS = 50

#: Levels of a value in a value.
_MOST_LEVELS = 20

#: Digits of an integer, which Python refuses to write or read beyond some thousands; here in bits.
_MOST_BITS = 10_000

#: Characters of an argument that is not JSON, which crosses as its `repr`.
_MOST_REPR = 1000

Description = dict[str, Any]

#: Types that JSON has not: the name, how a value is written as a string, and how it is read.
_WRITTEN: dict[type, tuple[str, Callable[[Any], str], Callable[[str], Any]]] = {
    bytes: ("bytes", lambda value: base64.b64encode(value).decode(), base64.b64decode),
    datetime.datetime: ("datetime", datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    datetime.date: ("date", datetime.date.isoformat, datetime.date.fromisoformat),
    datetime.time: ("time", datetime.time.isoformat, datetime.time.fromisoformat),
    decimal.Decimal: ("Decimal", str, decimal.Decimal),
    uuid.UUID: ("UUID", str, uuid.UUID),
}
_READ = {name: read for name, _, read in _WRITTEN.values()}
_COLLECTIONS: dict[type, str] = {tuple: "tuple", set: "set", frozenset: "frozenset"}
_COLLECTED = {name: cls for cls, name in _COLLECTIONS.items()}


class _Unfit(Exception):
    """A value that has no place in a description."""


def described(exc: BaseException) -> Description:
    """The exception as JSON; made of str, int, float, bool, None, list and dict with string keys."""
    return _Writer().exception(exc)


def recreated(description: Description) -> BaseException:
    """The exception that was described: of its class if this process has imported it, else of the nearest that it has.

    It says what the original said. Asking a stand-in for a field that could not cross is an `AttributeError`.

    Raises:
        Exception: It is no description.
    """
    exc = _recreated(description)
    if (cause := description.get("cause")) is not None:
        exc.__cause__ = recreated(cause)
    return exc


# -- Describing ------------------------------------------------------------------------------------------------------


class _Writer:
    """Writes one description, within its bounds."""

    def __init__(self) -> None:
        self._left = MOST
        self._exceptions = MOST_EXCEPTIONS
        self._depth = 0
        #: What is being described, so that an exception that holds itself ends.
        self._open: set[int] = set()

    def exception(self, exc: BaseException) -> Description:
        exc = _first_raised(exc)
        if id(exc) in self._open or self._depth >= MOST_DEPTH or not self._exceptions:
            raise _Unfit
        self._open.add(id(exc))
        self._depth += 1
        self._exceptions -= 1
        try:
            return self._exception(exc)
        finally:
            self._open.discard(id(exc))
            self._depth -= 1

    def _exception(self, exc: BaseException) -> Description:
        cls = users_class(type(exc))
        description: Description = {
            "classes": [[each.__module__, each.__qualname__] for each in cls.__mro__[:-1]][: 2 * MOST_DEPTH],
            "text": self._text(message_of(exc)),
            "args": self._args(exc),
            "fields": self._fields(exc),
        }
        if exc.__cause__ is not None:
            with self._if_it_fits():
                description["cause"] = self.exception(exc.__cause__)
        if _is_pydantics(cls):
            problems = exc.errors(include_url=False)  # type: ignore[attr-defined]
            with self._if_it_fits():
                description["problems"] = [exc.title, [self._problem(each) for each in problems]]  # type: ignore[attr-defined]
        return description

    @contextlib.contextmanager
    def _if_it_fits(self) -> Iterator[None]:
        """Around a part that is left out where it does not fit; what comes after it may fit."""
        left = self._left
        try:
            yield
        except _Unfit:
            self._left = left

    def _args(self, exc: BaseException) -> list[Any]:
        """What the exception is made of, see `recreation.made`."""
        if isinstance(exc, BaseExceptionGroup):
            return [self._text(exc.message), self._members(exc.exceptions)]
        return [] if _is_pydantics(type(exc)) else [self._argument(arg) for arg in exc.args]

    def _members(self, members: tuple[BaseException, ...]) -> list[Any]:
        """As many as fit, and in place of the others one that says how many there were."""
        written = []
        for member in members:
            with self._if_it_fits():
                written.append(self._value(member))
        if left_out := len(members) - len(written):
            written.append({"exception": self._exception(Exception(f"{left_out} more exceptions are left out."))})
        return written

    def _fields(self, exc: BaseException) -> dict[str, Any]:
        fields = {}
        for name, value in fields_of(exc).items():
            if isinstance(exc, BaseExceptionGroup) and name in ("message", "exceptions"):
                continue
            if name == "__notes__":
                value = [note for note in value if not str(note).startswith(REMOTE_TRACEBACK)]
            elif name.startswith("__"):
                continue
            with self._if_it_fits():
                fields[name] = self._value(value)
        return fields

    def _problem(self, problem: dict[str, Any]) -> Any:
        """One of pydantic's, with an input that may be anything."""
        written = {name: self._value(value) for name, value in problem.items() if name in ("type", "loc", "msg")}
        written["input"] = self._argument(problem.get("input"))
        with self._if_it_fits():
            written["ctx"] = self._value(problem.get("ctx", {}))
        return written

    def _argument(self, value: Any) -> Any:
        try:
            return self._value(value)
        except _Unfit:
            try:
                return self._text(cut(repr(value), _MOST_REPR))
            except Exception:
                return f"<{type(value).__name__}>"

    def _text(self, text: str) -> str:
        """Text that is there in any case, however short."""
        text = cut(text, max(min(MOST_TEXT, self._left), _MOST_REPR))
        self._left -= len(text)
        return text

    def _value(self, value: Any, level: int = 0) -> Any:
        if level > _MOST_LEVELS:
            raise _Unfit
        self._left -= 8
        kind = type(value)
        written: Any
        if value is None or kind in (bool, float):
            written = value
        elif isinstance(value, int):
            if value.bit_length() > _MOST_BITS:
                raise _Unfit
            written = int(value)
        elif isinstance(value, str):
            self._left -= len(value)
            written = str.__str__(value)
        elif kind in _WRITTEN:
            name, write, _ = _WRITTEN[kind]
            written = {name: write(value)}
            self._left -= len(written[name])
        elif kind is list:
            written = self._items(value, level)
        elif kind in _COLLECTIONS:
            written = {_COLLECTIONS[kind]: self._items(value, level)}
        elif kind is dict and all(type(key) is str for key in value):
            self._left -= sum(map(len, value))
            written = {"dict": dict(zip(value, self._items(value.values(), level), strict=True))}
        elif isinstance(value, BaseException):
            written = {"exception": self.exception(value)}
        else:
            raise _Unfit
        if self._left < 0:
            raise _Unfit
        return written

    def _items(self, values: Any, level: int) -> list[Any]:
        return [self._value(each, level + 1) for each in values]


def _first_raised(exc: BaseException) -> BaseException:
    """The exception itself; for a child's failure that its parent passes on what the child raised."""
    cause = exc.__cause__
    passes_on = isinstance(exc, BaseRuntimeError) and cause is not None and users_class(type(exc)) is type(cause)
    return cause if passes_on and cause is not None and message_of(exc) == message_of(cause) else exc


# -- Making it again -------------------------------------------------------------------------------------------------


def _recreated(description: Description) -> BaseException:
    names: list[tuple[str, str]] = [(str(module), str(qualname)) for module, qualname in description["classes"]]
    text: str = str(description["text"])
    args = tuple(_read(each) for each in description["args"])
    fields = {name: _read(each) for name, each in description["fields"].items() if _is_settable(name)}
    classes = [_found(*name) for name in names]
    if (cls := classes[0]) is not None:
        with contextlib.suppress(Exception):
            if _is_pydantics(cls):
                return _pydantics(cls, *description["problems"])
            exc = made(cls, args, fields)
            if _is_sound(exc, text):
                return exc
    for base in classes:
        if base is not None:
            with contextlib.suppress(Exception):
                exc = stand_in(base, names[0], args, fields, text)
                if _is_sound(exc, text):
                    return exc
    return stand_in(Exception, names[0], args, fields, text)


def _found(module: str, qualname: str) -> type[BaseException] | None:
    """An exception class of a module that is imported; None where there is none of that name."""
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _is_sound(exc: BaseException, text: str) -> bool:
    """Whether an exception that was made without `__init__` works as others do, and says the same as the original."""
    getattr(exc, "__notes__", None)  # Python asks each exception for them that it shows
    said = message_of(exc)
    return text in (said, cut(said))


def _is_settable(name: str) -> bool:
    return name == "__notes__" or not name.startswith("__")


def _read(written: Any) -> Any:
    if isinstance(written, list):
        return [_read(each) for each in written]
    if not isinstance(written, dict):
        return written
    [(name, value)] = written.items()
    if name == "dict":
        return {key: _read(each) for key, each in value.items()}
    if name == "exception":
        return recreated(value)
    if name in _COLLECTED:
        return _COLLECTED[name](_read(value))
    return _READ[name](value)


# -- pydantic --------------------------------------------------------------------------------------------------------


def _is_pydantics(cls: type[BaseException]) -> bool:
    """Whether it is pydantic's `ValidationError`, which has a maker of its own and no other, and no subclasses."""
    core = sys.modules.get("pydantic_core")
    return core is not None and cls is core.ValidationError


def _pydantics(cls: Any, title: str, problems: list[dict[str, Any]]) -> BaseException:
    from pydantic_core import PydanticCustomError

    details = [{name: _read(each) for name, each in problem.items()} for problem in problems]
    error: BaseException
    try:
        error = cls.from_exception_data(title, details)
    except (KeyError, TypeError, ValueError):  # a type of problem that a library has made up
        for each in details:
            each["type"] = PydanticCustomError(each["type"], each["msg"])
        error = cls.from_exception_data(title, details)
    return error
