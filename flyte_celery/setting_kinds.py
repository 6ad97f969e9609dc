"""The kinds of settings: how a value of each is read from an environment variable, and what it may be.

A field of `Settings` names its kind by its type: `lease: Seconds`, `max_age: Seconds | None`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from .quantity import cores, size
from .urls import redacted


@dataclass(frozen=True, slots=True)
class Kind:
    """How a setting of one kind is read and checked."""

    check: Callable[[str, Any], Any]
    """Returns the value of the setting with this name as it is kept. Raises `TypeError` or `ValueError`."""

    parse: Callable[[str], Any] = str
    """Makes a value of a variable's text. Raises `ValueError`."""

    words: str = "text"
    """What the text of a variable has to be, for messages."""


def _url(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}: give one URL as text, several joined by ';'.")
    if not value:
        raise ValueError(f"{name} is empty: give a URL, or None for the default.")
    return value


def _broker_url(name: str, value: Any) -> str:
    if isinstance(value, str) and "://" not in value:
        raise ValueError(f"{name}={redacted(value)!r} is no URL: give one such as 'redis://localhost:6379/0'.")
    return _url(name, value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: give text.")
    return value


def _directory(name: str, value: Any) -> Path:
    if not isinstance(value, str | Path):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: give a path.")
    return Path(value).expanduser().absolute()


#: What an environment variable may say of a switch.
_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def _word(text: str) -> bool:
    if text.lower() not in _WORDS:
        raise ValueError(text)
    return _WORDS[text.lower()]


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: give True or False.")
    return value


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: give a whole number.")
    if value < 1:
        raise ValueError(f"{name}={value} is too small: give at least 1.")
    return value


def _bytes(name: str, value: Any) -> int:
    return _count(name, size(value, name) if isinstance(value, str) else value)


def _cores(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: give a number of cores.")
    if not cores(value, name):
        raise ValueError(f"{name}=0 leaves no core for any replica: give more than 0.")
    return float(value)


def _seconds(name: str, value: Any) -> float:
    return _checked_seconds(name, value, "more than 0", lambda seconds: seconds > 0)


def _seconds_or_none(name: str, value: Any) -> float:
    return _checked_seconds(name, value, "0 or more", lambda seconds: seconds >= 0)


def _checked_seconds(name: str, value: Any, least: str, allows: Callable[[float], bool]) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: give seconds as a number, or a timedelta.")
    if not math.isfinite(seconds) or not allows(seconds):
        raise ValueError(f"{name}={seconds:g} is out of range: give finite seconds, {least}.")
    return float(seconds)


BrokerUrl = Annotated[str, Kind(_broker_url)]
Url = Annotated[str, Kind(_url)]
Text = Annotated[str, Kind(_text)]
Directory = Annotated[Path, Kind(_directory)]
Switch = Annotated[bool, Kind(_switch, _word, "1 or 0")]
Count = Annotated[int, Kind(_count, int, "a whole number")]
#: The variable takes a quantity such as `48Gi`, too.
Bytes = Annotated[int, Kind(_bytes)]
Cores = Annotated[float, Kind(_cores, float, "a number of cores")]
Seconds = Annotated[float, Kind(_seconds, float, "a number of seconds")]
#: Times of which 0 means something: at once, or none.
SecondsOrZero = Annotated[float, Kind(_seconds_or_none, float, "a number of seconds")]


def kind_of(hint: Any) -> Kind:
    """The kind that the type of a field names."""
    found = [each for each in (hint, *getattr(hint, "__args__", ())) if hasattr(each, "__metadata__")]
    kind = found[0].__metadata__[0]
    assert isinstance(kind, Kind)
    return kind


def read(kind: Kind, name: str, variable: str, text: str) -> Any:
    """The value of an environment variable, checked where the variable's name is still known.

    Raises:
        ValueError: The text is no such value; the message names the variable.
    """
    try:
        value = kind.parse(text)
    except ValueError:
        raise ValueError(f"{variable}={text!r} is not {kind.words}: correct or remove the variable.") from None
    try:
        return kind.check(name, value)
    except ValueError as error:
        raise ValueError(f"{error} It comes from the environment variable {variable}.") from None
