"""Nothing is lost when a worker dies, and what kills its replica each time is given up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery.exceptions import WorkerLostError

from flyte_celery import names
from flyte_celery.worker.transport import IDLE_WAIT
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.redis_server import RedisServer
from tests.helpers.workers import Worker

SOURCE = """
    import asyncio
    import os
    import signal
    import time

    import flyte_celery as flyte

    app = flyte.init()
    aio = flyte.TaskEnvironment("aio", reusable=flyte.ReusePolicy(replicas=2, concurrency=20, idle_ttl=3600))
    snc = flyte.TaskEnvironment("snc", reusable=flyte.ReusePolicy(replicas=2, idle_ttl=3600))


    @aio.task
    async def nap(seconds: float, n: int) -> int:
        await asyncio.sleep(seconds)
        return n


    @snc.task
    def sleep(seconds: float, n: int) -> int:
        time.sleep(seconds)
        return n


    @snc.task
    def sleep_after(seconds: float, began: str) -> None:
        open(began, "x").close()
        time.sleep(seconds)


    @snc.task
    def poison() -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


    @snc.task(max_attempts=1)
    def deadly() -> None:
        os.kill(os.getpid(), signal.SIGKILL)
"""

#: Seconds; short, so that a test sees it run out.
LEASE = 2.0


@pytest.fixture(scope="module")
def shared(
    redis_server: RedisServer, _redis_databases: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """A project with a worker for each environment, which no test ends."""
    yield from serve(tmp_path_factory.mktemp("delivery"), redis_server.url(next(_redis_databases)))


@pytest.fixture
def own(redis_url: str, tmp_path: Path) -> Iterator[Project]:
    """The same for one test alone, which may do to its workers what it likes."""
    yield from serve(tmp_path, redis_url)


def serve(folder: Path, url: str) -> Iterator[Project]:
    """Start a project's workers, with a short lease."""
    project = Project(folder, url)
    project.write(SOURCE)
    try:
        start(project)
        yield project
    finally:
        project.close()


def start(project: Project) -> list[Worker]:
    """Start a worker for each environment; the one of `snc` comes second."""
    lease = {"FLYTE_CELERY_LEASE": str(LEASE)}
    workers = [project.start(environment, env=lease, ready=False) for environment in ("aio", "snc")]
    for worker in workers:
        worker.wait_ready()
    return workers


def test_the_tasks_of_a_killed_worker_run_in_the_next_one(own: Project) -> None:
    naps = [own.send("aio.nap", 1.0, n) for n in range(30)]
    sleeps = [own.send("snc.sleep", 0.5, n) for n in range(6)]
    own.wait(lambda: own.status("aio")["running"] and own.status("snc")["running"])
    for worker in own.workers:
        worker.kill()
    start(own)
    assert [result.get(timeout=PATIENCE) for result in naps] == list(range(30))
    assert [result.get(timeout=PATIENCE) for result in sleeps] == list(range(6))


def test_a_task_longer_than_the_lease_runs_once(shared: Project) -> None:
    """A lease is the worker's, not the task's: nothing is delivered again while it lives."""

    def served() -> int:
        return sum(int(replica["served"]) for replica in shared.status("snc")["replicas"])

    before = served()
    assert shared.call("snc.sleep", LEASE * 2.5, 7) == 7
    # The caller has the result a moment before the worker hears of the end.
    shared.wait(lambda: shared.status("snc")["running"] == 0, description="no running task")
    assert served() == before + 1


def test_a_task_that_kills_its_replica_each_time_is_given_up_and_its_neighbours_are_unharmed(shared: Project) -> None:
    victim = shared.send("snc.poison")
    others = [shared.send("snc.sleep", 0.01, n) for n in range(10)]
    with pytest.raises(WorkerLostError, match=r"SIGSEGV while it ran snc.poison.* attempt 3 of 3"):
        victim.get(timeout=PATIENCE)
    assert [result.get(timeout=PATIENCE) for result in others] == list(range(10))


def test_a_task_says_how_often_it_may_be_tried(shared: Project) -> None:
    with pytest.raises(WorkerLostError, match=r"attempt 1 of 1"):
        shared.send("snc.deadly").get(timeout=PATIENCE)


def test_a_worker_that_wakes_up_after_its_lease_ends_what_it_ran_and_begins_anew(own: Project, tmp_path: Path) -> None:
    """It was stopped for longer than its lease; the worker of another environment has condemned it meanwhile."""
    worker, began = own.workers[1], tmp_path / "began"
    running = own.send("snc.sleep_after", 0.5, str(began))
    own.wait(began.exists, description="the task in a replica, which goes on without its worker")
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        running.get(timeout=PATIENCE)
        own.wait(lambda: condemned(own, "snc"), description="the other worker to condemn it")
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    worker.wait_for_log("The lease of")
    assert own.call("snc.sleep", 0.01, 2) == 2


def test_an_idle_worker_takes_tasks_of_other_priorities_within_a_second(shared: Project) -> None:
    """The server wakes it for the default priority alone; at the others it looks once a second."""
    shared.call("aio.nap", 0.0, 0)  # there is a replica
    priorities = [3, 6, 9] * 2
    began = time.monotonic()
    for priority in priorities:
        result = shared.send("aio.nap", 0.0, priority, priority=priority)
        assert result.get(timeout=IDLE_WAIT + PATIENCE) == priority
    assert time.monotonic() - began < len(priorities) * IDLE_WAIT + PATIENCE


def test_a_worker_that_stops_hands_back_at_once_what_is_scheduled_for_later(own: Project) -> None:
    """Not after its running tasks have ended: another worker may have time for it.

    Celery schedules what is not parked in Redis: messages of its old protocol.
    """
    own.celery_app.conf.task_protocol = 1
    own.send("snc.sleep", 5.0, 1)
    own.wait(lambda: own.status("snc")["running"] == 1)
    own.send("snc.sleep", 0.0, 2, countdown=600)
    client = redis.Redis.from_url(own.url)
    own.wait(lambda: sum(client.hlen(key) for key in client.scan_iter(names.claims_key("snc", "*"))) == 2)
    own.workers[1].terminate()
    own.wait(lambda: own.depth("snc") == 1, description="the scheduled task in the queue")
    assert own.workers[1].process.poll() is None, own.workers[1].log_tail()


def test_a_worker_that_ends_in_good_order_leaves_no_claim_behind(own: Project) -> None:
    client = redis.Redis.from_url(own.url)
    results = [own.send("snc.sleep", 1.0, n) for n in range(10)]
    own.wait(lambda: own.status("snc")["running"])
    for worker in own.workers:
        worker.terminate()
    for worker in own.workers:
        worker.wait()
    assert list(client.scan_iter(names.claims_key("*", "*"))) == []
    stored = sum(bool(client.exists(f"celery-task-meta-{result.id}")) for result in results)
    assert own.depth("snc") + stored == 10


def condemned(project: Project, environment: str) -> bool:
    """Whether a worker of an environment has lost its lease."""
    client = redis.Redis.from_url(project.url)
    found = client.zrangebyscore(names.workers_key(), "-inf", 0)
    return any(member.decode().startswith(f"{environment}/") for member in found)  # type: ignore[union-attr]
