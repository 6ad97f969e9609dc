"""Time limits, revoking, expiry, countdowns and priorities: a task that is ended leaves its neighbours alone."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded

from tests.helpers.projects import PATIENCE, Project
from tests.helpers.waiting import wait_until
from tests.system.semantics.notes import notes, open_gate

async_and_sync = pytest.mark.parametrize("suffix", ["", "_sync"], ids=["async", "sync"])


def begun(task: Any, key: str, **options: Any) -> Any:
    """Submit a task that waits at a gate, and return its result's handle when it has begun."""
    result = task.apply_async((key,), **options)
    wait_until(lambda: notes(key), PATIENCE, f"the begin of {key}")
    return result


# -- Limits ----------------------------------------------------------------------------------------------------------


@async_and_sync
def test_a_soft_limit_raises_in_the_body(tasks: ModuleType, suffix: str) -> None:
    key = f"soft{suffix}"
    result = begun(getattr(tasks, "hold" + suffix), key, soft_time_limit=0.2)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=PATIENCE)
    assert notes(key) == ["begun", "SoftTimeLimitExceeded", "finally"]
    assert result.state == "FAILURE"


@async_and_sync
def test_a_body_may_catch_the_soft_limit_and_clean_up(tasks: ModuleType, suffix: str) -> None:
    assert getattr(tasks, "clean_up_in_time" + suffix).delay(f"clean{suffix}").get(timeout=PATIENCE) == "cleaned up"


def test_a_hard_limit_ends_an_async_task_alone(tasks: ModuleType, project: Project) -> None:
    replica = project.pids("aio")
    neighbour = begun(tasks.hold, "hard-neighbour")
    result = begun(tasks.hold, "hard", time_limit=0.2)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE)
    wait_until(lambda: notes("hard") == ["begun", "CancelledError", "finally"], PATIENCE)
    open_gate("hard-neighbour")
    assert neighbour.get(timeout=PATIENCE) == "hard-neighbour"
    assert project.pids("aio") == replica


def test_a_body_that_goes_on_after_its_hard_limit_changes_nothing(tasks: ModuleType) -> None:
    result = tasks.stubborn.apply_async(("stubborn",), link=tasks.record.si("stubborn-link", 1))
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE)
    wait_until(lambda: notes("stubborn"), PATIENCE)
    assert tasks.add.delay(1, 1).get(timeout=PATIENCE) == 2
    assert tasks.app.AsyncResult(result.id).state == "FAILURE"
    assert not notes("stubborn-link")


def test_a_hard_limit_replaces_the_replica_of_a_sync_task(tasks: ModuleType, project: Project) -> None:
    (before,) = project.pids("snc")
    result = begun(tasks.hold_sync, "hard_sync", time_limit=0.2)
    waiting = tasks.pid.delay()
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE)
    assert waiting.get(timeout=PATIENCE) != before
    assert notes("hard_sync") == ["begun"]


# -- Revoking --------------------------------------------------------------------------------------------------------


def test_revoking_a_running_async_task_ends_its_coroutine_alone(tasks: ModuleType, project: Project) -> None:
    replica = project.pids("aio")
    neighbour = begun(tasks.hold, "revoke-neighbour")
    result = begun(tasks.hold, "revoke")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    wait_until(lambda: notes("revoke") == ["begun", "CancelledError", "finally"], PATIENCE)
    assert notes(f"revoked:{result.id}") == [[True, False]]
    open_gate("revoke-neighbour")
    assert neighbour.get(timeout=PATIENCE) == "revoke-neighbour"
    assert project.pids("aio") == replica


def test_revoking_a_running_sync_task_replaces_its_replica(tasks: ModuleType, project: Project) -> None:
    (before,) = project.wait_for_replicas("snc", 1)
    result = begun(tasks.hold_sync, "revoke_sync")
    waiting = tasks.pid.delay()
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    assert waiting.get(timeout=PATIENCE) != before
    assert notes("revoke_sync") == ["begun"]


def claimed(tasks: ModuleType, project: Project, key: str, **options: Any) -> tuple[Any, Any]:
    """A task that runs in the sync environment, and one that its worker has claimed and that waits for the replica."""
    # Tasks have been short so far: the worker claims ahead of its replica.
    for result in [tasks.add_sync.delay(n, n) for n in range(50)]:
        result.get(timeout=PATIENCE)
    running = begun(tasks.hold_sync, f"{key}-running")
    waiting = tasks.record.apply_async((key, 1), **options)
    project.wait(lambda: project.status("snc")["waiting"] == 1, description="a claimed task that waits")
    return running, waiting


@pytest.mark.parametrize("terminate", [False, True])
def test_a_revoked_task_that_waits_is_never_begun(tasks: ModuleType, project: Project, terminate: bool) -> None:
    key = f"waiting-{terminate}"
    running, waiting = claimed(tasks, project, key)
    waiting.revoke(terminate=terminate)
    project.ask("env_status", "snc")  # answered after the revocation: one worker handles commands in order
    open_gate(f"{key}-running")
    assert running.get(timeout=PATIENCE)
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=PATIENCE)
    assert tasks.add_sync.delay(1, 1).get(timeout=PATIENCE) == 2  # what waited before this has passed
    assert not notes(key)


@async_and_sync
def test_a_task_revoked_without_terminate_runs_on(tasks: ModuleType, project: Project, suffix: str) -> None:
    """However many workers hear of it that do not run it, of other environments and of plain tasks."""
    key = f"run-on{suffix}"
    result = begun(getattr(tasks, "hold" + suffix), key)
    result.revoke()
    inspect = project.celery_app.control.inspect(timeout=PATIENCE, limit=3)
    wait_until(lambda: all(result.id in ids for ids in (inspect.revoked() or {"": []}).values()), PATIENCE)
    assert result.state == "PENDING"
    open_gate(key)
    assert result.get(timeout=PATIENCE) == key
    assert result.state == "SUCCESS"


def test_a_revoked_task_that_no_worker_has_taken_ends_at_once(tasks: ModuleType) -> None:
    result = tasks.unserved_add.delay(1, 1)
    result.revoke()
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)


# -- When ------------------------------------------------------------------------------------------------------------


@async_and_sync
def test_a_countdown_and_an_eta_delay_a_task(tasks: ModuleType, suffix: str) -> None:
    task = getattr(tasks, "add" + suffix)
    started = time.monotonic()
    later = task.apply_async((1, 2), countdown=0.5)
    at = task.apply_async((3, 4), eta=datetime.now(UTC) + timedelta(seconds=0.5))
    assert (later.get(timeout=PATIENCE), at.get(timeout=PATIENCE)) == (3, 7)
    assert time.monotonic() - started >= 0.5


def test_a_task_that_expires_while_it_waits_is_never_begun(tasks: ModuleType, project: Project) -> None:
    running, waiting = claimed(tasks, project, "expiry", expires=1.0)
    expires = time.monotonic() + 1.1
    wait_until(lambda: time.monotonic() > expires, PATIENCE)
    open_gate("expiry-running")
    assert running.get(timeout=PATIENCE)
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=PATIENCE)
    assert tasks.add_sync.delay(1, 1).get(timeout=PATIENCE) == 2
    assert not notes("expiry")


def test_higher_priority_overtakes_in_the_queue(tasks: ModuleType, project: Project) -> None:
    """Redis has the highest priority at 0. Those that a worker has claimed keep their order, so there are many."""
    running = begun(tasks.hold_sync, "priority-running")
    low = [tasks.record.apply_async(("priority", n), priority=9) for n in range(20)]
    high = tasks.record.apply_async(("priority", 99), priority=0)
    open_gate("priority-running")
    for result in (running, *low, high):
        result.get(timeout=PATIENCE)
    order = notes("priority")
    assert sorted(order) == [*range(20), 99]
    assert order.index(99) < 15


def test_cancelling_an_awaited_result_leaves_the_task_alone(tasks: ModuleType) -> None:
    async def main() -> Any:
        result = tasks.hold.delay("cancelled-wait")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await result
        return result

    result = asyncio.run(main())
    open_gate("cancelled-wait")
    assert result.get(timeout=PATIENCE) == "cancelled-wait"
