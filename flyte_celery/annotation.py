"""What an annotation says about values on their way through JSON; no value is looked at here."""

from __future__ import annotations

import dataclasses
import enum
import pathlib
import types
import typing
import uuid
from collections import abc
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

SCALARS: frozenset[Any] = frozenset({str, int, float, bool, types.NoneType})
_ROUND_TRIP: frozenset[Any] = SCALARS | {bytes, date, datetime, time, timedelta, Decimal, uuid.UUID}
_KEYS: frozenset[Any] = frozenset({str, int, bytes, date, datetime, uuid.UUID})
_COLLECTIONS: frozenset[Any] = frozenset(
    {list, set, frozenset, tuple, abc.Sequence, abc.MutableSequence, abc.Set, abc.MutableSet}
)
_MAPPINGS: frozenset[Any] = frozenset({dict, abc.Mapping, abc.MutableMapping})
ANYTHING: frozenset[Any] = frozenset({Any, object})
#: Without arguments they hold anything.
_OPEN: frozenset[Any] = frozenset({list, dict, typing.List, typing.Dict})  # noqa: UP006


def is_one_of(annotation: Any, kinds: frozenset[Any]) -> bool:
    """Whether an annotation is in a set, whatever it is."""
    try:
        return annotation in kinds
    except TypeError:  # Annotated[...] with metadata that has no hash
        return False


def _arguments(annotation: Any) -> tuple[Any, ...]:
    return tuple(argument for argument in typing.get_args(annotation) if argument is not Ellipsis)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def is_native(annotation: Any) -> bool:
    """Whether valid values are JSON already, however deep."""
    if is_one_of(annotation, ANYTHING | SCALARS | _OPEN):
        return True
    arguments = _arguments(annotation)
    match typing.get_origin(annotation):
        case typing.Literal:
            return all(type(argument) in SCALARS for argument in arguments)
        case origin if origin is list or _is_union(annotation):
            return all(is_native(argument) for argument in arguments)
        case origin if origin is dict:
            return arguments[0] in (str, Any) and is_native(arguments[1])
    return False


def mentions_anything(annotation: Any) -> bool:
    """Whether some part of the value may be of any type."""
    if is_one_of(annotation, ANYTHING | _OPEN):
        return True
    return typing.get_origin(annotation) is not Literal and any(map(mentions_anything, _arguments(annotation)))


def round_trips(annotation: Any) -> bool:
    """Whether every valid value is known to come back from JSON as it was; others are checked one by one."""
    if is_one_of(annotation, _ROUND_TRIP):
        return True
    arguments = _arguments(annotation)
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return round_trips(arguments[0])
    if origin is Literal:
        return is_native(annotation)
    if origin in _COLLECTIONS:
        return bool(arguments) and all(map(round_trips, arguments))
    if origin in _MAPPINGS:
        return bool(arguments) and is_one_of(arguments[0], _KEYS) and round_trips(arguments[1])
    if _is_union(annotation):
        others = [argument for argument in arguments if argument is not types.NoneType]
        return len(others) == 1 and round_trips(others[0])
    if not isinstance(annotation, type):
        return False
    if issubclass(annotation, enum.Enum):
        return all(type(member.value) in (str, int) for member in annotation)
    # What is inside a model or a dataclass is its author's business.
    return (
        issubclass(annotation, pathlib.PurePath)
        or dataclasses.is_dataclass(annotation)
        or hasattr(annotation, "__pydantic_validator__")
        or hasattr(annotation, "__required_keys__")  # a typed dict, of typing or of typing_extensions
        or (issubclass(annotation, tuple) and hasattr(annotation, "_fields"))
    )
