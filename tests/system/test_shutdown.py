"""How a worker stops: for each signal what happens to what runs, what waits, and to its processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.helpers import processes
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.redis_server import RedisServer
from tests.helpers.tcp_proxy import TcpProxy
from tests.helpers.waiting import wait_until
from tests.helpers.workers import Worker

SOURCE = """
    import asyncio
    import time

    import flyte_celery as flyte

    app = flyte.init()
    snc = flyte.TaskEnvironment("snc", reusable=flyte.ReusePolicy(replicas=2, idle_ttl=3600))
    aio = flyte.TaskEnvironment("aio", reusable=flyte.ReusePolicy(replicas=1, concurrency=5, idle_ttl=3600), grace=1)


    policy = flyte.ReusePolicy(replicas=1, concurrency=200, idle_ttl=3600)
    wide = flyte.TaskEnvironment("wide", reusable=policy, grace=1)


    @snc.task
    def sleep(seconds: float, n: int) -> int:
        time.sleep(seconds)
        return n


    @aio.task
    async def nap(seconds: float, n: int) -> int:
        await asyncio.sleep(seconds)
        return n


    wide.task(nap.func)
"""


@pytest.fixture
def project(alone: Project) -> Project:
    """A project without workers."""
    alone.write(SOURCE)
    return alone


def busy(project: Project, *arguments: str, seconds: float, tasks: int = 2) -> Worker:
    """A worker of `snc` whose two replicas run tasks of that length, while others wait."""
    worker = project.start("snc", *arguments)
    for n in range(tasks):
        project.send("snc.sleep", seconds, n)
    project.wait(lambda: project.status("snc")["running"] == 2)
    return worker


def test_sigterm_lets_running_tasks_finish_and_says_what_it_waits_for(project: Project) -> None:
    worker = project.start("snc")
    running = [project.send("snc.sleep", 4.0, n) for n in range(2)]
    project.wait(lambda: project.status("snc")["running"] == 2)
    worker.terminate()
    assert worker.wait() == 0
    assert [result.get(timeout=PATIENCE) for result in running] == [0, 1]
    assert f"for 2 running task(s): snc.sleep[{running[0].id}]" in worker.log()


def test_sigterm_hands_back_within_100_ms_what_is_not_begun(project: Project) -> None:
    worker = project.start("snc")
    project.celery_app.conf.task_protocol = 1  # Celery schedules these in the worker; newer ones are parked in Redis
    for n in range(300):
        project.send("snc.sleep", 0.0, n, countdown=600)
    project.wait(lambda: project.depth("snc") == 0)
    for n in range(2):
        project.send("snc.sleep", 20.0, n)
    project.wait(lambda: project.status("snc")["running"] == 2)
    asked = time.monotonic()
    worker.terminate()
    wait_until(lambda: project.depth("snc") == 300, timeout=PATIENCE)
    # Generous against the promise, for a busy machine: it would be 20 s if it waited for what runs.
    assert time.monotonic() - asked < 10
    worker.terminate()


def test_it_ends_within_grace_and_two_seconds_and_what_runs_then_goes_back(project: Project) -> None:
    worker = busy(project, "--grace", "1", seconds=60)
    asked = time.monotonic()
    worker.terminate()
    worker.wait()
    assert time.monotonic() - asked < 1 + 2 + 10  # the last ten for a busy machine
    assert project.depth("snc") == 2


def test_the_lease_is_renewed_until_the_last_task_has_ended(project: Project) -> None:
    """Another worker looks for the dead meanwhile, and must not find this one."""
    lease = {"FLYTE_CELERY_LEASE": "1"}
    other = project.start("aio", env=lease)
    worker = project.start("snc", env=lease)
    result = project.send("snc.sleep", 4.0, 7)
    project.wait(lambda: project.status("snc")["running"] == 1)
    worker.terminate()
    worker.wait()
    assert result.get(timeout=PATIENCE) == 7
    assert project.depth("snc") == 0
    assert "is dead" not in other.log()


def test_an_environment_says_its_own_grace(project: Project) -> None:
    worker = project.start("aio")
    project.send("aio.nap", 60, 1)
    project.wait(lambda: project.status("aio")["running"] == 1)
    worker.terminate()
    worker.wait_for_log("waiting up to 1 s")
    worker.wait()
    assert project.depth("aio") == 1


@pytest.mark.parametrize("signals", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGQUIT,)])
def test_a_second_sigterm_and_sigquit_hand_back_at_once(project: Project, signals: tuple[signal.Signals, ...]) -> None:
    worker = busy(project, seconds=60, tasks=4)
    os.kill(worker.pid, signals[0])
    for signum in signals[1:]:
        worker.wait_for_log("waiting up to")
        os.kill(worker.pid, signum)
    asked = time.monotonic()
    worker.wait()
    assert time.monotonic() - asked < 15  # the tasks take 60
    assert project.depth("snc") == 4


def test_ctrl_c_reaches_the_whole_group_and_only_the_worker_minds_it(project: Project) -> None:
    """A terminal signals every process of the foreground group; running tasks finish all the same."""
    worker = project.start("snc")
    running = [project.send("snc.sleep", 4.0, n) for n in range(2)]
    project.wait(lambda: project.status("snc")["running"] == 2)
    os.killpg(worker.pid, signal.SIGINT)
    worker.wait()
    assert [result.get(timeout=PATIENCE) for result in running] == [0, 1]


def test_sigterm_to_every_process_ends_like_one_to_the_worker(project: Project) -> None:
    """Kubernetes and systemd signal the main process, `docker stop` and process managers sometimes the group."""
    worker = busy(project, "--grace", "1", seconds=60)
    for pid in [worker.pid, *processes.descendants(worker.pid)]:
        os.kill(pid, signal.SIGTERM)
    worker.wait()
    assert project.depth("snc") == 2


def test_sigterm_ends_a_worker_whose_redis_is_away(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    project = Project(tmp_path, server.url())
    try:
        project.write(SOURCE)
        worker = project.start("snc", "--grace", "1")
        server.stop()
        worker.wait_for_log("Redis does not answer")
        worker.terminate()
        worker.wait(timeout=20)
    finally:
        project.close()
        server.stop()


@pytest.mark.parametrize("ended", [False, True], ids=["running", "whose replica was ended for the lease"])
def test_many_tasks_that_cannot_be_handed_back_hold_up_no_stop(
    project: Project, redis_server: RedisServer, ended: bool
) -> None:
    """Redis has become deaf, so that each attempt takes its time-out of two seconds: there is one for all tasks."""
    proxy = TcpProxy(redis_server.port)
    try:
        through = {"FLYTE_CELERY_BROKER_URL": project.url.replace(str(redis_server.port), str(proxy.port))}
        worker = project.start("wide", env={**through, "FLYTE_CELERY_LEASE": "5"})
        results = [project.send("wide.nap", 120.0, n) for n in range(200)]
        project.wait(lambda: project.status("wide")["running"] == 200)
        proxy.stall()
        if ended:
            worker.wait_for_log("lease-lost", timeout=PATIENCE)
        worker.terminate()
        worker.wait(timeout=90)
        assert worker.log().count("cannot be handed back now") <= 1
        assert not any(result.ready() for result in results)
        project.wait(lambda: "200 claim(s) are back" in project.celery("env", "reap").stdout, 3 * PATIENCE)
    finally:
        proxy.close()


def test_prestop_and_sigterm_stop_it_once(project: Project) -> None:
    """A `preStop` hook that asks for a warm shutdown, then the kubelet's SIGTERM while tasks still run."""
    worker = project.start("snc")
    running = [project.send("snc.sleep", 4.0, n) for n in range(2)]
    project.wait(lambda: project.status("snc")["running"] == 2)
    project.celery_app.control.shutdown()
    worker.wait_for_log("waiting up to")
    assert [result.get(timeout=PATIENCE) for result in running] == [0, 1]
    worker.terminate()
    worker.wait()
    assert project.depth("snc") == 0
