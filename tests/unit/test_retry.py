"""How often a failed task is tried again, and how long to wait in between."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyte_celery.retry import Backoff, RetryStrategy


def seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


@pytest.mark.parametrize("count", [0, 1, 3, True])
def test_a_count_is_kept(count: int) -> None:
    strategy = RetryStrategy(count)
    assert strategy.count == count
    assert strategy.backoff is None


@pytest.mark.parametrize("count", [-1, 1.0, "1", None, seconds(1)])
def test_an_impossible_count_is_a_value_error(count: Any) -> None:
    with pytest.raises(ValueError, match="count="):
        RetryStrategy(count)


def test_the_backoff_of_a_strategy_is_not_checked() -> None:
    anything: Any = 5
    assert RetryStrategy(1, anything) == RetryStrategy(1, backoff=anything)


def test_a_strategy_equals_by_value_and_is_not_hashable() -> None:
    assert RetryStrategy(2) == RetryStrategy(count=2, backoff=None)
    with pytest.raises(TypeError, match="unhashable"):
        hash(RetryStrategy(1))


def test_a_task_may_give_a_count_alone() -> None:
    strategy = RetryStrategy(2, Backoff(seconds(1)))
    assert RetryStrategy.of(3) == RetryStrategy(3)
    assert RetryStrategy.of(strategy) is strategy


@pytest.mark.parametrize("raw", [-1, 1.5, "3"])
def test_a_task_may_not_give_anything_else(raw: Any) -> None:
    with pytest.raises(ValueError, match=f"count={raw!r}"):
        RetryStrategy.of(raw)


@pytest.mark.parametrize(
    "arguments",
    [
        (seconds(1),),
        (seconds(0),),
        (seconds(1), 1),
        (seconds(1), True),
        (seconds(1), 2, seconds(5)),
        (seconds(10), 1, seconds(5)),
        (seconds(1), 2.0, seconds(0)),
    ],
)
def test_a_backoff_is_kept(arguments: Any) -> None:
    backoff = Backoff(*arguments)
    assert (backoff.base, backoff.factor, backoff.cap)[: len(arguments)] == arguments


def test_a_backoff_without_more_waits_the_same_time_each_time() -> None:
    backoff = Backoff(seconds(3))
    assert (backoff.factor, backoff.cap) == (1.0, None)
    assert backoff.compute_delay(0) == backoff.compute_delay(10**9) == seconds(3)


@pytest.mark.parametrize(
    ("arguments", "error", "field"),
    [
        ((seconds(-1),), ValueError, "base"),
        ((1,), TypeError, "base"),
        ((None,), TypeError, "base"),
        ((seconds(1), 1, seconds(-1)), ValueError, "cap"),
        ((seconds(1), 1, 5), TypeError, "cap"),
        ((seconds(1), 2), ValueError, "factor"),
        ((seconds(1), 0.5), ValueError, "factor"),
        ((seconds(1), False), ValueError, "factor"),
        ((seconds(1), float("nan")), ValueError, "factor"),
        ((seconds(1), float("inf"), seconds(5)), ValueError, "factor"),
        ((seconds(1), "2", seconds(5)), ValueError, "factor"),
        ((seconds(1), None), ValueError, "factor"),
    ],
)
def test_an_impossible_backoff_names_the_field(arguments: Any, error: type[Exception], field: str) -> None:
    with pytest.raises(error, match=f"^{field}="):
        Backoff(*arguments)


def test_the_waiting_times_grow_up_to_the_cap() -> None:
    """Ten seconds doubled, at most five minutes."""
    backoff = Backoff(seconds(10), 2, timedelta(minutes=5))
    assert [backoff.compute_delay(n).total_seconds() for n in range(7)] == [10, 20, 40, 80, 160, 300, 300]


@pytest.mark.parametrize("n", [100, 10_000, 10**9])
def test_a_late_retry_waits_for_the_cap(n: int) -> None:
    assert Backoff(seconds(10), 2, seconds(300)).compute_delay(n) == seconds(300)
    assert Backoff(timedelta(microseconds=1), 1.001, timedelta.max).compute_delay(n) <= timedelta.max


def test_a_cap_below_the_base_wins() -> None:
    assert Backoff(seconds(10), 1, seconds(5)).compute_delay(0) == seconds(5)
    assert Backoff(seconds(10), 2, seconds(0)).compute_delay(3) == seconds(0)


def test_no_base_means_no_wait() -> None:
    assert Backoff(seconds(0), 2, seconds(5)).compute_delay(100_000) == seconds(0)


def test_a_negative_number_of_a_retry_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="n=-1"):
        Backoff(seconds(1)).compute_delay(-1)


def test_a_backoff_is_hashable_and_cannot_be_changed() -> None:
    backoff = Backoff(seconds(1), 2, seconds(5))
    assert hash(backoff) == hash(Backoff(seconds(1), 2, seconds(5)))
    with pytest.raises(AttributeError):
        backoff.factor = 3  # type: ignore[misc]


@given(base=st.floats(0.001, 1000), factor=st.floats(1, 100), cap=st.floats(0.001, 10**6), n=st.integers(0, 10**6))
def test_a_delay_never_exceeds_the_cap_and_never_falls(base: float, factor: float, cap: float, n: int) -> None:
    backoff = Backoff(seconds(base), factor, seconds(cap))
    assert backoff.compute_delay(n) <= backoff.compute_delay(n + 1) <= seconds(cap)
