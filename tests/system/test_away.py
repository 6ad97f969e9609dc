"""A worker whose Redis is away: it stays at work while its lease holds, keeps limits, and stops when it is told to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery.exceptions import TimeLimitExceeded
from celery.states import READY_STATES

from tests.helpers import processes
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.redis_server import RedisServer
from tests.helpers.tcp_proxy import TcpProxy
from tests.helpers.workers import Worker

SOURCE = """
    import asyncio
    from pathlib import Path

    import flyte_celery as flyte

    app = flyte.init()
    env = flyte.TaskEnvironment("env", reusable=flyte.ReusePolicy(replicas=1, concurrency=10, idle_ttl=3600))


    @env.task(max_attempts=1)
    async def wait_for(folder: str) -> str:
        here = Path(folder)
        with (here / "began").open("a") as began:
            began.write("once\\n")
        try:
            while not (here / "go").exists():
                await asyncio.sleep(0.05)
        finally:
            (here / "ended").touch()
        return "done"


    @env.task
    async def wait_for_again(folder: str) -> str:
        return await wait_for.func(folder)
"""

#: Seconds.
LEASE = 9.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis server for one test alone, which keeps its data over a restart."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", durable=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def project(server: RedisServer, tmp_path: Path) -> Iterator[Project]:
    """A project without workers."""
    project = Project(tmp_path, server.url())
    project.write(SOURCE)
    yield project
    project.close()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[TcpProxy]:
    """The worker's way to Redis."""
    proxy = TcpProxy(server.port)
    yield proxy
    proxy.close()


def start_behind(project: Project, proxy: TcpProxy) -> Worker:
    """A worker behind the proxy, whose lease outlives the test."""
    env = {"FLYTE_CELERY_BROKER_URL": f"redis://127.0.0.1:{proxy.port}/0", "FLYTE_CELERY_LEASE": "600"}
    return project.start("env", "--grace", "1", env=env)


@pytest.mark.parametrize("known", [False, True], ids=["and nobody has noticed", "and the worker knows"])
def test_sigterm_ends_a_worker_whose_redis_swallows_everything(
    project: Project, proxy: TcpProxy, tmp_path: Path, known: bool
) -> None:
    """Connections stay open, and nothing comes through: whoever asks Redis waits for its time-out."""
    worker = start_behind(project, proxy)
    project.send("env.wait_for", str(tmp_path))
    project.wait((tmp_path / "began").exists, description="a running task")
    proxy.stall()
    if known:
        worker.wait_for_log("Redis does not answer", timeout=60)
    worker.terminate()
    assert worker.wait(timeout=60) == 0
    assert (tmp_path / "ended").exists()


def test_a_limit_is_kept_while_redis_swallows_everything(project: Project, proxy: TcpProxy, tmp_path: Path) -> None:
    start_behind(project, proxy)
    project.send("env.wait_for", str(tmp_path), soft_time_limit=3)
    project.wait((tmp_path / "began").exists, description="a running task")
    proxy.stall()
    project.wait((tmp_path / "ended").exists, 60, "the end of the task")


def test_a_task_over_its_hard_limit_fails_when_redis_answers_again(
    project: Project, proxy: TcpProxy, tmp_path: Path
) -> None:
    """It ends at its limit all the same, and nothing waits for Redis meanwhile: a second one ends at its own."""
    start_behind(project, proxy)
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    results = [
        project.send("env.wait_for", str(folder), time_limit=seconds)
        for folder, seconds in zip(folders, (4, 5), strict=True)
    ]
    for folder in folders:
        project.wait((folder / "began").exists, description="a running task")
    proxy.stall()
    for folder in folders:
        project.wait((folder / "ended").exists, PATIENCE, "the end of the task")
    assert not any(result.ready() for result in results)
    proxy.heal()
    for result in results:
        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=2 * PATIENCE)


def test_tasks_whose_replica_dies_run_again_when_redis_answers_again(
    project: Project, proxy: TcpProxy, tmp_path: Path
) -> None:
    worker = start_behind(project, proxy)
    result = project.send("env.wait_for_again", str(tmp_path))
    project.wait((tmp_path / "began").exists, description="a running task")
    (replica,) = project.pids("env")
    proxy.stall()
    worker.wait_for_log("Redis does not answer", timeout=PATIENCE)
    processes.kill(replica)
    worker.wait_for_log("with 1 task(s)", timeout=PATIENCE)
    (tmp_path / "go").touch()
    proxy.heal()
    assert result.get(timeout=2 * PATIENCE) == "done"
    assert (tmp_path / "began").read_text() == "once\n" * 2


def test_a_redis_that_was_down_for_longer_than_the_lease_takes_no_task_from_its_worker(
    server: RedisServer, project: Project, tmp_path: Path
) -> None:
    """The worker is the only one, so nobody but itself could take it for dead."""
    worker = project.start("env", env={"FLYTE_CELERY_LEASE": str(LEASE)})
    result = project.send("env.wait_for", str(tmp_path))
    project.wait((tmp_path / "began").exists, description="a running task")
    server.stop()
    over = time.monotonic() + LEASE * 1.2
    worker.wait_for_log("Redis does not answer")
    project.wait(lambda: time.monotonic() > over, LEASE * 2, "the end of the lease")
    server.start()
    worker.wait_for_log("Redis answers again")
    (tmp_path / "go").touch()
    # Not `get`, whose subscription of before the restart may miss what is told in the moment after it.
    project.wait(lambda: result.state in READY_STATES, 2 * PATIENCE, "the end of the task")
    assert result.result == "done"
    assert (tmp_path / "began").read_text() == "once\n"
    assert "The lease of" not in worker.log()
