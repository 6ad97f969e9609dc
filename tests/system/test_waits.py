"""Every way to wait inside a task gives the slot away, and a wait that could never end is told so."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery.exceptions import TaskRevokedError

from flyte_celery.errors import StarvationError, SyncTaskCallInAsyncContextError
from flyte_celery.names import wait_key
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.redis_server import RedisServer

SOURCE = """
    import asyncio
    import time
    from pathlib import Path
    from typing import Any

    from celery import chord, group
    from celery.exceptions import TimeoutError as CeleryTimeoutError
    from celery.result import AsyncResult, ResultSet, allow_join_result

    import flyte_celery as flyte

    app = flyte.init()
    here = Path(__file__).parent
    one = flyte.ReusePolicy(replicas=1, concurrency=1, idle_ttl=3600)
    snc = flyte.TaskEnvironment("snc", reusable=one)
    aio = flyte.TaskEnvironment("aio", reusable=one)
    nobody = flyte.TaskEnvironment("nobody", reusable=one)


    @nobody.task
    def nobody_serves(x: int) -> int:
        return x


    @app.task(name="plain_double")
    def plain_double(x: int) -> int:
        return 2 * x


    @app.task(name="plain.waits")
    def plain_waits() -> list[Any]:
        said = []
        for wait in (double.delay(1).get, plain_double.delay(1).get, group(double.s(1))().get):
            try:
                said.append(wait(timeout=20))
            except RuntimeError as exc:
                said.append(str(exc).partition("!")[0])
        with allow_join_result():
            said += [double.delay(1).get(timeout=20), *group(double.s(n) for n in (2, 3))().get(timeout=20)]
        return said


    @snc.task
    def double(x: int) -> int:
        return 2 * x


    @snc.task
    def echo(text: str) -> str:
        return text


    @snc.task
    def total(values: list[int]) -> int:
        return sum(values)


    @snc.task
    def fails(x: int) -> int:
        raise ValueError(f"no {x}")


    @snc.task
    def waits(how: str) -> Any:
        calls = group(double.s(n) for n in range(5))
        match how:
            case "get":
                return double.delay(1).get()
            case "plain-get":
                return AsyncResult(double.delay(1).id).get()
            case "app-get":
                return app.AsyncResult(double.delay(1).id).get(timeout=20)
            case "plain-task":
                return plain_double.delay(1).get()
            case "group":
                return calls().get()
            case "group-timeout":
                return calls().get(timeout=20)
            case "join":
                return calls().join()
            case "join_native":
                return calls().join_native()
            case "iter_native":
                return sorted(meta["result"] for _, meta in calls().iter_native())
            case "callback":
                found = []
                calls().get(callback=lambda task_id, value: found.append(value))
                return sorted(found)
            case "iterate":
                return [result.get() for result in calls()]
            case "resultset":
                return ResultSet([double.delay(n) for n in range(5)]).get()
            case "foreign-resultset":
                return ResultSet([AsyncResult(double.delay(n).id) for n in range(5)]).get()
            case "mixed-group":
                return group(double.s(1), plain_double.s(2), double.s(3))().get()
            case "nested-group":
                return group(group(double.s(1), double.s(2)), double.s(3))().get()
            case "chord":
                return chord([double.s(n) for n in range(5)])(total.s()).get()
            case "chain":
                return (double.s(1) | double.s()).apply_async().get()
            case "run":
                return flyte.run(double, 1).outputs().o0
            case "run-wait":
                run = flyte.run(double, 1)
                run.wait(timeout=20)
                return run.outputs().o0
            case "map_task":
                return list(flyte.map_task(double)(x=range(5)))


    @snc.task
    def fails_in_a_group() -> list[Any]:
        try:
            group(double.s(1), fails.s(2))().get()
        except ValueError as exc:
            first = str(exc)
        values = group(double.s(1), fails.s(2))().get(propagate=False)
        return [first, values[0], str(values[1])]


    @snc.task
    def gives_up() -> str:
        try:
            group(nobody_serves.s(1), double.s(1))().get(timeout=0.5)
        except CeleryTimeoutError as exc:
            return str(exc)


    @snc.task
    def stays(name: str) -> str:
        (here / name).touch()
        while not (here / "enough").exists():
            time.sleep(0.01)
        return name


    @snc.task
    def waits_for_a_group(name: str) -> list[Any]:
        return group(stays.s(name), double.s(1))().get()


    @aio.task
    async def adouble(x: int) -> int:
        return 2 * x


    @aio.task
    async def awaits(how: str) -> Any:
        calls = group(adouble.s(n) for n in range(5))
        match how:
            case "result":
                return await adouble.delay(1)
            case "gather-group":
                return await asyncio.gather(*calls())
            case "thread-group":
                return await asyncio.to_thread(calls().get)
            case "thread-plain":
                return await asyncio.to_thread(AsyncResult(adouble.delay(1).id).get)
            case "run":
                return await (await flyte.run.aio(adouble, 1))
            case "map":
                return [value async for value in flyte.map.aio(adouble, range(5))]
            case "map_task":
                return await flyte.map_task(adouble)(x=range(5))
            case "task-group":
                async with asyncio.TaskGroup() as tasks:
                    made = [tasks.create_task(adouble(n)) for n in range(5)]
                return [task.result() for task in made]
            case "as_completed":
                return sorted([await each for each in asyncio.as_completed([adouble(n) for n in range(5)])])
            case "wait":
                done, _ = await asyncio.wait([asyncio.ensure_future(adouble(n)) for n in range(5)])
                return sorted(task.result() for task in done)
            case "sync-child":
                return await double.aio(1)


    @aio.task
    async def blocks(how: str) -> Any:
        calls = group(adouble.s(n) for n in range(2))
        match how:
            case "get":
                adouble.delay(1).get()
            case "plain-get":
                AsyncResult(adouble.delay(1).id).get()
            case "group":
                calls().get()
            case "join":
                calls().join()
            case "call":
                double(1)
            case "run":
                flyte.run(adouble, 1).wait()
            case "map":
                list(flyte.map(adouble, [1]))


    @aio.task
    async def waits_on_a_thread(task_id: str) -> str:
        try:
            await asyncio.to_thread(AsyncResult(task_id).get)
        finally:
            (here / "thread-over").touch()


    # -- Circles ------------------------------------------------------------------------------------------------------


    def get(kind: str, task_id: str, timeout: float | None = None) -> Any:
        return (snc_waits_for if kind == "ours" else app).AsyncResult(task_id).get(timeout=timeout)


    @snc.task
    def snc_waits_for(task_id: str, kind: str = "ours") -> str:
        return f"got {get(kind, task_id)}"


    @snc.task
    def snc_waits_a_little(task_id: str, timeout: float) -> str:
        try:
            return get("ours", task_id, timeout)
        except CeleryTimeoutError:
            return "enough"


    @snc.task
    def catches(task_id: str) -> str:
        try:
            return get("ours", task_id)
        except flyte.errors.StarvationError as exc:
            return f"caught {exc}"


    @aio.task
    async def aio_waits_for(task_id: str) -> str:
        return f"got {await aio_waits_for.AsyncResult(task_id)}"


    @aio.task
    async def aio_waits_for_all(task_ids: list[str]) -> list[str]:
        return await asyncio.gather(*(aio_waits_for.AsyncResult(each) for each in task_ids))


    @aio.task
    async def aio_child_waits_for(task_id: str) -> str:
        return await aio_waits_for(task_id)


    @aio.task
    async def parent_of_a_wait_for_me(deep: int) -> str:
        return await waits_for_an_ancestor(flyte.ctx().action.name, deep)


    @aio.task
    async def waits_for_an_ancestor(task_id: str, deep: int) -> str:
        if deep:
            return await waits_for_an_ancestor(task_id, deep - 1)
        return await parent_of_a_wait_for_me.AsyncResult(task_id)
"""


@pytest.fixture(scope="module")
def project(
    redis_server: RedisServer, _redis_databases: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """A project with one slot for sync tasks, one for async ones, and a plain worker."""
    project = Project(tmp_path_factory.mktemp("waits"), redis_server.url(next(_redis_databases)))
    project.write(SOURCE)
    try:
        for environment in ("snc", "aio"):
            project.start(environment, ready=False)
        project.start("--concurrency", "1", "-Q", "celery,plain", command="worker", ready=False)
        for worker in project.workers:
            worker.wait_ready()
        yield project
    finally:
        project.close()


@pytest.fixture
def client(project: Project) -> Iterator[redis.Redis]:
    """Looks at the server."""
    with redis.Redis.from_url(project.url, decode_responses=True) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_is_left(project: Project, client: redis.Redis) -> Iterator[None]:
    """After each test no task waits, and nothing is noted of one."""
    yield

    def over() -> bool:
        waits = [each for name in ("snc", "aio") if (each := project.status(name))["running"] or each["suspended"]]
        return not waits and not client.keys(wait_key("*"))

    project.wait(over, description="no waits")


@pytest.mark.parametrize(
    ("how", "value"),
    [
        *[(how, 2) for how in ("get", "plain-get", "app-get", "plain-task", "run", "run-wait")],
        *[(how, [0, 2, 4, 6, 8]) for how in ("group", "group-timeout", "join", "join_native", "iter_native")],
        *[(how, [0, 2, 4, 6, 8]) for how in ("callback", "iterate", "resultset", "foreign-resultset", "map_task")],
        ("mixed-group", [2, 4, 6]),
        ("nested-group", [2, 4, 6]),
        ("chord", 20),
        ("chain", 4),
    ],
)
def test_a_sync_task_that_waits_holds_no_slot(project: Project, how: str, value: Any) -> None:
    assert project.call("snc.waits", how) == value


@pytest.mark.parametrize(
    ("how", "value"),
    [
        *[(how, 2) for how in ("result", "thread-plain", "run", "sync-child")],
        *[(how, [0, 2, 4, 6, 8]) for how in ("gather-group", "thread-group", "map", "map_task")],
        *[(how, [0, 2, 4, 6, 8]) for how in ("task-group", "as_completed", "wait")],
    ],
)
def test_an_async_task_that_waits_holds_no_slot(project: Project, how: str, value: Any) -> None:
    assert project.call("aio.awaits", how) == value


@pytest.mark.parametrize("how", ["get", "plain-get", "group", "join", "call", "run", "map"])
def test_what_would_block_the_event_loop_says_what_to_write_instead(project: Project, how: str) -> None:
    with pytest.raises(SyncTaskCallInAsyncContextError, match=r"await |\.aio"):
        project.call("aio.blocks", how)


def test_celerys_guard_stays_for_plain_tasks(project: Project) -> None:
    never = "Never call result.get() within a task"
    assert project.call("plain.waits") == [never, never, never, 2, 4, 6]


def test_failures_in_a_group(project: Project) -> None:
    assert project.call("snc.fails_in_a_group") == ["no 2", 2, "no 2"]


def test_a_group_that_takes_too_long(project: Project) -> None:
    assert project.call("snc.gives_up").startswith("No result of ")


def test_a_task_that_waits_for_a_group_can_be_ended(project: Project) -> None:
    pids = project.pids("snc")
    result = project.send("snc.waits_for_a_group", "in-a-group")
    project.wait((project.folder / "in-a-group").exists)
    project.wait(lambda: project.status("snc")["suspended"] == 1)
    project.celery_app.control.revoke(result.id, terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    (project.folder / "enough").touch()
    project.wait(lambda: not project.status("snc")["running"])
    (project.folder / "enough").unlink()
    assert project.pids("snc") == pids, "it was ended alone"


def test_an_async_task_that_waits_on_a_thread_can_be_ended(project: Project) -> None:
    pids = project.pids("aio")
    result = project.send("aio.waits_on_a_thread", str(uuid4()))
    project.wait(lambda: project.status("aio")["suspended"] == 1)
    project.celery_app.control.revoke(result.id, terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    project.wait((project.folder / "thread-over").exists)
    assert project.pids("aio") == pids


# -- Waits that would never end --------------------------------------------------------------------------------------


def pair(project: Project, first: str, second: str, *more: Any) -> tuple[str, str, list[Any]]:
    """Two tasks that wait for each other: their ids, and what became of each."""
    ids = str(uuid4()), str(uuid4())
    started = time.monotonic()
    results = [
        project.send(first, ids[1], *more, task_id=ids[0]),
        project.send(second, ids[0], *more, task_id=ids[1]),
    ]
    outcomes = [result.get(timeout=PATIENCE, propagate=False) for result in results]
    print(f"{first} and {second}: {time.monotonic() - started:.1f} s")
    return *ids, outcomes


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("snc.snc_waits_for", "snc.snc_waits_for"),
        ("aio.aio_waits_for", "aio.aio_waits_for"),
        ("snc.snc_waits_for", "aio.aio_waits_for"),
    ],
)
def test_two_tasks_that_wait_for_each_other_are_told_so(project: Project, first: str, second: str) -> None:
    a, b, outcomes = pair(project, first, second)
    assert [type(each) for each in outcomes] == [StarvationError, StarvationError]
    for name in (f"{first}[{a}]", f"{second}[{b}]"):
        assert name in str(outcomes[0])
    assert str(outcomes[0]) == str(outcomes[1]), "one was told, and its failure is the other one's result"


def test_the_others_of_a_circle_go_on_when_one_copes(project: Project) -> None:
    _, _, outcomes = pair(project, "snc.catches", "snc.catches")
    caught = [each for each in outcomes if each.startswith("caught")]
    assert len(caught) in (1, 2)
    assert all(each in caught or each in (caught[0], caught[-1]) for each in outcomes)


def test_results_by_id_alone_close_circles_too(project: Project) -> None:
    _, _, outcomes = pair(project, "snc.snc_waits_for", "snc.snc_waits_for", "plain")
    assert [type(each) for each in outcomes] == [StarvationError, StarvationError]


def test_a_circle_through_a_child(project: Project) -> None:
    """A calls C and waits; C waits for B, B for A."""
    a, b, outcomes = pair(project, "aio.aio_child_waits_for", "aio.aio_waits_for")
    assert [type(each) for each in outcomes] == [StarvationError, StarvationError]
    for name in (f"aio.aio_child_waits_for[{a}]", f"aio.aio_waits_for[{b}]", "aio.aio_waits_for["):
        assert name in str(outcomes[0])
    assert str(outcomes[0]).count("aio.aio_waits_for[") >= 2


def test_a_circle_among_other_waits_is_found_when_those_are_over(project: Project) -> None:
    a, b, other = (str(uuid4()) for _ in range(3))
    first = project.send("aio.aio_waits_for_all", [b, other], task_id=a)
    second = project.send("aio.aio_waits_for", a, task_id=b)
    project.wait(lambda: project.status("aio")["suspended"] == 2)
    project.send("snc.echo", "done", task_id=other)
    for result in (first, second):
        with pytest.raises(StarvationError, match="waits for the result of"):
            result.get(timeout=PATIENCE)


@pytest.mark.parametrize("task", ["snc.snc_waits_for", "aio.aio_waits_for"])
def test_a_task_that_waits_for_itself_is_told_so_at_once(project: Project, task: str) -> None:
    task_id = str(uuid4())
    with pytest.raises(StarvationError, match=rf"{task}\[{task_id}\] waits for its own result"):
        project.send(task, task_id, task_id=task_id).get(timeout=PATIENCE)


@pytest.mark.parametrize("deep", [0, 2, 55])
def test_a_task_that_waits_for_its_ancestor_is_told_so(project: Project, deep: int) -> None:
    """Of an ancestor more than fifty levels up its message does not know."""
    result = project.send("aio.parent_of_a_wait_for_me", deep)
    with pytest.raises(StarvationError, match=rf"parent_of_a_wait_for_me\[{result.id}\]"):
        result.get(timeout=PATIENCE)


def test_a_circle_that_a_time_out_ends_is_none(project: Project) -> None:
    ids = str(uuid4()), str(uuid4())
    first = project.send("snc.snc_waits_a_little", ids[1], 6.0, task_id=ids[0])
    second = project.send("snc.snc_waits_for", ids[0], task_id=ids[1])
    assert first.get(timeout=PATIENCE) == "enough"
    assert second.get(timeout=PATIENCE) == "got enough"


def test_only_lasting_waits_are_noted_and_not_after_their_end(project: Project, client: redis.Redis) -> None:
    name = "noted"
    result = project.send("snc.waits_for_a_group", name)
    project.wait((project.folder / name).exists)
    project.wait(lambda: client.keys(wait_key("*")) == [wait_key(result.id)])
    entry = client.get(wait_key(result.id))
    assert isinstance(entry, str) and f"snc.waits_for_a_group[{result.id}]" in entry
    assert 0 < client.pttl(wait_key(result.id)) <= 2500
    (project.folder / "enough").touch()
    assert result.get(timeout=PATIENCE) == [name, 2]
    (project.folder / "enough").unlink()


def test_what_a_dead_replica_has_noted_is_no_circle(project: Project, client: redis.Redis) -> None:
    """Its task runs again from the start, and whoever waits for that one goes on waiting."""
    a, b = str(uuid4()), str(uuid4())
    # What is left of B, which waited for A: nobody renews the entry.
    client.set(wait_key(b), json.dumps({"name": f"b[{b}]", "for": [a]}), px=2500)
    result = project.send("aio.aio_waits_for", b, task_id=a)
    project.wait(lambda: client.exists(wait_key(a)))
    project.wait(lambda: not client.exists(wait_key(b)))
    project.send("snc.echo", "done", task_id=b)
    assert result.get(timeout=PATIENCE) == "got done"
