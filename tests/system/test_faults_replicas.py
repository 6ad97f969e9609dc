"""What happens to tasks when a replica stops, blocks or dies; see `test_crashes` for what is killed from outside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.fleet import Fleet, Member

#: Seconds; short, so that a test sees it run out.
LEASE = 2.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker of an async environment, two replicas of ten slots."""
    fleet = Fleet(tmp_path_factory.mktemp("replicas"), LEASE, {"aio": 1})
    try:
        fleet.repair()
        yield fleet
    finally:
        fleet.close()


@pytest.fixture
def worker(fleet: Fleet) -> Member:
    """The worker, with both replicas ready."""
    (member,) = fleet.serving("aio")
    fleet.wait(lambda: len(member.replicas()) == 2, description="two replicas")
    fleet.wait_for([fleet.submit("aio.nap", 0.0)])
    return member


def test_the_tasks_of_a_stopped_replica_wait_for_it_and_run_once(fleet: Fleet, worker: Member) -> None:
    """Its worker lives and renews the lease, so nobody else may run them; new tasks are run by other replicas."""
    stopped = [fleet.submit("aio.nap", 0.5) for _ in range(5)]
    fleet.wait(lambda: fleet.running(worker) == set(stopped), description="five running tasks")
    (pid,) = {fleet.starts(task)[0].pid for task in stopped}
    with fleet.stopped(pid):
        time.sleep(LEASE * 1.2)
        others = [fleet.submit("aio.nap", 0.0) for _ in range(15)]
        fleet.wait(lambda: len(fleet.results(others)) >= 10, description="tasks in the other replica")
        assert not fleet.results(stopped)
    fleet.wait_for([*stopped, *others])
    assert [len(fleet.starts(task)) for task in stopped] == [1] * 5


def test_a_blocked_loop_holds_up_its_own_replica_alone(fleet: Fleet, worker: Member) -> None:
    blocking = fleet.submit("aio.block", LEASE * 3)
    fleet.wait(lambda: blocking in fleet.running(worker), description="a blocked loop")
    others = [fleet.submit("aio.nap", 0.0) for _ in range(15)]
    fleet.wait(lambda: len(fleet.results(others)) >= 6, LEASE * 2.5, "tasks in the other replica")
    assert blocking in fleet.running(worker)
    fleet.wait_for([blocking, *others])
    assert len(fleet.starts(blocking)) == 1


def test_an_async_task_that_kills_its_replica_is_given_up(fleet: Fleet, worker: Member) -> None:
    poison = fleet.submit("aio.crash_later", 0.05)
    fleet.wait_for([poison], "FAILURE")
    assert len(fleet.starts(poison)) == 3


def test_an_async_task_that_kills_its_replica_before_its_first_await_is_given_up(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "fleet", LEASE, {"aio": 1})
    try:
        fleet.repair()
        poison = fleet.submit("aio.crash_at_once")
        fleet.wait_for([poison], "FAILURE")
        assert len(fleet.starts(poison)) == 3
    finally:
        fleet.close()


def test_the_neighbours_of_an_async_poison_task_are_unharmed(fleet: Fleet, worker: Member) -> None:
    neighbours = [fleet.submit("aio.nap", 1.0) for _ in range(5)]
    fleet.wait(lambda: fleet.running(worker) >= set(neighbours), description="five running tasks")
    poison = fleet.submit("aio.crash_later", 0.05)
    fleet.wait_for([poison], "FAILURE")
    fleet.wait_for(neighbours)
