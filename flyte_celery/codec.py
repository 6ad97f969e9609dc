"""One value on its way through JSON: what its annotation makes of it.

```
annotation                         on the way out                       on the way in
none, Any                          unchanged, if it is JSON already     unchanged
int, list[str], dict[str, Any]...  checked strictly                     checked strictly
everything else                    checked strictly, written as JSON    read from JSON, strictly
serializer="pickle"                checked strictly, unchanged          unchanged
```
Strictly means that `"1"` is no int. A parameter takes a value of its type or that value's JSON form, so that what one
task returned can be the next one's argument in a Celery chain: dumping twice is the same as dumping once.

bytes travel as base64, also inside lists, dicts, dataclasses, typed dicts and named tuples; a pydantic model decides
for itself (`ser_json_bytes`, whose default is UTF-8). JSON cannot tell everything apart: text that reads as a date
arrives as one where the annotation is `date | str`, a `Sequence` arrives as a list, and before Python 3.12 pydantic
wants `typing_extensions.TypedDict`. A value that would arrive as another one is refused, except where a model or a
dataclass holds it.

pydantic does the work and is imported on first use, because it takes longer to import than all the rest.
"""

from __future__ import annotations

import enum
import types
from typing import TYPE_CHECKING, Any, Protocol

from .annotation import ANYTHING, SCALARS, is_native, is_one_of, mentions_anything, round_trips

if TYPE_CHECKING:
    from pydantic import TypeAdapter

#: What to do about a value that is not JSON and has no annotation that would make it JSON.
ANNOTATE = 'Annotate it with its type, or ask for pickle with @env.task(serializer="pickle")'


class Unfit(Exception):
    """A value or an annotation that cannot be used, and why; whoever knows its name makes an error of it.

    Args:
        reason: A clause without a full stop.
        fix: What to do, as a sentence without a full stop. None: pass a value of the type.
    """

    def __init__(self, reason: str, fix: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


class Codec(Protocol):
    """How values of one annotation travel. Both methods raise `Unfit`."""

    def dump(self, value: Any) -> Any:
        """The value as it travels: made of str, int, float, bool, None, list and dict, unless pickle is asked for."""
        ...

    def load(self, value: Any) -> Any:
        """The value of the annotation's type."""
        ...

    def schema(self, ref_template: str) -> dict[str, Any]:
        """JSON Schema of the travelling form; `ref_template` places the classes that it refers to."""
        ...


def codec_for(annotation: Any, pickled: bool = False) -> Codec:
    """The codec of a resolved annotation.

    Args:
        annotation: The annotation, or `inspect.Parameter.empty` spelled as `Any` where there is none.
        pickled: Whether values travel in a pickle.

    Raises:
        Unfit: If pydantic cannot handle the annotation.
    """
    if is_one_of(annotation, ANYTHING):
        return _Unchanged() if pickled else _Untyped()
    if annotation is None:
        annotation = types.NoneType
    adapter = _adapter(annotation, arbitrary=pickled)
    if pickled:
        return _Pickled(adapter)
    if is_native(annotation):
        return _Native(adapter, annotation)
    return _Typed(adapter, check=not round_trips(annotation))


def jsonable(value: Any) -> Any:
    """The JSON form of a value by its own type, for where no annotation is known yet.

    Raises:
        Unfit: If it has none.
    """
    if _foreign(value) is None:
        return value
    import pydantic_core

    try:
        return pydantic_core.to_jsonable_python(value, bytes_mode="base64")
    except (pydantic_core.PydanticSerializationError, ValueError) as exc:
        raise Unfit(f"it cannot be written as JSON: {exc}", ANNOTATE) from None


# -- The codecs ------------------------------------------------------------------------------------------------------


class _Unchanged:
    def dump(self, value: Any) -> Any:
        return value

    def load(self, value: Any) -> Any:
        return value

    def schema(self, ref_template: str) -> dict[str, Any]:
        return {}


class _Untyped(_Unchanged):
    def dump(self, value: Any) -> Any:
        _refuse_foreign(value)
        return value


class _Pickled(_Unchanged):
    def __init__(self, adapter: TypeAdapter[Any]) -> None:
        self._adapter = adapter

    def dump(self, value: Any) -> Any:
        _validated(self._adapter, value)
        return value


class _WithAdapter:
    _adapter: TypeAdapter[Any]

    def schema(self, ref_template: str) -> dict[str, Any]:
        return self._adapter.json_schema(ref_template=ref_template)


class _Native(_WithAdapter):
    """For annotations whose values are JSON themselves: nothing is written or read."""

    def __init__(self, adapter: TypeAdapter[Any], annotation: Any) -> None:
        self._adapter = adapter
        self._exact = annotation if is_one_of(annotation, SCALARS) else None
        self._open = mentions_anything(annotation)

    def dump(self, value: Any) -> Any:
        if type(value) is self._exact:
            return value
        valid = _validated(self._adapter, value)
        if self._open:
            _refuse_foreign(valid)
        return self._adapter.dump_python(valid, mode="json")  # plain values also from subclasses of str and int

    def load(self, value: Any) -> Any:
        if type(value) is self._exact:
            return value
        return _validated(self._adapter, value)


class _Typed(_WithAdapter):
    def __init__(self, adapter: TypeAdapter[Any], check: bool) -> None:
        self._adapter = adapter
        self._check = check

    def dump(self, value: Any) -> Any:
        valid = self._valid(value)
        try:
            dumped = self._adapter.dump_python(valid, mode="json", warnings="error")
        except ValueError as exc:  # PydanticSerializationError is one, and bytes that are not UTF-8 raise another
            raise Unfit(_why_not_json(exc), ANNOTATE) from None
        if self._check and dumped != value:
            self._check_round_trip(valid, dumped)
        return dumped

    def load(self, value: Any) -> Any:
        if type(value) in SCALARS or type(value) in (dict, list):
            return self._from_json(value)
        return _validated(self._adapter, value)  # kombu's JSON restores datetimes, decimals and UUIDs by itself

    def _valid(self, value: Any) -> Any:
        try:
            return _validated(self._adapter, value)
        except Unfit:
            if _foreign(value) is not None:
                raise
        return self._from_json(value)

    def _from_json(self, value: Any) -> Any:
        import pydantic_core

        try:
            return self._adapter.validate_json(pydantic_core.to_json(value), strict=True)
        except pydantic_core.ValidationError as exc:
            raise Unfit(_first_error(exc)) from None

    def _check_round_trip(self, value: Any, dumped: Any) -> None:
        # A union is read by the form that fits best, and bytes in `str | bytes` come back as a string.
        fix = 'Use an annotation that tells the alternatives apart, or ask for pickle with serializer="pickle"'
        try:
            loaded = self._from_json(dumped)
        except Unfit as exc:
            raise Unfit(f"its JSON form {dumped!r} cannot be read back: {exc.reason}", fix) from None
        if type(loaded) is not type(value) or (loaded != value and value == value):
            raise Unfit(f"its JSON form {dumped!r} would arrive as {loaded!r}", fix)


# -- pydantic --------------------------------------------------------------------------------------------------------


def _adapter(annotation: Any, arbitrary: bool) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter
    from pydantic_core import SchemaError
    from typing_extensions import TypeAliasType

    # Python bytes have no JSON form of their own. This configuration reaches dataclasses, typed dicts and named
    # tuples; pydantic models have their own, whose default is UTF-8.
    config = ConfigDict(
        ser_json_bytes="base64",
        val_json_bytes="base64",
        ser_json_inf_nan="constants",
        arbitrary_types_allowed=arbitrary,
    )
    # TypeAdapter refuses a configuration for a dataclass itself, but not for another name of it. Type checkers want
    # the name of an alias to be known; this one is made while the program runs.
    make_alias: Any = TypeAliasType
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(make_alias("Value", annotation), config=config)
        if not adapter.pydantic_complete:  # a field of a class inside names something that does not exist
            adapter.rebuild(raise_errors=True)
        return adapter
    except (PydanticUserError, SchemaError, TypeError, NameError) as exc:
        fix = 'Use a type that pydantic knows, or ask for pickle with @env.task(serializer="pickle")'
        raise Unfit(f"pydantic cannot handle it: {str(exc).splitlines()[0].rstrip('.')}", fix) from None


def _validated(adapter: TypeAdapter[Any], value: Any) -> Any:
    import pydantic_core

    try:
        return adapter.validate_python(value, strict=True)
    except pydantic_core.ValidationError as exc:
        raise Unfit(_first_error(exc)) from None


def _first_error(exc: Any) -> str:
    errors = exc.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(str(part) for part in errors[0]["loc"])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where + ': ' if where else ''}{errors[0]['msg']}{more}"


def _why_not_json(exc: ValueError) -> str:
    if isinstance(exc, UnicodeDecodeError):
        return (
            "it has bytes that are not UTF-8 in a pydantic model, which decides for itself how they travel: give the "
            'model model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")'
        )
    return f"it cannot be written as JSON: {exc}"


# -- JSON ----------------------------------------------------------------------------------------------------------


def _refuse_foreign(value: Any) -> None:
    foreign = _foreign(value)
    if foreign is not None:
        raise Unfit(f"it holds {foreign}, which JSON cannot carry unchanged", ANNOTATE)


def _foreign(value: Any) -> str | None:
    """What in a value is not JSON, described; None if everything is."""
    try:
        return _find_foreign(value)
    except RecursionError:
        return "itself, or too many levels"


def _find_foreign(value: Any) -> str | None:
    kind = type(value)
    if kind in SCALARS:
        return None
    if kind is list:
        return next((found for item in value if (found := _find_foreign(item)) is not None), None)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str and not _is_plain_subclass(key, (str,)):
                return f"the key {key!r} ({type(key).__name__})"
            if (found := _find_foreign(item)) is not None:
                return found
        return None
    if _is_plain_subclass(value, (str, int, float)):
        return None
    article = "an" if kind.__name__[:1] in "aeiouAEIOU" else "a"
    return f"{article} {kind.__name__}"


def _is_plain_subclass(value: Any, bases: tuple[type, ...]) -> bool:
    # Django's SafeString is text; an enum member is not, it would arrive as its value.
    return isinstance(value, bases) and not isinstance(value, enum.Enum)
