"""An exception on its way through JSON: it arrives as what it was, or as the nearest thing that the reader knows."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import json
import pickle
import sys
import threading
import traceback
import urllib.error
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st

from flyte_celery import crossing
from flyte_celery.crossing import described, recreated
from flyte_celery.errors import CustomError, OOMError, RuntimeUserError, message_of, raised
from flyte_celery.recreation import users_class
from flyte_celery.shortening import cut


def crossed(exc: BaseException) -> Any:
    """What arrives."""
    return recreated(json.loads(json.dumps(described(exc))))


def raised_by(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except BaseException as exc:
        return exc
    raise AssertionError("It was meant to fail.")


class KeywordOnly(Exception):
    def __init__(self, first: int, *, second: int) -> None:
        super().__init__(f"{first}-{second}")
        self.first, self.second = first, second


class ByFields(Exception):
    """Says what its fields say."""

    def __init__(self, *, x: int) -> None:
        self.x = x

    def __str__(self) -> str:
        return f"x is {self.x}"


class WithNew(OSError):
    def __new__(cls, message: str, *, detail: int) -> WithNew:
        return super().__new__(cls, message)

    def __init__(self, message: str, *, detail: int) -> None:
        super().__init__(message)
        self.detail = detail


class WithSlots(ValueError):
    __slots__ = ("detail",)

    def __init__(self, detail: Any) -> None:
        self.detail = detail


class Mine(RuntimeUserError):
    """One of ours with another signature."""

    def __init__(self, number: int) -> None:
        super().__init__("MINE", f"number {number}")
        self.number = number


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Final(ValueError):
    def __init_subclass__(cls) -> None:
        raise RuntimeError("This class is final.")


class Model(pydantic.BaseModel):
    x: int
    y: str = ""

    @pydantic.field_validator("y")
    @classmethod
    def check(cls, value: str) -> str:
        if value == "bad":
            raise ValueError("y is bad")
        return value


async def in_a_task_group() -> None:
    async def fail() -> None:
        raise KeywordOnly(1, second=2)

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())


CROSSING: list[BaseException] = [
    ValueError("v"),
    ValueError(),
    KeyError("k"),
    KeyError((1, "two")),
    KeywordOnly(1, second=2),
    ByFields(x=3),
    WithNew("n", detail=4),
    WithSlots(5),
    WithSlots(None),
    Mine(6),
    Mute(),
    Final("f"),
    SystemExit(3),
    CustomError("C", "m"),
    OOMError("OOMKilled", "m", "env@host"),
    HTTPException(404, "gone"),
    ExceptionGroup("many", [ValueError("a"), KeywordOnly(1, second=2)]),
    BaseExceptionGroup("many", [KeyboardInterrupt(), ExceptionGroup("inner", [KeyError("k")])]),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    raised_by(Path("/no/such/file").read_bytes),
    raised_by(lambda: json.loads("{")),
    raised_by(lambda: compile("x = (", "file", "exec")),
    raised_by(lambda: __import__("no_such_module")),
    raised_by(lambda: asyncio.run(in_a_task_group())),
    raised_by(lambda: Model(x="no", y="bad")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("exc", CROSSING, ids=lambda exc: type(exc).__name__)
def test_it_arrives_as_what_it_was(exc: BaseException) -> None:
    for again in (crossed(exc), crossed(crossed(exc))):
        assert type(again) is type(exc)
        assert message_of(again) == message_of(exc)
        if not isinstance(exc, pydantic.ValidationError):  # whose own has what the second one's maker was given
            assert repr(again.args) == repr(exc.args)


@pytest.mark.parametrize("exc", CROSSING, ids=lambda exc: type(exc).__name__)
def test_flytes_error_of_it_has_its_name_and_text(exc: BaseException) -> None:
    error = raised("user", type(exc).__name__, message_of(crossed(exc)), original=crossed(exc))
    assert str(error) == message_of(exc)
    assert type(error.__cause__) is type(exc)
    "".join(traceback.format_exception(error))


def test_fields_arrive() -> None:
    assert (crossed(KeywordOnly(1, second=2)).first, crossed(KeywordOnly(1, second=2)).second) == (1, 2)
    assert crossed(WithSlots([1])).detail == [1]
    assert crossed(WithNew("n", detail=4)).detail == 4
    assert crossed(raised_by(Path("/no/such/file").read_bytes)).filename == "/no/such/file"
    assert (crossed(Mine(6)).number, crossed(Mine(6)).code) == (6, "MINE")
    assert crossed(HTTPException(404, "gone", {"a": "b"})).headers == {"a": "b"}
    broken = crossed(raised_by(lambda: json.loads('{"a": }')))
    assert (broken.doc, broken.pos, broken.lineno) == ('{"a": }', 6, 1)


def test_pydantics_problems_arrive() -> None:
    error = crossed(raised_by(lambda: Model(x="no", y="bad")))  # type: ignore[arg-type]
    assert isinstance(error, pydantic.ValidationError)
    assert [(each["loc"], each["type"]) for each in error.errors()] == [
        (("x",), "int_parsing"),
        (("y",), "value_error"),
    ]
    assert error.title == "Model"


def test_a_problem_that_a_library_has_made_up() -> None:
    problem = pydantic_problem("odd_number", "{n} is odd")
    error = crossed(problem)
    assert isinstance(error, pydantic.ValidationError)
    assert [(each["type"], each["msg"]) for each in error.errors()] == [("odd_number", "{n} is odd")]


def pydantic_problem(kind: Any, message: Any) -> pydantic.ValidationError:
    from pydantic_core import InitErrorDetails, PydanticCustomError

    detail = InitErrorDetails(type=PydanticCustomError(kind, message), loc=("x",), input=object())
    return pydantic.ValidationError.from_exception_data("Title", [detail])


def test_members_of_groups_arrive() -> None:
    group = crossed(ExceptionGroup("many", [ValueError("a"), ExceptionGroup("inner", [KeywordOnly(1, second=2)])]))
    odd = group.exceptions[1].exceptions[0]
    assert (str(group.exceptions[0]), type(odd), odd.second) == ("a", KeywordOnly, 2)
    error = raised("user", "ExceptionGroup", str(group), original=group)
    caught = []
    try:
        raise error
    except* ValueError as some:
        caught += some.exceptions
    except* KeywordOnly as some:
        caught += some.exceptions
    assert len(caught) == 2


def test_causes_arrive() -> None:
    third = ValueError("third")
    third.__cause__ = KeywordOnly(1, second=2)
    third.__cause__.__cause__ = KeyError("first")
    again = crossed(third)
    assert (type(again.__cause__), again.__cause__.second) == (KeywordOnly, 2)
    assert repr(again.__cause__.__cause__) == "KeyError('first')"
    assert again.__cause__.__cause__.__cause__ is None


def test_notes_arrive_without_the_tracebacks_that_are_told_with_them() -> None:
    error = raised("user", "C", "m", traceback="T")
    error.add_note("mine")
    assert crossed(error).__notes__ == ["mine"]


VALUES: list[Any] = [
    b"\x00\xff",
    datetime.datetime(2026, 11, 1, 12, 30, tzinfo=datetime.UTC),
    datetime.date(2026, 11, 1),
    datetime.time(12, 30),
    decimal.Decimal("1.50"),
    uuid.UUID(int=7),
    (1, (2, "3")),
    {"a": {"b": (1,)}, "tuple": [None, True, 1.5]},
    {1, 2},
    frozenset({"a"}),
    [ValueError("in a list")],
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_arrive(value: Any) -> None:
    exc = ValueError("v", value)
    exc.more = value  # type: ignore[attr-defined]
    again = crossed(exc)
    assert (repr(again.args[1]), repr(again.more)) == (repr(value), repr(value))


def test_what_json_cannot_carry_stays_where_it_was() -> None:
    exc = ValueError(threading.Lock())
    exc.lock, exc.odd, exc.long = threading.Lock(), {1: 2}, 1 << 100_000  # type: ignore[attr-defined]
    again = crossed(exc)
    assert again.args == (repr(exc.args[0]),)
    assert vars(again) == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False) | st.binary(),
    lambda each: st.lists(each) | st.tuples(each, each) | st.dictionaries(st.text(), each),
    max_leaves=5,
)


@given(st.lists(json_values), st.dictionaries(st.sampled_from(["a", "code", "__x", "name"]), json_values))
def test_any_arguments_and_fields_arrive(args: list[Any], fields: dict[str, Any]) -> None:
    exc = Exception(*args)
    fields = {name: value for name, value in fields.items() if not name.startswith("__")}
    vars(exc).update(fields)
    again = crossed(exc)
    assert (again.args, vars(again), str(again)) == (exc.args, fields, str(exc))


# -- Classes that the reader has not ---------------------------------------------------------------------------------


def test_a_local_class_is_caught_as_what_it_derives_from() -> None:
    class Local(KeyError):
        pass

    again = crossed(Local("l"))
    assert isinstance(again, KeyError)
    assert (type(again).__name__, str(again), again.args) == ("Local", "'l'", ("l",))
    assert type(crossed(crossed(Local("l")))) is type(again), "equal classes are made once"
    assert raised("user", "Local", str(again), original=again).__class__.__name__ == "Local"


def test_a_class_of_a_module_that_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    description = described(HTTPException(404, "gone"))
    monkeypatch.delitem(sys.modules, "fastapi.exceptions")
    again: Any = recreated(description)
    from starlette.exceptions import HTTPException as Starlettes

    assert isinstance(again, Starlettes)
    assert (type(again).__name__, type(again).__module__) == ("HTTPException", "fastapi.exceptions")
    assert (again.status_code, str(again)) == (404, "404: gone")
    assert "fastapi.exceptions" not in sys.modules


def test_an_exception_whose_methods_miss_a_field_still_works() -> None:
    """`HTTPError` holds a file and asks it for every attribute that it has not itself."""
    error = crossed(urllib.error.HTTPError("http://host", 503, "Unavailable", {}, None))  # type: ignore[arg-type]
    assert isinstance(error, urllib.error.HTTPError)
    assert (error.code, str(error)) == (503, "HTTP Error 503: Unavailable")
    assert not hasattr(error, "read_more")
    "".join(traceback.format_exception(error))


def test_a_stand_in_survives_a_pickle() -> None:
    class Local(KeyError):
        pass

    again = crossed(Local("l"))
    for each in (again, raised("user", "Local", str(again), original=again)):
        loaded = pickle.loads(pickle.dumps(each))
        assert (type(loaded), str(loaded)) == (type(each), str(each))


# -- What a parent passes on -----------------------------------------------------------------------------------------


def test_a_childs_failure_is_described_as_what_the_child_raised() -> None:
    original = KeywordOnly(1, second=2)
    original.__cause__ = KeyError("k")
    error: BaseException = original
    for _ in range(30):
        again = crossed(error)
        assert type(again) is KeywordOnly
        error = raised("user", "KeywordOnly", str(again), original=again, traceback="T")
        assert isinstance(error, RuntimeUserError)
    assert isinstance(error, KeywordOnly) and users_class(type(error)) is KeywordOnly
    assert isinstance(error.__cause__, KeywordOnly) and isinstance(error.__cause__.__cause__, KeyError)
    assert len(json.dumps(described(error))) < 1000


def test_an_error_of_ours_does_not_become_its_own_cause() -> None:
    error: Any = OOMError("OOMKilled", "m")
    for _ in range(5):
        again = crossed(error)
        error = raised("user", "OOMKilled", "m", original=again)
    assert isinstance(error.__cause__, OOMError) and error.__cause__.__cause__ is None


# -- Bounds ----------------------------------------------------------------------------------------------------------


def test_a_description_is_bounded() -> None:
    exc: BaseException = ValueError("x" * 10_000_000)
    for number in range(200):
        exc, cause = ValueError("y" * 100_000, number), exc
        exc.__cause__ = cause
        vars(exc)["field"] = ["z" * 1000] * 1000
    assert len(json.dumps(described(exc))) < 2 * crossing.MOST
    assert isinstance(crossed(exc).__cause__, ValueError)


def test_a_local_class_with_a_long_message_is_caught_as_what_it_derives_from() -> None:
    class LocalError(ValueError):
        pass

    error = LocalError("x" * 100_000)
    arrived = crossed(error)
    assert isinstance(arrived, ValueError)
    assert str(arrived) == cut(str(error))


def test_what_comes_after_a_part_that_is_left_out_arrives() -> None:
    exc = ValueError("too much")
    vars(exc).update(much=["z" * 1000] * 1000, little=1)
    assert vars(crossed(exc)) == {"little": 1}


def test_pydantics_error_with_too_many_problems_says_what_it_said() -> None:
    class Numbers(pydantic.BaseModel):
        numbers: list[int]

    error = raised_by(lambda: Numbers.model_validate({"numbers": ["none"] * 5000}))
    arrived = crossed(error)
    assert type(arrived).__name__ == "ValidationError" and isinstance(arrived, ValueError)
    assert str(arrived) == cut(str(error))


def test_a_wide_group_keeps_its_first_members() -> None:
    group = ExceptionGroup("wide", [ValueError(number, "x" * 1000) for number in range(10_000)])
    assert len(json.dumps(described(group))) < 2 * crossing.MOST
    again = crossed(group)
    assert isinstance(again, ExceptionGroup)
    assert (str(again), again.exceptions[1].args[0]) == ("wide (10000 sub-exceptions)", 1)
    assert str(again.exceptions[-1]) == "9951 more exceptions are left out."


def test_an_exception_that_holds_itself() -> None:
    exc = ValueError("v")
    vars(exc)["me"] = exc
    vars(exc)["more"] = more = []  # type: ignore[var-annotated]
    more.append(more)
    exc.__cause__ = KeyError("k")
    exc.__cause__.__cause__ = exc
    again = crossed(exc)
    assert (str(again), type(again.__cause__), again.__cause__.__cause__) == ("v", KeyError, None)


# -- What is no description ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [["os", "system"], ["builtins", "eval"], ["builtins", "dict"], ["no.such", "Thing"]])
def test_nothing_but_exceptions_is_made(name: list[str]) -> None:
    again = recreated({"classes": [name], "text": "t", "args": ["true"], "fields": {}})
    assert isinstance(again, Exception)
    assert (str(again), type(again).__name__) == ("t", name[1])


def test_no_init_is_called() -> None:
    calls = []

    class Eager(Exception):
        def __init__(self, *args: Any) -> None:
            calls.append(args)

    globals()["Eager"] = Eager
    Eager.__qualname__ = "Eager"
    assert type(recreated({"classes": [[__name__, "Eager"]], "text": "", "args": [], "fields": {}})) is Eager
    assert calls == []


def test_fields_cannot_replace_what_python_needs() -> None:
    fields = {"__class__": 1, "__dict__": {"dict": {}}, "__cause__": 2, "x": 3}
    again = recreated({"classes": [["builtins", "ValueError"]], "text": "t", "args": ["t"], "fields": fields})
    assert (type(again), vars(again), again.__cause__) == (ValueError, {"x": 3}, None)
