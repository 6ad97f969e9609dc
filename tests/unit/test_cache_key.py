"""Which calls share a cached result: those that are equal in every way that counts, and no others."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from kombu.utils.json import dumps, loads
from pydantic import BaseModel

import flyte_celery as flyte
from flyte_celery.cache import VersionParameters
from flyte_celery.client.caching import TaskCache
from flyte_celery.names import OVERRIDES_HEADER
from flyte_celery.overrides import dumped
from flyte_celery.task import TaskTemplate

_numbers = itertools.count()


@dataclass
class Point:
    x: int
    y: int = 0


class Model(BaseModel):
    a: int
    at: datetime


def task(function: Callable[..., Any], cache: Any = "auto", **options: Any) -> TaskTemplate[Any, Any]:
    """A task of an environment of its own name, so that every definition is one."""
    return flyte.TaskEnvironment("cache-key").task(cache=cache, **options)(function)


def key(template: TaskTemplate[Any, Any], *args: Any, **kwargs: Any) -> str:
    """What a call is cached under, in the process that makes it."""
    plan = TaskCache(template).plan({}, None)
    assert plan is not None
    return plan.place(*template.dump_call(args, kwargs)).member


def add(x: int, y: int = 2, *, note: str = "") -> int:
    return x + y


def test_a_key_begins_with_the_name_of_the_task() -> None:
    """So that an operator can forget the results of one task."""
    assert key(task(add), 1).startswith("cache-key.add:")


def test_equal_calls_have_one_key_however_they_are_written() -> None:
    """By position, by name, with a default or without."""
    template = task(add)
    assert key(template, 1, 2) == key(template, x=1, y=2) == key(template, 1) == key(template, y=2, x=1, note="")
    assert len({key(template, 1), key(template, 2), key(template, 1, 3), key(template, 1, note="n")}) == 4


def test_ignored_inputs_do_not_count() -> None:
    """One name or several; names that the task does not have are no error, for an environment's tasks differ."""
    template = task(add, flyte.Cache("auto", ignored_inputs=("note", "nobody")))
    assert key(template, 1, note="a") == key(template, 1, note="b") != key(template, 2, note="a")


def test_the_code_the_salt_and_the_version_count() -> None:
    """A change of any of them leaves old results unused; comments and white space change nothing."""

    def one() -> Callable[..., Any]:
        def work(x: int) -> int:
            return x + 1  # a comment

        return work

    def two() -> Callable[..., Any]:
        def work(x: int) -> int:
            # another comment
            return x  +  1  # fmt: skip

        return work

    def three() -> Callable[..., Any]:
        def work(x: int) -> int:
            return x + 2

        return work

    assert key(task(one()), 1) == key(task(two()), 1) != key(task(three()), 1)
    assert key(task(one(), flyte.Cache("auto", salt="s")), 1) != key(task(one()), 1)
    fixed = flyte.Cache("auto", version_override="1")
    assert key(task(one(), fixed), 1) == key(task(three(), fixed), 1)
    assert key(task(one(), fixed), 1) != key(task(one(), flyte.Cache("auto", version_override="2")), 1)


def test_policies_make_the_version() -> None:
    """The user's own, in place of the function's code."""

    class Number:
        def get_version(self, salt: str, params: VersionParameters) -> str:
            return str(number)

    template = task(add, flyte.Cache("auto", policies=Number()))
    number = 1
    first = key(template, 1)
    assert key(template, 1) == first
    number = 2
    assert key(template, 1) != first


def test_types_count_where_the_version_is_fixed() -> None:
    """A result of another type, or of a class with another field, is no result of this task."""
    fixed = flyte.Cache("auto", version_override="1")

    def version(kind: Any) -> str:
        def work(x: int) -> Any:
            return x

        work.__annotations__["return"] = kind
        return key(task(work, fixed), 1)

    def point(field: str, kind: type) -> type:
        return dataclass(type("Point", (), {"__annotations__": {field: kind}}))

    kinds = [int, str, point("x", int), point("y", int), point("x", str)]
    assert len({version(kind) for kind in kinds}) == len(kinds)
    assert version(point("x", int)) == version(point("x", int))


def test_the_order_of_dicts_and_sets_does_not_count() -> None:
    """Sets have another order in each process."""

    def work(d: dict[str, int], s: set[str], f: frozenset[int]) -> int:
        return 0

    template = task(work)
    a = key(template, {"a": 1, "b": 2}, {"x", "y"}, frozenset({1, 2}))
    plan = TaskCache(template).plan({}, None)
    assert plan is not None
    assert plan.place([{"b": 2, "a": 1}, ["y", "x"], [2, 1]], {}).member == a
    assert plan.place([{"b": 2, "a": 1}, ["x", "y"], [1, 2]], {}).member == a


@pytest.mark.parametrize(
    ("kind", "value", "other"),
    [
        (Point, Point(1), Point(2)),
        (Model, Model(a=1, at=datetime(2026, 1, 1, tzinfo=UTC)), Model(a=1, at=datetime(2026, 1, 2, tzinfo=UTC))),
        (datetime, datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
        (timedelta, timedelta(seconds=1), timedelta(seconds=2)),
        (bytes, b"\xff", b"\xfe"),
        (list[Point], [Point(1)], [Point(1), Point(1)]),
        (float, 0.1, 0.2),
        (int | None, None, 0),
        (str, "\u00e4\u2028", "a"),
    ],
)
def test_a_message_has_the_key_of_its_call(kind: Any, value: Any, other: Any) -> None:
    """A replica makes it from the arguments that have arrived."""

    def work(value: Any) -> int:
        return 0

    work.__annotations__["value"] = kind
    template = task(work)
    arrived = loads(dumps(template.dump_call((value,), {})))
    assert key(template, value) == key(template, *arrived[0], **arrived[1]) != key(template, other)


def test_a_default_that_does_not_fit_its_annotation_is_left_out() -> None:
    """Python allows it, and the function's code has it already."""

    def work(x: int = None) -> int:  # type: ignore[assignment]  # noqa: RUF013
        return 0

    template = task(work)
    assert key(template) != key(template, 1)


def test_code_that_nobody_can_read_needs_a_version() -> None:
    """Said at the call, with what to do."""
    names: dict[str, Any] = {}
    exec("def work(x: int) -> int:\n    return x", names)
    with pytest.raises(ValueError, match="version_override"):
        key(task(names["work"]), 1)
    assert key(task(names["work"], flyte.Cache("auto", version_override="1")), 1)


def test_no_cache_no_plan() -> None:
    """Neither for a task without one, nor for a call that switches it off."""
    assert TaskCache(task(add, "disable")).plan({}, None) is None
    assert not TaskCache(task(add, "disable")).concerns({"other": 1})
    off = dumped(task(add).override(cache="disable"))
    assert TaskCache(task(add)).plan(off, None) is None


def test_pickled_arguments_have_no_key(caplog: pytest.LogCaptureFixture) -> None:
    """Which is said once."""
    caching = TaskCache(task(add, serializer="pickle"))
    with caplog.at_level(logging.WARNING, "flyte_celery.cache"):
        assert caching.plan({}, None) is None
        assert caching.plan({}, None) is None
    assert [record.getMessage() for record in caplog.records] == [
        "Results of cache-key.add are not cached: with serializer='pickle' its inputs have no text to be known by."
    ]


@pytest.mark.parametrize(
    "cache",
    [
        flyte.Cache("auto", salt="s", ignored_inputs="note", serialize=True, max_age=60),
        flyte.Cache("override", version_override="7"),
        flyte.Cache("auto", policies=[flyte.cache.FunctionBodyPolicy()]),
    ],
)
def test_an_overridden_cache_travels_in_a_header(cache: flyte.Cache) -> None:
    """Through JSON; the replica then has the same key."""
    template = task(add, "disable")
    overridden = template.override(cache=cache)
    headers = json.loads(json.dumps(dumped(overridden)))
    plan = TaskCache(template).plan(headers, None)
    assert plan is not None
    assert plan.place((1,), {}).member == key(overridden, 1)
    assert (plan.cache.behavior, plan.cache.serialize, plan.cache.max_age) == (
        cache.behavior,
        cache.serialize,
        cache.max_age,
    )


def test_the_version_of_a_users_policy_travels() -> None:
    """The policy itself is code of the caller's."""

    class Fixed:
        def get_version(self, salt: str, params: VersionParameters) -> str:
            return "fixed"

    overridden = task(add, "disable").override(cache=flyte.Cache("auto", policies=Fixed()))
    plan = TaskCache(task(add, "disable")).plan(dumped(overridden), None)
    assert plan is not None
    assert plan.place((1,), {}).member == key(overridden, 1)


@pytest.mark.parametrize(
    "sent", [7, {}, {"behavior": "sometimes", "max_age": None}, {"behavior": "auto", "max_age": ""}]
)
def test_an_override_that_cannot_be_read_counts_as_none(sent: Any) -> None:
    """It comes from somebody else's client."""
    headers = {OVERRIDES_HEADER: {"cache": sent}}
    assert TaskCache(task(add, "disable")).plan(headers, None) is None
    assert TaskCache(task(add, "disable")).plan({OVERRIDES_HEADER: 7}, None) is None


def test_a_run_may_renew_or_leave_out_the_cache() -> None:
    """Whatever its tasks say, but it gives no cache to a task without one."""
    caching = TaskCache(task(add, flyte.Cache("auto", max_age=60, ignored_inputs="note", serialize=True)))
    assert caching.plan({}, "disable") is None
    renewing, plain = caching.plan({}, "override"), caching.plan({}, None)
    assert renewing is not None and plain is not None
    assert renewing.cache.behavior == "override"
    assert renewing.max_age == plain.max_age == 60
    assert renewing.place((1,), {}) == plain.place((1,), {"note": "a"})
    assert TaskCache(task(add, "disable")).plan({}, "override") is None
