"""What arguments and results look like in a message, and what fits."""

from __future__ import annotations

import enum
import inspect
import json
import math
import pickle
import subprocess
import sys
import traceback
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from flyte_celery.serialization import Signature

if TYPE_CHECKING:
    from somewhere_else import Missing

ID = UUID("12345678-1234-5678-1234-567812345678")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Point(enum.Enum):
    ORIGIN = (0, 0)


class Address(BaseModel):
    street: str
    since: date | None = None


class Person(BaseModel):
    name: str
    home: Address
    tags: set[str] = Field(default_factory=set)


class Blob(BaseModel):
    data: bytes


class Base64Blob(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    data: bytes


@dataclass
class Job:
    payload: bytes
    owner: Person | None = None
    options: dict[str, Colour] = field(default_factory=dict)


class Options(TypedDict):
    when: datetime
    raw: bytes


class Pair(NamedTuple):
    left: int
    right: bytes


ADA = Person(name="Ada", home=Address(street="Main", since=date(1815, 12, 10)), tags={"x"})


def signature(annotation: Any, *, pickled: bool = False) -> Signature:
    """A task that takes and returns one value of a type."""

    def function(x):
        return x

    function.__annotations__ = {"x": annotation, "return": annotation}
    return Signature(function, False, "env.f", pickled=pickled)


def sent(annotation: Any, value: Any) -> Any:
    """A value as it travels."""
    (dumped,), _ = signature(annotation).dump_call((value,), {})
    return dumped


def over_the_wire(annotation: Any, value: Any) -> Any:
    """A value as the other side gets it, through the JSON that Celery writes."""
    types = signature(annotation)
    (loaded,), _ = types.load_call(*kombu_json.loads(kombu_json.dumps(types.dump_call((value,), {}))))
    return loaded


CASES: list[tuple[Any, Any, Any]] = [
    (int, 5, 5),
    (int, 10**30, 10**30),
    (float, 1.5, 1.5),
    (float, 3, 3.0),
    (str, "é", "é"),
    (bool, True, True),
    (None, None, None),
    (list[int], [1, 2], [1, 2]),
    (dict[str, float], {"a": 1.5}, {"a": 1.5}),
    (dict[str, list[str | None]], {"a": ["b", None]}, {"a": ["b", None]}),
    (int | str, "1", "1"),
    (int | float, 1, 1),
    (str | None, None, None),
    (Literal["a", 1], 1, 1),
    (bytes, b"\xff\x00", "_wA="),
    (list[bytes], [b"\xff"], ["_w=="]),
    (dict[str, bytes], {"a": b"\xff"}, {"a": "_w=="}),
    (Path, Path("/tmp/x"), "/tmp/x"),
    (UUID, ID, str(ID)),
    (Decimal, Decimal("1.10"), "1.10"),
    (datetime, datetime(2026, 1, 2, 3, 4, 5, 6), "2026-01-02T03:04:05.000006"),
    (datetime, datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
    (date, date(2026, 1, 2), "2026-01-02"),
    (time, time(3, 4, 5), "03:04:05"),
    (timedelta, timedelta(days=1, seconds=2), "P1DT2S"),
    (Colour, Colour.RED, "red"),
    (Level, Level.LOW, 1),
    (tuple[int, str], (1, "a"), [1, "a"]),
    (tuple[date, ...], (date(2026, 1, 2),), ["2026-01-02"]),
    (set[int], {1}, [1]),
    (frozenset[Colour], frozenset({Colour.RED}), ["red"]),
    (dict[int, str], {1: "a"}, {"1": "a"}),
    (dict[UUID, date], {ID: date(2026, 1, 2)}, {str(ID): "2026-01-02"}),
    (Person, ADA, {"name": "Ada", "home": {"street": "Main", "since": "1815-12-10"}, "tags": ["x"]}),
    (list[Address], [Address(street="a")], [{"street": "a", "since": None}]),
    (Address | None, Address(street="a"), {"street": "a", "since": None}),
    (Job, Job(b"\xff", None, {"a": Colour.RED}), {"payload": "_w==", "owner": None, "options": {"a": "red"}}),
    (list[Job], [Job(b"")], [{"payload": "", "owner": None, "options": {}}]),
    (Options, {"when": datetime(2026, 1, 2), "raw": b"\xff"}, {"when": "2026-01-02T00:00:00", "raw": "_w=="}),
    (Pair, Pair(1, b"\xff"), [1, "_w=="]),
    (Blob, Blob(data=b"text"), {"data": "text"}),
    (Base64Blob, Base64Blob(data=b"\xff"), {"data": "_w=="}),
    (Sequence[date], [date(2026, 1, 2)], ["2026-01-02"]),
    (Mapping[str, date], {"a": date(2026, 1, 2)}, {"a": "2026-01-02"}),
    (date | int, date(2026, 1, 2), "2026-01-02"),
    (Annotated[int, Field(gt=0)], 5, 5),
    (Literal[Colour.RED] | None, None, None),
    (Any, {"a": [1, None, True]}, {"a": [1, None, True]}),
    (dict, {"a": [1]}, {"a": [1]}),
    (list, [1, {"a": 2}], [1, {"a": 2}]),
    (tuple, (1, "a"), [1, "a"]),
    (dict[str, Any], {"a": [1]}, {"a": [1]}),
    (object, "x", "x"),
]


def case_id(value: Any) -> str:
    return str(value)[:60]


@pytest.mark.parametrize(("annotation", "value", "wire"), CASES, ids=case_id)
def test_a_value_of_the_type_travels_as_json_and_comes_back(annotation: Any, value: Any, wire: Any) -> None:
    assert sent(annotation, value) == wire
    assert json.loads(json.dumps(wire)) == wire
    arrived = over_the_wire(annotation, value)
    assert (arrived, type(arrived)) == (value, float if annotation is float else type(value))


@pytest.mark.parametrize(("annotation", "value", "wire"), CASES, ids=case_id)
def test_the_json_form_of_a_value_is_accepted_too(annotation: Any, value: Any, wire: Any) -> None:
    """What a task returned can be the next one's argument in a chain: dumping twice is dumping once."""
    assert sent(annotation, wire) == wire
    assert over_the_wire(annotation, wire) == value


@pytest.mark.parametrize(("annotation", "value", "wire"), CASES, ids=case_id)
def test_results_travel_as_arguments_do(annotation: Any, value: Any, wire: Any) -> None:
    types = signature(annotation)
    assert types.dump_result(value) == wire
    assert types.load_result(json.loads(json.dumps(wire))) == value


@pytest.mark.parametrize(
    ("annotation", "value", "expected", "shown"),
    [
        (int, "1", "int", "'1' (str)"),
        (int, True, "int", "True (bool)"),
        (int, 1.0, "int", "1.0 (float)"),
        (int, None, "int", "None (NoneType)"),
        (str, 1, "str", "1 (int)"),
        (str, ID, "str", "(UUID)"),
        (str, date(2026, 1, 2), "str", "(date)"),
        (bool, 1, "bool", "1 (int)"),
        (None, 1, "None", "1 (int)"),
        (list[int], [1, "2"], r"list\[int\]", r"[1, '2'] (list)"),
        (list[int], (1, 2), r"list\[int\]", "(tuple)"),
        (dict[str, int], {1: 1}, r"dict\[str, int\]", "(dict)"),
        (date, datetime(2026, 1, 2), "date", "(datetime)"),
        (datetime, "yesterday", "datetime", "'yesterday' (str)"),
        (Decimal, True, "Decimal", "True (bool)"),
        (UUID, "x", "UUID", "'x' (str)"),
        (bytes, "not base64!", "bytes", "(str)"),
        (Colour, "blue", "Colour", "'blue' (str)"),
        (Literal["a"], "b", r"Literal\['a'\]", "'b' (str)"),
        (Person, {"name": "Ada"}, "Person", "(dict)"),
        (Person, Address(street="x"), "Person", "(Address)"),
        (Job, {"payload": 5}, "Job", "(dict)"),
        (Address | None, 5, r"Address | None", "5 (int)"),
        (Annotated[int, Field(gt=0)], 0, "int", "0 (int)"),
        (tuple[int, str], [1], r"tuple\[int, str\]", "[1] (list)"),
    ],
    ids=case_id,
)
def test_another_value_is_a_type_error_that_names_everything(
    annotation: Any, value: Any, expected: str, shown: str
) -> None:
    with pytest.raises(TypeError, match=f"^Task 'env.f' takes .*{expected}.* for its parameter 'x', not ") as error:
        sent(annotation, value)
    assert shown in str(error.value)
    assert str(error.value).endswith(".")
    with pytest.raises(TypeError, match=f"^Task 'env.f' is annotated to return .*{expected}.*, but returned "):
        signature(annotation).dump_result(value)


@pytest.mark.parametrize("annotation", [int, Any])
def test_a_coroutine_is_no_result(annotation: Any) -> None:
    """A sync task has called an async child, whose coroutine Python would warn of besides."""

    async def child() -> int:
        return 1

    with pytest.raises(TypeError, match=r"^Task 'env.f' returned a coroutine that nobody has awaited: make the task"):
        signature(annotation).dump_result(child())


def test_the_message_says_where_in_the_value_it_does_not_fit() -> None:
    with pytest.raises(TypeError, match=r"home\.street: Input should be a valid string \(and 1 more\)"):
        sent(Person, {"name": "Ada", "home": {"street": 5}, "tags": 5})


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(TypeError) as error:
        sent(int, "x" * 10_000)
    assert len(str(error.value)) < 300


def test_a_value_whose_repr_fails_is_described_all_the_same() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    with pytest.raises(TypeError, match="Broken"):
        sent(int, Broken())


def test_the_error_is_raised_in_the_callers_own_stack() -> None:
    """The caller sees the call and at most two frames below it, and nothing of pydantic."""
    with pytest.raises(TypeError) as error:
        sent(Person, {"name": 5})
    frames = traceback.extract_tb(error.value.__traceback__)
    assert [frame.name for frame in frames][2:] == ["dump_call", "_converted"]
    text = "".join(traceback.format_exception(error.value))
    assert "ValidationError" not in text
    assert "During handling" not in text


# -- Values without a type -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        (date(2026, 1, 2), "a date"),
        ([1, {"a": ID}], "an? UUID"),
        ((1, 2), "a tuple"),
        ({1: "a"}, r"the key 1 \(int\)"),
        ({"a": {2}}, "a set"),
        (Level.LOW, "a Level"),
        (b"x", "a bytes"),
        (object(), "an object"),
    ],
)
@pytest.mark.parametrize("wrap", [False, True])
def test_what_json_would_change_needs_an_annotation(value: Any, holds: str, wrap: bool) -> None:
    annotation, value = (dict[str, Any], {"k": value}) if wrap else (Any, value)
    with pytest.raises(TypeError, match=f"parameter 'x'.* it holds {holds}, .*[Aa]nnotate.*serializer=\"pickle\""):
        sent(annotation, value)


def test_text_and_numbers_of_subclasses_are_json() -> None:
    class SafeString(str):
        __slots__ = ()

    assert sent(Any, [SafeString("a")]) == ["a"]
    assert type(sent(str, SafeString("a"))) is str


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="it holds itself"):
        sent(Any, loop)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("annotation", [float, list[float], dict[str, float | date], Any])
def test_infinity_travels(annotation: Any, value: float) -> None:
    wrapped: Any = {list[float]: [value], dict[str, float | date]: {"a": value}}.get(annotation, value)
    assert over_the_wire(annotation, wrapped) == wrapped


def test_not_a_number_travels() -> None:
    assert math.isnan(over_the_wire(float, math.nan))
    assert math.isnan(over_the_wire(float | date, math.nan))


# -- Types that JSON cannot tell apart -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (str | bytes, b"text"),
        (tuple, (date(2026, 1, 2),)),
        (Point, Point.ORIGIN),
        (Literal[Colour.RED], Colour.RED),
        (dict[tuple[int, int], int], {(1, 2): 3}),
        (list[Any] | set[int], {1}),
    ],
    ids=case_id,
)
def test_a_value_that_would_arrive_as_another_is_refused(annotation: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=r"parameter 'x'.*(would arrive as|cannot be read back).*serializer=\"pickle\""):
        sent(annotation, value)


def test_text_that_looks_like_a_date_arrives_as_one_where_both_are_possible() -> None:
    """JSON has no dates. A documented limit of unions with `str`."""
    assert over_the_wire(datetime | str, "2026-01-02T00:00:00") == datetime(2026, 1, 2)
    assert over_the_wire(datetime | str, "soon") == "soon"


def test_bytes_that_are_no_text_need_a_setting_in_a_pydantic_model() -> None:
    with pytest.raises(TypeError, match=r"not UTF-8 in a pydantic model.*ser_json_bytes"):
        sent(Blob, Blob(data=b"\xff"))


@pytest.mark.parametrize(
    ("annotation", "value"), [(range, range(3)), (bytearray, bytearray()), (Callable[[int], int], abs)], ids=case_id
)
def test_a_type_that_pydantic_does_not_know_is_named(annotation: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=r"Task 'env.f' .*(range|bytearray|Callable).*serializer=\"pickle\""):
        sent(annotation, value)


@dataclass
class Unfinished:
    other: Missing


def test_a_class_with_a_field_that_cannot_be_resolved_is_named() -> None:
    with pytest.raises(TypeError, match=r"cannot use the annotation .*Unfinished of its parameter 'x': .*'Missing'"):
        sent(Unfinished, 1)


def test_datetimes_that_kombu_has_restored_by_itself_are_taken() -> None:
    """A stock Celery client sends them in kombu's own JSON form."""
    args = kombu_json.loads(kombu_json.dumps([datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=1)))]))
    (loaded,), _ = signature(datetime).load_call(args, {})
    assert loaded == datetime(2026, 1, 1, 23, tzinfo=UTC)


def test_what_a_stranger_sends_is_checked_on_arrival() -> None:
    with pytest.raises(TypeError, match="takes int for its parameter 'x', not '1'"):
        signature(int).load_call(["1"], {})
    with pytest.raises(TypeError, match=r"takes .*Person for its parameter 'x'"):
        signature(Person).load_call([{}], {})
    with pytest.raises(TypeError, match=r"should have returned int, but '1' \(str\) arrived"):
        signature(int).load_result("1")


# -- Binding ---------------------------------------------------------------------------------------------------------


def bound(a: int, b: date, /, c: str = "c", *, d: int | None = None, e: float) -> None: ...


TYPES = Signature(bound, False, "env.bound")
DAY = date(2026, 1, 2)


def test_arguments_keep_their_positions_and_names_and_defaults_stay_away() -> None:
    assert TYPES.dump_call((1, DAY), {"e": 1}) == ((1, "2026-01-02"), {"e": 1.0})
    assert TYPES.dump_call((1, DAY, "x"), {"e": 1.5, "d": 2}) == ((1, "2026-01-02", "x"), {"e": 1.5, "d": 2})
    assert TYPES.load_call([1, "2026-01-02"], {"e": 1.5, "c": "x"}) == ((1, DAY), {"e": 1.5, "c": "x"})


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing a value for its parameter 'a', 'b', 'e'"),
        ((1, DAY), None, "missing a value for its parameter 'e'"),
        ((1, DAY, "c", 4), {"e": 1.0}, r"takes 3 positional arguments \(a, b, c\), but got 4"),
        ((1, DAY), {"e": 1.0, "f": 1}, "has no parameter 'f': it takes a, b, c, d, e"),
        ((1, DAY, "c"), {"e": 1.0, "c": "c"}, "two values for its parameter 'c'"),
        ((1,), {"b": DAY, "e": 1.0}, "takes its parameter 'b' by position only"),
    ],
)
def test_arguments_are_bound_as_python_binds_them(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^Task 'env.bound' .*{message}"):
        TYPES.dump_call(args, kwargs)
    with pytest.raises(TypeError, match=f"^Task 'env.bound' .*{message}"):
        TYPES.load_call(args, kwargs)


def test_a_misspelt_name_gets_a_suggestion() -> None:
    def function(learning_rate: float) -> None: ...

    with pytest.raises(TypeError, match="no parameter 'learning_rat': did you mean 'learning_rate'"):
        Signature(function, False, "env.f").dump_call((), {"learning_rat": 0.1})


def test_a_task_without_parameters() -> None:
    def function() -> None: ...

    types = Signature(function, False, "env.f")
    assert types.dump_call((), None) == ((), {})
    with pytest.raises(TypeError, match="takes 0 positional arguments, but got 1"):
        types.dump_call((1,), None)
    with pytest.raises(TypeError, match="no parameter 'x': it takes none"):
        types.dump_call((), {"x": 1})


def test_the_first_parameter_of_a_bound_task_is_not_the_callers() -> None:
    def function(self, x: int) -> int:
        return x

    types = Signature(function, True, "env.f")
    assert types.parameters == ("x",)
    assert types.dump_call((1,), None) == ((1,), {})
    with pytest.raises(TypeError, match="takes 1 positional arguments"):
        types.dump_call((1, 2), None)


@pytest.mark.parametrize("function", [lambda: None, lambda *, x: None])
def test_a_bound_task_needs_a_first_parameter(function: Any) -> None:
    with pytest.raises(ValueError, match="bind=True, so its function needs a first parameter"):
        Signature(function, True, "env.f")


@pytest.mark.parametrize("function", [lambda *values: None, lambda **values: None])
def test_the_parameters_of_a_task_are_known(function: Any) -> None:
    with pytest.raises(ValueError, match=r"takes \*\*?values, but the parameters of a task must be known"):
        Signature(function, False, "env.f")


# -- Partial arguments -----------------------------------------------------------------------------------------------


def test_arguments_of_a_celery_signature_take_the_form_of_their_own_type() -> None:
    """`add.s(4)` applied to a result puts 4 second: its parameter is not known yet."""

    def function(total: int, person: Person, job: Job, *, day: date) -> None: ...

    types = Signature(function, False, "env.f")
    args, kwargs = types.dump_partial((ADA, Job(b"\xff")), {"day": DAY})
    assert args == (sent(Person, ADA), sent(Job, Job(b"\xff")))
    assert kwargs == {"day": "2026-01-02"}
    assert types.dump_call((1, *args), kwargs) == ((1, *args), kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1, 2), {}, "takes 1 positional arguments"),
        ((), {"z": 1}, "no parameter 'z'"),
        ((), {"x": "1"}, "takes int for its parameter 'x'"),
        ((object(),), {}, "as positional argument 1 of a signature: it cannot be written as JSON"),
    ],
)
def test_what_can_be_known_of_partial_arguments_is_checked(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        signature(int).dump_partial(args, kwargs)


def test_partial_arguments_may_be_incomplete() -> None:
    assert TYPES.dump_partial((), {}) == ((), {})
    assert signature(object, pickled=True).dump_partial((DAY,), {}) == ((DAY,), {})


# -- Pickle ----------------------------------------------------------------------------------------------------------


class Arbitrary:
    """A class that pydantic does not know."""


def test_with_pickle_values_go_unchanged() -> None:
    value, types = Arbitrary(), signature(Arbitrary, pickled=True)
    assert types.dump_call((value,), {}) == ((value,), {})
    assert types.load_call((value,), {}) == ((value,), {})
    assert types.dump_result(value) is value is types.load_result(value)
    assert signature(Any, pickled=True).dump_call((value,), {}) == ((value,), {})


@pytest.mark.parametrize(("annotation", "value"), [(int, "1"), (Arbitrary, 1), (Person, {"name": "Ada"})])
def test_with_pickle_types_are_checked_all_the_same(annotation: Any, value: Any) -> None:
    with pytest.raises(TypeError, match="for its parameter 'x'"):
        signature(annotation, pickled=True).dump_call((value,), {})


# -- Annotations -----------------------------------------------------------------------------------------------------


def later(x: Later, y: Missing | None = None) -> None:
    """Its annotations name a class that comes later, and one that is imported for type checkers alone."""


def much_later(x: Later) -> list[Later]:
    return [x]


def test_annotations_may_name_what_is_defined_further_down() -> None:
    types = Signature(much_later, False, "env.f")
    assert types.dump_call((Later(1),), None) == (({"x": 1},), {})
    assert types.dump_result([Later(1)]) == [{"x": 1}]


@dataclass
class Later:
    x: int


def test_an_annotation_that_cannot_be_resolved_is_named() -> None:
    types = Signature(later, False, "env.f")
    with pytest.raises(TypeError, match=r"Task 'env.f' .*cannot be resolved in module .*'Missing'.*TYPE_CHECKING"):
        types.dump_call((1,), None)


def test_nothing_of_pydantic_is_imported_until_the_first_call() -> None:
    code = """
import sys
from flyte_celery.serialization import Signature
def f(x: int) -> int: ...
types = Signature(f, False, "env.f")
before = "pydantic" in sys.modules
types.dump_call((1,), None)
print(before, "pydantic" in sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "True"]


def test_the_native_interface_has_flytes_names() -> None:
    def function(a: int, b, c: str = "x") -> tuple[int, str]: ...

    interface = Signature(function, False, "env.f").native_interface
    assert interface.inputs["b"][0] is inspect.Parameter.empty
    assert interface.inputs["a"][0] is int
    assert interface.inputs["c"] == (str, "x")
    assert interface.inputs["a"][1] is interface.inputs["b"][1] is inspect.Parameter.empty
    assert interface.outputs == {"o0": int, "o1": str}


@pytest.mark.parametrize(
    ("annotation", "outputs"),
    [
        (None, {}),
        (int, {"o0": int}),
        (list[tuple[int, str]], {"o0": list[tuple[int, str]]}),
        (tuple[int, ...], {"o0": tuple[int, ...]}),
        (Pair, {"left": int, "right": bytes}),
        (namedtuple("Untyped", "a"), {}),
    ],
    ids=case_id,
)
def test_outputs_by_annotation(annotation: Any, outputs: Any) -> None:
    assert signature(annotation).native_interface.outputs == outputs


def test_the_json_schema_describes_the_arguments() -> None:
    def function(a: int, p: Person, d: Job, b: bytes = b"", u=None) -> None: ...

    schema = Signature(function, False, "env.f").json_schema
    assert schema["type"] == "object"
    assert schema["required"] == ["a", "p", "d"]
    assert schema["properties"]["a"] == {"type": "integer"}
    assert schema["properties"]["b"]["type"] == "string"
    assert schema["properties"]["u"] == {}
    assert schema["properties"]["p"]["properties"]["home"] == {"$ref": "#/$defs/Address"}
    assert {"Address", "Colour"} <= schema["$defs"].keys()


def test_two_classes_of_one_name_stay_apart_in_the_json_schema() -> None:
    def function(a, b) -> None: ...

    function.__annotations__ = {
        "a": list[make_dataclass("Inner", [("value", int)])],
        "b": list[make_dataclass("Inner", [("value", str)])],
    }
    schema = Signature(function, False, "env.f").json_schema
    for name, kind in (("a", "integer"), ("b", "string")):
        reference = schema["properties"][name]["items"]["$ref"].removeprefix("#/$defs/")
        assert schema["$defs"][reference]["properties"]["value"]["type"] == kind


# -- Properties ------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_json_passes_an_untyped_parameter_unchanged(value: Any) -> None:
    assert sent(Any, value) is value
    assert over_the_wire(Any, value) == value


@given(
    st.builds(
        Job,
        payload=st.binary(max_size=20),
        owner=st.none()
        | st.builds(Person, name=st.text(), home=st.builds(Address, street=st.text(), since=st.none() | st.dates())),
        options=st.dictionaries(st.text(max_size=5), st.just(Colour.RED), max_size=2),
    )
)
def test_a_nested_dataclass_survives(job: Job) -> None:
    assert over_the_wire(Job, job) == job
    assert sent(Job, sent(Job, job)) == sent(Job, job)


@given(
    st.dictionaries(st.uuids(), st.tuples(st.datetimes(timezones=st.just(UTC) | st.none()), st.binary()), max_size=3)
)
def test_a_nested_container_survives(value: dict[UUID, tuple[datetime, bytes]]) -> None:
    assert over_the_wire(dict[UUID, tuple[datetime, bytes]], value) == value


@given(st.decimals(allow_nan=False, allow_infinity=False), st.timedeltas())
def test_decimals_and_durations_survive(number: Decimal, duration: timedelta) -> None:
    assert over_the_wire(Decimal, number) == number
    assert over_the_wire(timedelta, duration) == duration


def test_what_travels_needs_no_class_of_ours_to_be_read() -> None:
    dumped = sent(Job, Job(b"\xff", ADA))
    assert json.loads(json.dumps(dumped)) == dumped
    assert b"flyte_celery" not in pickle.dumps(dumped)
