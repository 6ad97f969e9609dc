"""What happens to tasks when a worker dies or is told to stop; see `test_delivery` and `test_crashes` for more."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos import steps
from tests.chaos.fleet import Fleet, Member
from tests.helpers import processes

#: Seconds; short, so that a test sees it run out.
LEASE = 2.0

#: Seconds after which even a busy machine is late; how soon exactly is for `make chaos` to say.
BUSY = 15.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker of each environment, to which nothing happens unless a test says so."""
    fleet = Fleet(tmp_path_factory.mktemp("workers"), LEASE, {"aio": 1, "snc": 1})
    try:
        fleet.repair()
        yield fleet
    finally:
        fleet.close()


Start = Callable[..., Member]


@pytest.fixture
def start(fleet: Fleet) -> Iterator[Start]:
    """Start workers for one test alone."""
    members: list[Member] = []

    def start(environment: str, die_at: str | None = None, ready: bool = True) -> Member:
        member = fleet.start(environment, die_at=die_at, ready=ready)
        members.append(member)
        return member

    yield start
    for member in members:
        fleet.kill(member)
        member.worker.destroy()
    fleet.wait(lambda: fleet.waiting() == 0, LEASE * 4 + BUSY, "the end of all claims")


def occupy(fleet: Fleet, member: Member, task: str, seconds: float) -> list[str]:
    """Submit tasks for every slot of every worker, until the given one runs some; return all that were submitted."""
    wave = 40 if member.environment == "aio" else 8
    submitted: list[str] = []

    def runs() -> bool:
        if not fleet.project.depth(member.environment):  # more than the others have slots for
            submitted.extend(fleet.submit(task, seconds) for _ in range(wave))
        return bool(fleet.running(member))

    fleet.wait(runs, description=f"a running task in {member.name}")
    return submitted


def test_the_tasks_of_a_lost_machine_run_again_within_the_lease(fleet: Fleet, start: Start) -> None:
    """Every process of the worker dies at once."""
    victim = start("aio")
    tasks = occupy(fleet, victim, "aio.nap", 0.3)
    for pid in [victim.worker.pid, *processes.descendants(victim.worker.pid)]:
        processes.kill(pid)
    died, lost = time.monotonic(), fleet.claimed(victim)
    assert lost
    fleet.wait_for(tasks)
    assert max(fleet.starts(task)[-1].at for task in lost) - died < LEASE + BUSY


def test_a_worker_that_is_told_to_stop_at_once_hands_back_what_it_runs(fleet: Fleet, start: Start) -> None:
    """SIGQUIT."""
    victim = start("aio")
    tasks = occupy(fleet, victim, "aio.nap", 2.0)
    running = fleet.running(victim)
    os.kill(victim.worker.pid, signal.SIGQUIT)
    victim.worker.wait(BUSY)
    assert fleet.claimed(victim) == set()
    fleet.wait_for(tasks)
    assert {len(fleet.starts(task)) for task in running} == {2}


def test_what_a_worker_hands_back_does_not_go_on_in_its_replicas(fleet: Fleet, start: Start) -> None:
    victim = start("snc")
    tasks = occupy(fleet, victim, "snc.sleep", 1.5)
    victim.worker.terminate()
    victim.worker.wait_for_log("waiting up to")
    victim.worker.terminate()
    victim.worker.wait(BUSY)
    fleet.wait_for(tasks)
    finished = [mark.task for mark in fleet.marks() if mark.event == "finish" and mark.task in tasks]
    assert sorted(finished) == sorted(tasks)


def test_the_claims_of_a_fleet_that_is_gone_come_back_when_any_worker_of_the_project_runs(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "fleet", LEASE, {"snc": 1})
    try:
        fleet.repair()
        (last,) = fleet.serving("snc")
        tasks = [fleet.submit("snc.sleep", 1.0) for _ in range(8)]
        fleet.wait(lambda: fleet.running(last), description="a running task")
        fleet.kill(last)
        last.worker.wait()
        assert fleet.claimed(last)
        fleet.start("spare")
        fleet.wait(lambda: not fleet.claimed(last), LEASE + BUSY, "claims that are back")
        assert fleet.project.depth("snc") == 8
        fleet.repair()
        fleet.wait_for(tasks)
    finally:
        fleet.close()


def test_a_worker_that_wakes_up_does_not_run_what_it_had_been_given_before(fleet: Fleet, start: Start) -> None:
    """It was stopped while it waited for a message, and Redis gave it one."""
    victim = start("aio")
    given: list[str] = []

    def took_one() -> bool:
        given.append(fleet.submit("aio.nap", 0.0))
        return bool(fleet.claimed(victim))

    fleet.wait_for(occupy(fleet, victim, "aio.nap", 0.3))
    with fleet.stopped(victim.worker.pid):
        fleet.wait(took_one, description="a message for the stopped worker")
        (task,) = fleet.claimed(victim)
        fleet.wait_for(given)
        fleet.wait(lambda: fleet.claimed(victim) == set(), description="the end of its claims")
    victim.worker.wait_for_log("The lease of")

    served = sum(mark.worker == victim.name for mark in fleet.marks())

    fleet.wait_for(occupy(fleet, victim, "aio.nap", 0.3))
    assert sum(mark.worker == victim.name for mark in fleet.marks()) > served
    assert len(fleet.starts(task)) == 1


def test_no_task_is_lost_when_workers_die_between_two_steps_of_a_claim(tmp_path: Path) -> None:
    """One worker for each step, which kills itself the second time it comes there; no other has their replicas."""
    fleet = Fleet(tmp_path / "fleet", LEASE, {"aio": 1})
    tasks: list[str] = []
    try:
        victims = {step: fleet.start("aio", die_at=f"{step}:2", ready=False) for step in steps.STEPS}

        def all_dead() -> bool:
            if not fleet.project.depth("aio"):  # in waves, so that all have replicas, and wait at times
                tasks.extend(fleet.submit("aio.nap", 0.2) for _ in range(150))
            return not any(victim.alive for victim in victims.values())

        fleet.wait(all_dead, 90, f"the deaths of {', '.join(victims)}")
        fleet.repair()
        fleet.wait_for(tasks)
    finally:
        fleet.close()
