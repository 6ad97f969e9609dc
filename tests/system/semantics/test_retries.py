"""Failures, retries and errbacks in replicas are Celery's own, for async bodies as for sync ones."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.helpers.projects import PATIENCE
from tests.helpers.waiting import wait_until
from tests.system.semantics.notes import notes

async_and_sync = pytest.mark.parametrize("suffix", ["", "_sync"], ids=["async", "sync"])


@async_and_sync
def test_a_task_retries_itself_under_its_own_id(tasks: ModuleType, suffix: str) -> None:
    result = getattr(tasks, "retry_itself" + suffix).delay(f"itself{suffix}", 2)
    assert result.get(timeout=PATIENCE) == [2, 2]
    assert notes(f"itself{suffix}") == [result.id] * 3


@async_and_sync
def test_many_tasks_retry_at_once_without_mixing_up(tasks: ModuleType, suffix: str) -> None:
    task = getattr(tasks, "retry_itself" + suffix)
    results = [task.delay(f"many{suffix}-{n}", n % 3) for n in range(30)]
    assert [result.get(timeout=PATIENCE) for result in results] == [[n % 3, n % 3] for n in range(30)]
    for n, result in enumerate(results):
        assert notes(f"many{suffix}-{n}") == [result.id] * (n % 3 + 1)


@async_and_sync
def test_a_retry_past_max_retries_raises_what_it_was_given(tasks: ModuleType, suffix: str) -> None:
    with pytest.raises(KeyError):
        getattr(tasks, "retry_itself" + suffix).delay(f"past{suffix}", 99).get(timeout=PATIENCE)
    assert len(notes(f"past{suffix}")) == 6


@async_and_sync
def test_autoretry_for_retries_the_named_errors(tasks: ModuleType, suffix: str) -> None:
    assert getattr(tasks, "retry_connection" + suffix).delay(f"auto{suffix}", 2).get(timeout=PATIENCE) == 3
    with pytest.raises(ConnectionError):
        getattr(tasks, "retry_connection" + suffix).delay(f"auto-past{suffix}", 99).get(timeout=PATIENCE)
    assert len(notes(f"auto-past{suffix}")) == 4


@async_and_sync
def test_retries_2_means_three_attempts(tasks: ModuleType, suffix: str) -> None:
    assert getattr(tasks, "strategy" + suffix).delay(f"strategy{suffix}", 2).get(timeout=PATIENCE) == 3
    assert notes(f"strategy{suffix}") == [0, 1, 2]
    with pytest.raises(RuntimeError, match="attempt 3"):
        getattr(tasks, "strategy" + suffix).delay(f"strategy-past{suffix}", 99).get(timeout=PATIENCE)
    assert notes(f"strategy-past{suffix}") == [0, 1, 2]


@async_and_sync
def test_a_failure_has_its_type_its_message_and_its_traceback(tasks: ModuleType, suffix: str) -> None:
    result = getattr(tasks, "fail" + suffix).delay("no good")
    with pytest.raises(ValueError, match="no good"):
        result.get(timeout=PATIENCE)
    assert result.state == "FAILURE"
    assert "raise ValueError(text)" in result.traceback


@async_and_sync
@pytest.mark.parametrize("errback", ["errback_by_id", "errback_by_id_sync"])
def test_an_errback_with_one_argument_runs_in_its_own_environment(tasks: ModuleType, suffix: str, errback: str) -> None:
    key = f"errback{suffix}-{errback}"
    result = getattr(tasks, "fail" + suffix).apply_async(("x",), link_error=getattr(tasks, errback).s(key))
    assert wait_until(lambda: notes(key), PATIENCE) == [result.id]


@async_and_sync
def test_an_errback_that_cannot_be_called_is_left_out_and_the_task_runs_once(tasks: ModuleType, suffix: str) -> None:
    """With arguments of a wrong number, or of a wrong type; the others are called."""
    key = f"wrong-errbacks{suffix}"
    task = getattr(tasks, "note_and_fail" + suffix)
    wrong = [tasks.add.s(1, 2), tasks.add.s("x")]
    result = task.apply_async((key,), link_error=[*wrong, tasks.errback_by_id.s(f"{key}-called")])
    with pytest.raises(ValueError, match="noted"):
        result.get(timeout=PATIENCE)
    assert wait_until(lambda: notes(f"{key}-called"), PATIENCE) == [result.id]
    assert tasks.add.delay(1, 1).get(timeout=PATIENCE) == 2
    assert notes(key) == ["run"]


@async_and_sync
@pytest.mark.parametrize("errback", ["plain_errback", "errback_with_error", "errback_with_error_async"])
def test_an_errback_that_takes_the_error_is_called_where_the_task_failed(
    tasks: ModuleType, suffix: str, errback: str
) -> None:
    key = f"called{suffix}-{errback}"
    result = getattr(tasks, "fail" + suffix).apply_async(("x",), link_error=getattr(tasks, errback).s(key))
    assert wait_until(lambda: notes(key), PATIENCE) == [[result.id, "ValueError('x')"]]


def test_what_is_not_an_ordinary_exception_ends_the_task_alone(tasks: ModuleType) -> None:
    before = tasks.pid_async.delay().get(timeout=PATIENCE)
    for name, expected in [
        ("leave", "sys.exit"),
        ("reject", "not wanted"),
        ("cancel_itself", "cancelled by its own code"),
    ]:
        result = getattr(tasks, name).delay()
        with pytest.raises(Exception, match=expected):
            result.get(timeout=PATIENCE)
        assert result.state == "FAILURE"
    assert tasks.pid_async.delay().get(timeout=PATIENCE) == before


def test_running_out_of_memory_fails_the_task_and_not_the_worker(tasks: ModuleType) -> None:
    with pytest.raises(MemoryError):
        tasks.out_of_memory.delay().get(timeout=PATIENCE)
    assert tasks.add.delay(1, 1).get(timeout=PATIENCE) == 2
