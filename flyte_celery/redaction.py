"""Redaction: what a replica or a worker says about itself does not contain its secrets.

`install` makes the values of a process's secrets known. From then on its log records are free of them, and whoever
passes on an exception or a traceback cleans it first with `current()`.

Looked for are the values as they are, the longer lines of a value with several, and what Python and the web make of
them: escaped as in `repr` and in JSON, percent-encoded, and in base64, alone or inside a longer text (`user:password`).
Values below `SHORTEST` characters would be found everywhere by chance, and are left alone. What a task returns or
passes on as an argument is data, and stays as it is.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import pickle
import re
import traceback
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, quote_plus

from .errors import RuntimeUserError

#: Characters that a value must have to be redacted.
SHORTEST = 8

#: Characters that a single line of a value with several must have.
SHORTEST_LINE = 20

#: What takes the place of a secret.
MARK = "**"

#: Attributes of built-in exceptions that are kept outside of `__dict__`, and show in their text.
_BUILT_IN = ("filename", "filename2", "msg", "name", "object", "reason", "strerror", "text", "value")


class Redactor:
    """Takes secrets out of text, values and exceptions.

    Args:
        values: The secrets. Those that are too short to be told from other text are ignored.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        forms = sorted({form for value in values for form in _forms(value)}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, forms))) if forms else None
        self._needles = [form.encode("utf-8", "surrogatepass") for form in forms]

    def __bool__(self) -> bool:
        """Whether there is anything to look for."""
        return self._pattern is not None

    def text(self, text: str) -> str:
        """The text without secrets."""
        if self._pattern is None or self._pattern.search(text) is None:
            return text
        return self._pattern.sub(MARK, text)

    def found_in(self, data: bytes) -> bool:
        """Whether bytes, such as a pickle, contain a secret."""
        return any(needle in data for needle in self._needles)

    def value(self, value: Any) -> Any:
        """The value without secrets; the very same object where there were none, else a copy."""
        return self._value(value, {}) if self else value

    def exception(self, exc: BaseException) -> BaseException:
        """The exception without secrets, with its causes and notes.

        Returns:
            The same object, changed; or where it cannot be changed a `RuntimeUserError` with its class's name as code.
        """
        return self._exception(exc, {}) if self else exc

    def _value(self, value: Any, seen: dict[int, Any]) -> Any:
        if type(value) is str:
            return self.text(value)
        if type(value) is bytes:
            text = value.decode("utf-8", "surrogateescape")
            clean = self.text(text)
            return value if clean is text else clean.encode("utf-8", "surrogateescape")
        if isinstance(value, BaseException):
            return self._exception(value, seen)
        if type(value) in (list, tuple, set, frozenset):
            parts = [self._value(part, seen) for part in value]
            return value if _same(parts, value) else type(value)(parts)
        if type(value) is dict:
            names = [self._value(name, seen) for name in value]
            parts = [self._value(part, seen) for part in value.values()]
            unchanged = _same(names, value) and _same(parts, value.values())
            return value if unchanged else dict(zip(names, parts, strict=True))
        return value

    def _exception(self, exc: BaseException, seen: dict[int, Any]) -> BaseException:
        if id(exc) in seen:
            found: BaseException = seen[id(exc)]
            return found
        seen[id(exc)] = exc
        self._change(exc, seen)
        if self._is_clean(exc):
            return exc
        try:
            message = self.text(str(exc))
        except Exception:
            message = f"its text is left out, because it cannot be read ({type(exc).__name__})"
        stand_in = seen[id(exc)] = RuntimeUserError(type(exc).__name__, message)
        return stand_in.with_traceback(exc.__traceback__)

    def _change(self, exc: BaseException, seen: dict[int, Any]) -> None:
        if (args := self._value(exc.args, seen)) is not exc.args:
            exc.args = args
        attributes = vars(exc) if hasattr(exc, "__dict__") else {}
        for name, value in list(attributes.items()):
            if (clean := self._value(value, seen)) is not value:
                attributes[name] = clean
        for name in _BUILT_IN:
            value = getattr(exc, name, None)
            if isinstance(value, str | bytes) and (clean := self._value(value, seen)) is not value:
                with contextlib.suppress(AttributeError, TypeError):
                    setattr(exc, name, clean)
        suppressed = exc.__suppress_context__
        if exc.__cause__ is not None:
            exc.__cause__ = self._exception(exc.__cause__, seen)
        if exc.__context__ is not None:
            exc.__context__ = self._exception(exc.__context__, seen)
        exc.__suppress_context__ = suppressed  # setting a cause sets it

    def _is_clean(self, exc: BaseException) -> bool:
        """Whether nothing of it would show a secret: its texts, nor what is pickled for another process."""
        if isinstance(exc, BaseExceptionGroup) and not all(self._is_clean(member) for member in exc.exceptions):
            return False  # its members were changed where they can be; they cannot be replaced
        try:
            texts = f"{exc!r} {exc}"
        except Exception:
            return False
        if self.text(texts) != texts:
            return False
        try:
            return not self.found_in(pickle.dumps(exc))
        except Exception:
            return True  # one that cannot be pickled goes nowhere

    def record(self, record: logging.LogRecord) -> None:
        """Take secrets out of a log record: its message, its traceback, its stack."""
        try:
            message = record.getMessage()
        except Exception:  # its arguments do not fit; logging says so, and shows them
            record.msg, record.args = self.value(record.msg), self.value(record.args)
        else:
            if (clean := self.text(message)) != message:
                record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            if (clean := self.text(text)) != text:
                # Formatters take this text; what they would make of the exception itself is not clean.
                record.exc_text = clean
                stand_in = RuntimeUserError(record.exc_info[0].__name__, self.text(str(record.exc_info[1])))
                record.exc_info = (RuntimeUserError, stand_in, record.exc_info[2])
        if record.stack_info:
            record.stack_info = self.text(record.stack_info)


_values: frozenset[str] = frozenset()
_current = Redactor()


def current() -> Redactor:
    """This process's redactor; before `install`, one that finds nothing."""
    return _current


def install(values: Iterable[str]) -> None:
    """Redact these values, too, from now on, also in every log record that this process makes."""
    global _values, _current
    known = _values.union(values)
    redactor = Redactor(known)
    if known == _values or not redactor:
        return
    _values = known
    if not _current:
        make = logging.getLogRecordFactory()

        def clean(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = make(*args, **kwargs)
            _current.record(record)
            return record

        logging.setLogRecordFactory(clean)
    _current = redactor


def _forms(value: str) -> set[str]:
    """Everything that a value may look like; nothing for one that is too short."""
    if len(value) < SHORTEST:
        return set()
    lines = {line for line in (line.strip() for line in value.splitlines()) if len(line) >= SHORTEST_LINE}
    forms = {value, value.strip(), *lines}
    for plain in [*forms]:
        raw = plain.encode("utf-8", "surrogateescape")
        forms |= {repr(plain)[1:-1], json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1]}
        forms |= {quote(raw), quote(raw, safe=""), quote_plus(raw), raw.hex()}
        forms |= _base64(raw)
    return {form for form in forms if len(form) >= SHORTEST}


def _base64(raw: bytes) -> set[str]:
    """What is in base64 of any text that contains these bytes, wherever in it they begin."""
    forms = set()
    for shift in range(3):
        # The characters at the ends hold bits of what stands before and behind, too.
        whole = base64.b64encode(bytes(shift) + raw).rstrip(b"=").decode()
        end = len(whole) - 1 if (shift + len(raw)) % 3 else len(whole)
        inner = whole[(0, 2, 3)[shift] : end]
        forms |= {inner, inner.replace("+", "-").replace("/", "_")}
    return forms


def _same(one: Iterable[Any], other: Iterable[Any]) -> bool:
    return all(mine is theirs for mine, theirs in zip(one, other, strict=True))
