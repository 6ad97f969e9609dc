"""When a call was made, and whether another attempt follows a failed one."""

from __future__ import annotations

import json
import math
import time
from datetime import timedelta
from typing import Any

import pytest

from flyte_celery.attempts import Times, end_of, next_attempt, stamped
from flyte_celery.environment import TaskEnvironment
from flyte_celery.errors import DeadlineExceededError, MaxRuntimeExceededError, NonRecoverableError
from flyte_celery.names import TIMES_HEADER
from flyte_celery.retry import Backoff, RetryStrategy
from flyte_celery.timeout import Timeout

env = TaskEnvironment("test-attempts")
slow = RetryStrategy(3, Backoff(timedelta(seconds=10), 2.0, timedelta(minutes=5)))


@env.task(retries=slow)
def work() -> None:
    pass


def submitted_ago(seconds: float) -> dict[str, Any]:
    """Headers of a call that was made so long ago."""
    then = time.time() - seconds
    return {TIMES_HEADER: {"submitted": then, "queued": then}}


@pytest.mark.parametrize("timeout", [0, 60, timedelta(hours=1), Timeout(), Timeout(max_runtime=5)], ids=str)
def test_a_call_that_may_wait_for_ever_carries_no_times(timeout: Any) -> None:
    assert stamped(work.override(timeout=timeout), None) == {}


@pytest.mark.parametrize(
    ("limits", "until"),
    [
        (Timeout(max_queued_time=5), 5),
        (Timeout(deadline=7), 7),
        (Timeout(max_queued_time=5, deadline=7), 5),
        (Timeout(max_queued_time=9, deadline=7), 7),
    ],
    ids=str,
)
def test_a_call_carries_when_it_was_made_and_until_when_it_must_begin(limits: Timeout, until: float) -> None:
    before = time.time()
    times = json.loads(json.dumps(stamped(work.override(timeout=limits), {"other": 1})))[TIMES_HEADER]
    assert before <= times["submitted"] == times["queued"] <= time.time()
    assert times["until"] == times["submitted"] + until
    assert Times.of({TIMES_HEADER: times}) == Times(times["submitted"], times["queued"])


def test_a_call_for_later_waits_from_then_on_but_its_deadline_does_not() -> None:
    due = time.time() + 100
    for limits, until in ((Timeout(max_queued_time=5), due + 5), (Timeout(deadline=50), due - 50)):
        times = stamped(work.override(timeout=limits), None, due)[TIMES_HEADER]
        assert times["queued"] == due
        assert times["until"] == pytest.approx(until, abs=5)


def test_a_retry_keeps_when_the_call_was_made() -> None:
    first = submitted_ago(100)
    times = stamped(work.override(timeout=Timeout(max_queued_time=5)), first)[TIMES_HEADER]
    assert times["submitted"] == first[TIMES_HEADER]["submitted"]
    assert times["queued"] > times["submitted"] + 99


@pytest.mark.parametrize("sent", [None, "text", {}, {"submitted": "x", "queued": 1}, {"submitted": 1}, []], ids=str)
def test_times_that_cannot_be_read_are_now(sent: Any) -> None:
    before = time.time()
    times = Times.of({TIMES_HEADER: sent})
    assert before <= times.submitted == times.queued <= time.time()


@pytest.mark.parametrize("timeout", ["x", -1, Timeout(max_queued_time=-1), Timeout(deadline="x")], ids=str)  # type: ignore[arg-type]
def test_what_is_no_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(ValueError, match=r"seconds as an int|negative"):
        stamped(work.override(timeout=timeout), None)


def test_failures_use_the_retries_up_with_growing_waits() -> None:
    waits = [next_attempt(work, ValueError("x"), done, None) for done in range(4)]
    assert waits == [timedelta(seconds=10), timedelta(seconds=20), timedelta(seconds=40), None]


def test_without_a_back_off_the_next_attempt_is_now() -> None:
    assert next_attempt(work.override(retries=1), ValueError("x"), 0, None) == timedelta(0)


def test_what_ran_too_long_is_tried_again() -> None:
    assert next_attempt(work, MaxRuntimeExceededError("x"), 0, None) == timedelta(seconds=10)


@pytest.mark.parametrize("error", [NonRecoverableError("x"), DeadlineExceededError("x")], ids=repr)
def test_some_errors_are_final(error: Exception) -> None:
    assert next_attempt(work, error, 0, None) is None


def test_no_attempt_begins_after_the_deadline() -> None:
    limited = work.override(timeout=Timeout(deadline=60))
    assert next_attempt(limited, ValueError("x"), 0, submitted_ago(45)) == timedelta(seconds=10)
    late = next_attempt(limited, ValueError("x"), 0, submitted_ago(55))
    assert isinstance(late, DeadlineExceededError)
    assert "ValueError: x" in str(late)
    assert "60 s" in str(late)


@pytest.mark.parametrize("limit", [1.0, 59.5, 3600.0, 30 * 86400.0])
def test_the_end_of_a_messages_time_is_known_to_a_ten_thousandth(limit: float) -> None:
    """So no more than ten thousand ends of one limit are to be remembered."""
    ends = set()
    for second in range(0, 20_000, 7):
        until = 1_000_000.25 + second + limit
        end = end_of({TIMES_HEADER: {"submitted": 0, "queued": until - limit, "until": until}})
        assert until < end <= until + max(1, limit / 9_999 + 1)
        ends.add(end)
    assert len(ends) <= 20_000 / max(7, limit / 10_000) + 2


@pytest.mark.parametrize("headers", [None, {}, {TIMES_HEADER: "x"}, {TIMES_HEADER: {"queued": 1.0, "until": math.inf}}])
def test_what_may_wait_for_ever_has_no_end(headers: dict[str, object] | None) -> None:
    assert end_of(headers) == 0
