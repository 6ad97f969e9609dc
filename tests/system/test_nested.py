"""Parents and children that share replicas: a task that waits holds no slot, so none starves in the smallest pool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery.exceptions import TaskRevokedError

from flyte_celery.errors import StarvationError
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.redis_server import RedisServer

SOURCE = """
    import asyncio
    import threading
    import time
    from pathlib import Path

    import flyte_celery as flyte

    app = flyte.init()
    here = Path(__file__).parent
    one = flyte.ReusePolicy(replicas=1, concurrency=1, idle_ttl=3600)
    snc = flyte.TaskEnvironment("snc", reusable=one)
    aio = flyte.TaskEnvironment("aio", reusable=one)
    two = flyte.TaskEnvironment("two", reusable=flyte.ReusePolicy(replicas=2, concurrency=1, idle_ttl=3600))
    eph = flyte.TaskEnvironment("eph")
    running = 0
    most = 0


    class Busy:
        def __enter__(self) -> None:
            global running, most
            running += 1
            most = max(most, running)

        def __exit__(self, *_: object) -> None:
            global running
            running -= 1


    @snc.task
    def deep(n: int) -> int:
        return 0 if n == 0 else deep(n - 1) + 1


    @snc.task
    def on_which_thread(of_child: bool = False) -> list[str]:
        mine = threading.current_thread().name
        return [mine] if of_child else [mine, *on_which_thread(True)]


    @snc.task
    def work(seconds: float) -> int:
        with Busy():
            time.sleep(seconds)
        return most


    @snc.task
    def parent_of_work(n: int) -> int:
        with Busy():
            time.sleep(0.01)
        found = list(flyte.map(work, [0.01] * n, return_exceptions=False))
        with Busy():
            time.sleep(0.05)
        return max(found)


    @snc.task
    def waits_for(name: str) -> str:
        return stays(name)


    @snc.task
    def stays(name: str) -> str:
        (here / name).touch()
        while not (here / "enough").exists():
            time.sleep(0.01)
        return name


    @snc.task(soft_time_limit=1)
    def limited(of_child: bool = False) -> str:
        if not of_child:
            return limited_child()
        return ""


    @snc.task(soft_time_limit=0.5)
    def limited_child() -> str:
        try:
            while True:
                time.sleep(0.01)
        except Exception as exc:
            return type(exc).__name__


    @aio.task
    async def adeep(n: int) -> int:
        return 0 if n == 0 else await adeep(n - 1) + 1


    @aio.task
    async def fan(n: int) -> int:
        return sum(await asyncio.gather(*(leaf(i) for i in range(n))))


    @aio.task
    async def leaf(i: int) -> int:
        await asyncio.sleep(0)
        return i


    @aio.task
    async def awaits(name: str) -> str:
        return await astays(name)


    @aio.task
    async def astays(name: str) -> str:
        (here / name).touch()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            (here / f"{name}-cancelled").touch()
            raise
        return name


    @two.task
    def tree(n: int) -> int:
        # Every node but the leaves waits for the nodes below it.
        left = (n - 1) // 2
        below = [size for size in (left, n - 1 - left) if size]
        return 1 + sum(flyte.map(tree, below, return_exceptions=False)) if below else 1


    @eph.task
    def edeep(n: int) -> int:
        return 0 if n == 0 else edeep(n - 1) + 1
"""


@pytest.fixture(scope="module")
def project(
    redis_server: RedisServer, _redis_databases: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """A project whose environments have one or two slots."""
    project = Project(tmp_path_factory.mktemp("nested"), redis_server.url(next(_redis_databases)))
    project.write(SOURCE)
    workers = [project.start(name, ready=False) for name in ("snc", "aio", "two")]
    workers.append(project.start("eph", "--concurrency", "1", ready=False))
    for worker in workers:
        worker.wait_ready()
    yield project
    project.close()


@pytest.mark.parametrize(("task", "depth"), [("snc.deep", 50), ("aio.adeep", 50), ("eph.edeep", 4)])
def test_one_slot_is_enough_for_a_chain_of_parents(project: Project, task: str, depth: int) -> None:
    assert project.send(task, depth).get(timeout=3 * PATIENCE) == depth


def test_a_tree_of_a_thousand_on_two_replicas(project: Project) -> None:
    assert project.send("two.tree", 1000).get(timeout=100) == 1000


def test_a_coroutine_gathers_hundreds_of_children_in_its_own_slot(project: Project) -> None:
    assert project.send("aio.fan", 200).get(timeout=PATIENCE) == sum(range(200))


def test_a_child_runs_on_a_thread_of_its_own_while_its_parent_waits_on_the_main_thread(project: Project) -> None:
    """Database connections and open transactions belong to threads."""
    mine, childs = project.call("snc.on_which_thread")
    assert mine == "MainThread"
    assert childs.startswith("flyte-celery-task-")


def test_never_do_more_bodies_run_than_there_are_slots(project: Project) -> None:
    """Also when a parent goes on: it gets a slot before new tasks do, and no slot that another task has."""
    results = [project.send("snc.parent_of_work", 10) for _ in range(5)]
    assert [result.get(timeout=2 * PATIENCE) for result in results] == [1] * 5


def test_waiting_tasks_are_shown_apart_and_keep_the_environment_awake(project: Project) -> None:
    result = project.send("snc.waits_for", "shown")
    project.wait((project.folder / "shown").exists)
    status = project.status("snc")
    assert (status["running"], status["suspended"]) == (1, 1)
    (project.folder / "enough").touch()
    assert result.get(timeout=PATIENCE) == "shown"
    (project.folder / "enough").unlink()


def test_a_soft_time_limit_reaches_a_body_that_has_not_the_main_thread(project: Project) -> None:
    assert project.call("snc.limited") == "SoftTimeLimitExceeded"


@pytest.mark.parametrize("task", ["snc.waits_for", "aio.awaits"])
def test_who_ends_a_waiting_parent_ends_its_child(project: Project, task: str) -> None:
    environment = task.partition(".")[0]
    pids = project.pids(environment)
    name = f"child-of-{environment}"
    result = project.send(task, name)
    project.wait((project.folder / name).exists)
    project.celery_app.control.revoke(result.id, terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    project.wait(lambda: project.status(environment)["running"] == project.status(environment)["suspended"] == 0)
    if environment == "aio":
        assert (project.folder / f"{name}-cancelled").exists()
        assert project.pids(environment) == pids
    assert project.send(f"{environment}.{'deep' if environment == 'snc' else 'adeep'}", 3).get(timeout=PATIENCE) == 3


def test_at_the_bound_the_chain_is_named(redis_url: str, tmp_path: Path) -> None:
    project = Project(tmp_path, redis_url)
    try:
        project.write(SOURCE)
        project.start("snc", env={"FLYTE_CELERY_MAX_SUSPENDED": "5"})
        with pytest.raises(
            StarvationError, match=r"snc\.deep\[.*\] > snc\.deep\[.*5 tasks of its replica wait already"
        ):
            project.send("snc.deep", 20).get(timeout=PATIENCE)
        assert project.call("snc.deep", 4) == 4
    finally:
        project.close()
