"""What a task's time limits may be written as, and what they come to."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flyte_celery.timeout import Timeout

MINUTE = timedelta(minutes=1)


def test_nothing_is_limited_by_default() -> None:
    timeout = Timeout()
    assert (timeout.max_runtime, timeout.max_queued_time, timeout.deadline) == (None, None, None)


def test_construction_checks_and_converts_nothing() -> None:
    values: tuple[Any, Any, Any] = ("x", -5, 3.2)
    timeout = Timeout(*values)
    assert (timeout.max_runtime, timeout.max_queued_time, timeout.deadline) == values
    assert Timeout(5) != Timeout(timedelta(seconds=5))


def test_a_timeout_is_not_hashable() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Timeout(5))


@pytest.mark.parametrize(
    ("raw", "limits"),
    [
        (60, (MINUTE, None, None)),
        (MINUTE, (MINUTE, None, None)),
        (True, (timedelta(seconds=1), None, None)),
        (0, (None, None, None)),
        (False, (None, None, None)),
        (None, (None, None, None)),
        (timedelta(0), (None, None, None)),
        (Timeout(), (None, None, None)),
        (Timeout(60), (MINUTE, None, None)),
        (Timeout(0, 60, MINUTE), (None, MINUTE, MINUTE)),
        (Timeout(max_queued_time=MINUTE, deadline=0), (None, MINUTE, None)),
    ],
)
def test_every_way_to_limit_a_task_comes_to_timedeltas(raw: Any, limits: tuple[timedelta | None, ...]) -> None:
    timeout = Timeout.of(raw)
    assert (timeout.max_runtime, timeout.max_queued_time, timeout.deadline) == limits
    assert Timeout.of(timeout) == timeout


def test_the_given_timeout_is_left_alone() -> None:
    given = Timeout(60)
    assert Timeout.of(given) is not given
    assert given == Timeout(60)


@pytest.mark.parametrize("raw", [5.0, "5", {}, -1, timedelta(seconds=-1)])
def test_anything_else_is_a_value_error(raw: Any) -> None:
    with pytest.raises(ValueError, match=r"^timeout="):
        Timeout.of(raw)


@pytest.mark.parametrize("field", ["max_runtime", "max_queued_time", "deadline"])
@pytest.mark.parametrize("value", [5.0, "5", -1])
def test_a_field_that_is_no_time_is_a_value_error_that_names_it(field: str, value: Any) -> None:
    options: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=f"^{field}={value!r}"):
        Timeout.of(Timeout(**options))


def test_limits_are_read_in_seconds() -> None:
    timeout = Timeout(60, MINUTE, 0)
    assert timeout.max_runtime_seconds == 60.0
    assert timeout.max_queued_seconds == 60.0
    assert timeout.deadline_seconds is None
    assert Timeout().max_runtime_seconds is None
