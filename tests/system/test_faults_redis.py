"""What happens to tasks when Redis dies, stalls, refuses or is cut off, and when very much comes at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.fleet import Fleet, Member
from tests.helpers.tcp_proxy import TcpProxy

#: Seconds; short, so that a test sees it run out.
LEASE = 2.0

#: Tasks that arrive at once where no replica runs.
ARRIVALS = 10_000


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A Redis server that keeps its data over a restart, and a worker of each environment."""
    yield from serve(tmp_path_factory.mktemp("redis-faults"))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Fleet]:
    """The same for one test alone, which may leave a mess."""
    yield from serve(tmp_path / "fleet")


def serve(folder: Path) -> Iterator[Fleet]:
    """Start everything, and end it."""
    fleet = Fleet(folder, LEASE, {"aio": 1, "snc": 1})
    try:
        fleet.repair()
        yield fleet
    finally:
        fleet.close()


@contextmanager
def proxied(fleet: Fleet, environment: str) -> Iterator[Member]:
    """One more worker of an environment, which reaches Redis through a proxy."""
    member = fleet.start(environment, proxied=True)
    try:
        yield member
    finally:
        member.worker.destroy()
        if member.proxy is not None:
            member.proxy.close()


def submit_some(fleet: Fleet) -> list[str]:
    """Submit more than can run at once, and wait until some of it runs."""
    tasks = fleet.submit_many("aio.nap", 60, 0.3) + fleet.submit_many("snc.sleep", 12, 0.3)
    fleet.wait(lambda: fleet.running() & set(tasks), description="running tasks")
    return tasks


def waits_for_a_task(fleet: Fleet, proxy: TcpProxy) -> bool:
    """Whether Redis would give the next task to the worker behind the proxy, without a word from it."""
    ports = proxy.ports()
    return any(
        "b" in client["flags"] and int(client["addr"].rpartition(":")[2]) in ports
        for client in fleet.client.client_list()
    )


def finished_once(fleet: Fleet, tasks: list[str]) -> bool:
    """Whether each of the tasks has finished exactly once."""
    ours = set(tasks)
    finished = [mark.task for mark in fleet.marks() if mark.event == "finish" and mark.task in ours]
    return sorted(finished) == sorted(tasks)


def test_a_redis_that_restarts_with_its_data_loses_nothing(own: Fleet) -> None:
    tasks = submit_some(own)
    own.server.stop()
    own.server.start()
    own.wait_for(tasks)


def test_workers_whose_connections_are_closed_go_on_and_run_nothing_twice(fleet: Fleet) -> None:
    tasks = submit_some(fleet)
    for kind in ("normal", "pubsub"):
        fleet.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    fleet.wait_for(tasks)
    assert finished_once(fleet, tasks)


def test_a_redis_that_answers_nobody_for_longer_than_the_lease_loses_nothing(fleet: Fleet) -> None:
    tasks = submit_some(fleet)
    fleet.client.execute_command("CLIENT", "PAUSE", int(LEASE * 1200), "ALL")
    fleet.wait_for(tasks)


def test_a_redis_that_is_stopped_for_longer_than_the_lease_loses_nothing(fleet: Fleet) -> None:
    tasks = submit_some(fleet)
    with fleet.stopped(fleet.server.pid):
        time.sleep(LEASE * 1.2)
    fleet.wait_for(tasks)


def test_a_worker_that_is_cut_off_loses_its_tasks_to_others_and_comes_back(fleet: Fleet) -> None:
    """Its connections stay open and nothing comes through, until the network heals."""
    (other,) = fleet.serving("aio")
    tasks: list[str] = []

    def occupy(member: Member) -> None:
        """Have a worker run tasks: the other one, which might have all replicas that may be, is stopped meanwhile."""
        began = time.monotonic()

        def runs() -> bool:
            return any(m.worker == member.name and m.event == "start" and m.at > began for m in fleet.marks())

        with fleet.stopped(other.worker.pid):
            tasks.extend(fleet.submit_many("aio.nap", 40, 0.5))
            fleet.wait(runs, description=f"a task in {member.name}")

    with proxied(fleet, "aio") as member:
        assert member.proxy is not None
        occupy(member)
        member.proxy.stall()
        fleet.wait_for(tasks)
        member.proxy.heal()
        occupy(member)
        fleet.wait_for(tasks)


def test_claims_whose_reply_is_lost_with_the_connection_are_not_lost(fleet: Fleet) -> None:
    (survivor,) = fleet.serving("snc")
    with fleet.stopped(survivor.worker.pid), proxied(fleet, "snc") as member:
        assert member.proxy is not None
        proxy, tasks = member.proxy, []

        def loses_the_reply_to_a_claim() -> bool:
            """Unless the worker's wait for a task ended, as it does each second, between the two steps."""
            fleet.wait(lambda: waits_for_a_task(fleet, proxy), description="a worker that waits for a task")
            proxy.stall_replies()
            tasks.append(fleet.submit("snc.sleep", 0.0))
            fleet.wait(lambda: not waits_for_a_task(fleet, proxy), description="the end of the wait")
            lost = fleet.project.depth("snc") == 0
            proxy.cut()
            return lost

        for _ in range(3):
            tasks += [fleet.submit("snc.sleep", 0.0) for _ in range(4)]
            fleet.wait_for(tasks)
            fleet.wait(loses_the_reply_to_a_claim, description="a claim without a reply")
        fleet.wait_for(tasks)


def test_results_that_a_full_redis_refuses_are_stored_when_it_has_room_again(own: Fleet) -> None:
    tasks = submit_some(own)
    own.client.config_set("maxmemory", 1)
    time.sleep(0.5)
    own.client.config_set("maxmemory", 0)
    own.wait_for(tasks, timeout=10.0)


def test_results_that_may_not_be_written_are_stored_when_they_may(own: Fleet) -> None:
    tasks = submit_some(own)
    own.client.execute_command("ACL", "SETUSER", "default", "-setex", "-set")
    time.sleep(0.5)
    own.client.execute_command("ACL", "SETUSER", "default", "+@all")
    own.wait_for(tasks, timeout=10.0)


def test_very_many_tasks_that_arrive_at_zero_replicas_run_once_each(fleet: Fleet) -> None:
    with proxied(fleet, "zero") as member:
        assert member.replicas() == []
        tasks = fleet.submit_many("zero.wake", ARRIVALS, 0.0)
        fleet.wait_for(tasks, timeout=60.0)
        assert finished_once(fleet, tasks)
