"""Results of tasks with a cache: computed once, found by every kind of call, and only where they should be."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import redis
from celery import chain, chord, group
from celery.result import AsyncResult

import flyte_celery as flyte
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.redis_server import RedisServer
from tests.helpers.waiting import wait_until
from tests.helpers.workers import run_python, write_module

SOURCE = '''
    import asyncio
    import os
    import time
    from dataclasses import dataclass
    from datetime import datetime, timedelta

    import redis
    from pydantic import BaseModel

    import flyte_celery as flyte

    app = flyte.init()
    aio = flyte.TaskEnvironment("cached", reusable=flyte.ReusePolicy(replicas=2, concurrency=500, idle_ttl=3600))
    snc = flyte.TaskEnvironment("cached-sync", reusable=flyte.ReusePolicy(replicas=2, idle_ttl=3600))
    notes = redis.Redis.from_url(app.conf.broker_url)


    def count(key: str) -> int:
        """How often a task has run with a key."""
        return notes.incr(f"runs:{key}")


    @dataclass
    class Point:
        x: int
        at: datetime


    class Model(BaseModel):
        name: str
        points: list[Point]


    @aio.task(cache="auto")
    async def square(key: str, x: int) -> int:
        count(f"{key}:{x}")
        return x * x


    @snc.task(cache="auto")
    def square_sync(key: str, x: int) -> int:
        count(f"{key}:{x}")
        return x * x


    @aio.task(cache="auto")
    async def add(a: int, b: int, key: str = "") -> int:
        count(key)
        return a + b


    @aio.task(cache=flyte.Cache("auto", ignored_inputs=("key", "tag")))
    async def ignoring(x: int, key: str, tag: str) -> str:
        count(key)
        return tag


    @aio.task(cache=flyte.Cache("auto", max_age=timedelta(milliseconds=300)))
    async def short(key: str) -> int:
        return count(key)


    @aio.task(cache="override")
    async def always(key: str) -> int:
        return count(key)


    @aio.task(cache="auto")
    async def model(key: str, at: datetime, point: Point) -> Model:
        count(key)
        return Model(name=key, points=[point, Point(2, at)])


    @snc.task(cache="auto")
    def model_sync(key: str, at: datetime, point: Point) -> Model:
        count(key)
        return Model(name=key, points=[point, Point(2, at)])


    @aio.task(cache="auto")
    async def failing(key: str) -> int:
        if count(key) < 3:
            raise ValueError("not yet")
        return 3


    @aio.task
    async def plain(key: str) -> int:
        return count(key)


    @aio.task
    async def total(values: list[int]) -> int:
        return sum(values)


    @aio.task
    async def parent(key: str, n: int) -> int:
        return sum(await asyncio.gather(*(square(key, i) for i in range(n))))


    @snc.task
    def parent_sync(key: str, n: int) -> int:
        return sum(square_sync(key, i) for i in range(n)) + sum(flyte.map(square_sync, [key] * n, range(n)))


    @aio.task(cache="auto")
    async def large(key: str, size: int) -> str:
        count(key)
        return "x" * size


    ONE = flyte.Cache("auto", serialize=True)


    async def until(key: str) -> None:
        while not notes.exists(f"go:{key}"):
            await asyncio.sleep(0.01)


    @aio.task(cache=ONE)
    async def one(key: str) -> int:
        runs = count(key)
        await until(key)
        return runs


    @snc.task(cache=ONE)
    def one_sync(key: str) -> int:
        runs = count(key)
        while not notes.exists(f"go:{key}"):
            time.sleep(0.01)
        return runs


    @aio.task(cache=ONE)
    async def one_large(key: str) -> str:
        runs = count(key)
        await until(key)
        return f"{runs}" * 20_000


    @aio.task(cache=ONE, retries=0)
    async def one_failing(key: str) -> int:
        runs = count(key)
        await until(key)
        if runs < 3:
            raise ValueError(f"attempt {runs}")
        return runs


    @aio.task(cache=flyte.Cache("auto", serialize=True, ignored_inputs="depth"))
    async def recursive(key: str, depth: int) -> int:
        count(key)
        return await recursive(key, depth - 1) + 1 if depth else 0


    @aio.task(cache="auto")
    async def nested(key: str) -> int:
        return await square(key, 2) + await square(key, 3)
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of this module's own: it counts what is asked."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shared(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with a worker for each of its environments."""
    project = Project(tmp_path_factory.mktemp("cache"), server.url())
    project.write(SOURCE)
    try:
        for environment in ("cached", "cached-sync"):
            project.start(environment, env={"FLYTE_CELERY_CACHE_RESULT_BYTES": "10000"}, ready=False)
        for worker in project.workers:
            worker.wait_ready()
        yield project
    finally:
        project.close()


@pytest.fixture(scope="module")
def proj(shared: Project) -> Iterator[ModuleType]:
    with shared.imported() as module:
        yield module
        module.notes.close()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """What tells this test's calls from others."""
    return request.node.name


@pytest.fixture
def notes(proj: ModuleType) -> redis.Redis:
    """The project's Redis."""
    client: redis.Redis = proj.notes
    return client


def runs(notes: redis.Redis, key: str) -> int:
    """How often tasks have run with a key."""
    return int(notes.get(f"runs:{key}") or 0)  # type: ignore[arg-type]


def published(notes: redis.Redis) -> int:
    """Messages that were ever pushed to a list."""
    stats: Any = notes.info("commandstats")
    return int(stats.get("cmdstat_lpush", {}).get("calls", 0))


# -- Hits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["square", "square_sync"])
def test_every_kind_of_call_is_answered_after_the_first(
    proj: ModuleType, notes: redis.Redis, key: str, name: str
) -> None:
    """Without a message, and with a handle that is done and has the id of the task that ran."""
    task = getattr(proj, name)
    first = flyte.run(task, key, 3)
    assert first.outputs(timeout=PATIENCE) == (9,) and not first.cached
    before = published(notes)

    run = flyte.run(task, key, 3)
    assert run.cached and run.done() and run.outputs() == (9,) and run.id == first.id
    assert run.phase == "succeeded"
    result = task.delay(key, x=3)
    assert result.cached and result.ready() and result.successful()
    assert (result.state, result.get(), result.result, result.id) == ("SUCCESS", 9, 9, first.id)
    seen: list[Any] = []
    result.then(lambda each: seen.append(each.id))
    assert seen == [first.id]
    assert task.apply_async((key, 3)).get() == 9
    assert task.s(key, 3).delay().get() == task.si(key, 3).apply_async().get() == 9
    assert list(flyte.map(task, [key] * 3, [3] * 3)) == [9, 9, 9]

    async def from_asyncio() -> None:
        run = await flyte.run.aio(task, key, 3)
        assert run.cached and await run == 9
        assert await task.delay(key, 3) == 9
        assert [value async for value in flyte.map.aio(task, [key] * 3, [3] * 3)] == [9, 9, 9]
        assert await asyncio.gather(*(flyte.run.aio(task, key, 3) for _ in range(50)))

    asyncio.run(from_asyncio())
    assert published(notes) == before, "A hit publishes nothing."
    assert runs(notes, f"{key}:3") == 1


def test_a_hit_costs_one_command(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """Whatever the script does within it."""
    proj.square.delay(key, 4).get(timeout=PATIENCE)
    with notes.monitor() as monitor:
        assert proj.square.delay(key, 4).get() == 16
        notes.echo("end")
        asked = []
        for command in monitor.listen():
            if command["command"] == "ECHO end":
                break
            if command["client_type"] != "lua" and "cached.square:" in command["command"]:
                asked.append(command["command"])
    assert len(asked) == 1


def test_another_process_reads_a_hit_by_its_id(shared: Project, proj: ModuleType, key: str) -> None:
    """Also one that knows nothing of this package, and when the result itself has expired."""
    proj.square.delay(key, 5).get(timeout=PATIENCE)
    hit = proj.square.delay(key, 5)
    elsewhere = AsyncResult(hit.id, app=shared.celery_app)
    assert elsewhere.get(timeout=PATIENCE) == 25
    elsewhere.forget()
    again = AsyncResult(proj.square.delay(key, 5).id, app=shared.celery_app)
    assert again.id == hit.id and again.get(timeout=PATIENCE) == 25


def test_an_id_that_the_caller_chose_has_the_result(shared: Project, proj: ModuleType, key: str) -> None:
    """For this process and every other one."""
    proj.square.delay(key, 6).get(timeout=PATIENCE)
    waiting = proj.square.AsyncResult(f"own-{key}")
    result = proj.square.apply_async((key, 6), task_id=f"own-{key}")
    assert result.id == f"own-{key}" and result.cached and result.get() == 36
    assert waiting.get(timeout=PATIENCE) == 36 and waiting.cached
    elsewhere = AsyncResult(f"own-{key}", app=shared.celery_app)
    assert elsewhere.get(timeout=PATIENCE) == 36


@pytest.mark.parametrize("name", ["model", "model_sync"])
def test_values_have_their_types(proj: ModuleType, notes: redis.Redis, key: str, name: str) -> None:
    """Of arguments in the key, and of the result."""
    at = datetime(2026, 11, 21, 12, tzinfo=UTC)
    task = getattr(proj, name)
    values = [task.delay(key, at, proj.Point(1, at)).get(timeout=PATIENCE) for _ in range(2)]
    values.append(flyte.run(task, key, at, point=proj.Point(1, at)).outputs()[0])
    assert values == [proj.Model(name=key, points=[proj.Point(1, at), proj.Point(2, at)])] * 3
    assert type(values[2].points[0]) is proj.Point
    task.delay(key, at.replace(hour=13), proj.Point(1, at)).get(timeout=PATIENCE)
    assert runs(notes, key) == 2


def test_a_sender_that_has_not_imported_the_task_is_answered_by_the_replica(
    shared: Project, proj: ModuleType, notes: redis.Redis, key: str
) -> None:
    """Its message is queued, and no function runs."""
    assert shared.call("cached.square", key, 7) == 49
    assert shared.call("cached.square", key, 7) == 49
    assert shared.call("cached-sync.square_sync", key, 8) == 64
    assert shared.call("cached-sync.square_sync", key, 8) == 64
    assert runs(notes, f"{key}:7") == runs(notes, f"{key}:8") == 1
    result = proj.square.AsyncResult(shared.send("cached.square", key, 7).id)
    assert result.get(timeout=PATIENCE) == 49 and result.cached
    assert proj.square.delay(key, 7).cached, "The client has the key of the replica."


def test_a_map_computes_what_is_missing(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """Half of it is there, in any order, and inputs may be slow."""
    list(flyte.map(proj.square, [key] * 150, range(0, 300, 2)))
    before = published(notes)
    assert list(flyte.map(proj.square, [key] * 300, range(300))) == [x * x for x in range(300)]
    assert 0 < published(notes) - before < 50
    assert all(runs(notes, f"{key}:{x}") == 1 for x in range(300))
    assert list(flyte.map(proj.square, (key for _ in range(5)), iter(range(5)))) == [0, 1, 4, 9, 16]
    found = list(flyte.map(proj.square, [key] * 3, [1, "two", 3]))
    assert found[0] == 1 and isinstance(found[1], TypeError) and found[2] == 9


# -- Canvas ----------------------------------------------------------------------------------------------------------


def test_equal_calls_of_one_moment_compute_no_more_often_than_there_are_slots(
    proj: ModuleType, notes: redis.Redis, key: str
) -> None:
    """All of them were missing when they were made; each looks once more when its turn has come."""
    assert list(flyte.map(proj.square_sync, [key] * 60, [3] * 60)) == [9] * 60
    assert 1 <= int(notes.get(f"runs:{key}:3") or 0) <= 2  # type: ignore[arg-type]


def test_a_chain_of_hits_makes_no_message(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """And its results are those of a chain that ran."""

    def flow() -> Any:
        return chain(proj.add.s(1, 2, key), proj.add.s(10, key), proj.add.s(100, key=key))

    first = flow().apply_async()
    assert first.get(timeout=PATIENCE) == 113
    before = published(notes)
    second = flow().apply_async()
    assert second.get(timeout=PATIENCE) == 113
    assert [second.get(), second.parent.get(), second.parent.parent.get()] == [113, 13, 3]
    assert second.id != first.id and second.cached and second.parent.cached
    assert published(notes) == before
    assert runs(notes, key) == 3


def test_a_chain_goes_on_where_the_hits_end(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """Whatever comes next: a task that is not cached, a group, a chord."""
    proj.add.delay(1, 2, key).get(timeout=PATIENCE)
    assert chain(proj.add.s(1, 2, key), proj.add.s(7, key)).apply_async().get(timeout=PATIENCE) == 10
    many = chain(proj.add.s(1, 2, key), group(proj.add.s(i, key) for i in range(3)), proj.total.s()).apply_async()
    assert many.get(timeout=PATIENCE) == 12
    again = chain(proj.add.s(1, 2, key), group(proj.add.s(i, key) for i in range(3)), proj.total.s()).apply_async()
    assert again.get(timeout=PATIENCE) == 12
    assert runs(notes, key) == 5


def test_groups_and_chords_use_the_cache(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """A chord's tasks are answered by their replica, because they count when they end."""
    tasks = group(proj.square.s(key, i) for i in range(5))
    assert tasks.apply_async().get(timeout=PATIENCE) == [0, 1, 4, 9, 16]
    before = published(notes)
    result = group(proj.square.s(key, i) for i in range(5)).apply_async()
    assert result.get(timeout=PATIENCE) == [0, 1, 4, 9, 16] and all(each.cached for each in result)
    assert published(notes) == before
    for _ in range(2):
        body = chord([proj.square.s(key, i) for i in range(6)], proj.total.s()).apply_async()
        assert body.get(timeout=PATIENCE) == 55
    assert all(runs(notes, f"{key}:{i}") == 1 for i in range(6))


def test_links_are_called_for_hits(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """The replica answers, and Celery calls what is linked."""
    proj.square.delay(key, 3).get(timeout=PATIENCE)
    proj.square.apply_async((key, 3), link=proj.plain.si(f"{key}-link"), link_error=proj.plain.si(f"{key}-err"))
    wait_until(lambda: runs(notes, f"{key}-link") == 1, PATIENCE, "the linked task")
    assert runs(notes, f"{key}:3") == 1 and runs(notes, f"{key}-err") == 0


@pytest.mark.parametrize("options", [{"countdown": 0.05}, {"ignore_result": True}])
def test_calls_that_only_their_task_can_answer_are_queued(
    proj: ModuleType, notes: redis.Redis, key: str, options: dict[str, Any]
) -> None:
    """A call for later is looked up later; one without a result has nothing to do with the cache."""
    proj.square.delay(key, 3).get(timeout=PATIENCE)
    result = proj.square.apply_async((key, 3), **options)
    assert not result.hit
    if "countdown" in options:
        assert result.get(timeout=PATIENCE) == 9 and result.cached
        assert runs(notes, f"{key}:3") == 1
    else:
        wait_until(lambda: runs(notes, f"{key}:3") == 2, PATIENCE, "its run")


# -- Inside of tasks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["parent", "parent_sync"])
def test_children_are_answered(shared: Project, notes: redis.Redis, key: str, name: str) -> None:
    """From async and sync parents, alone and by map."""
    environment = "cached" if name == "parent" else "cached-sync"
    values = [shared.call(f"{environment}.{name}", key, 5) for _ in range(2)]
    assert values == [30 if name == "parent" else 60] * 2
    assert all(runs(notes, f"{key}:{i}") == 1 for i in range(5))


def test_a_cached_parent_calls_no_children(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """And what its children computed is there for others."""
    assert flyte.run(proj.nested, key).outputs(timeout=PATIENCE) == (13,)
    before = published(notes)
    assert flyte.run(proj.nested, key).outputs() == (13,) and proj.square.delay(key, 3).cached
    assert published(notes) == before


# -- What is not a hit -----------------------------------------------------------------------------------------------


def test_ignored_inputs_do_not_count(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """The first call's result answers all."""
    assert [proj.ignoring.delay(1, key, tag).get(timeout=PATIENCE) for tag in "abc"] == ["a", "a", "a"]
    assert runs(notes, key) == 1


def test_a_result_that_is_too_old_is_computed_again(proj: ModuleType, key: str) -> None:
    """max_age, by the server's clock."""
    assert proj.short.delay(key).get(timeout=PATIENCE) == 1
    wait_until(lambda: proj.short.delay(key).get(timeout=PATIENCE) == 2, PATIENCE, "a new result")


def test_failures_are_not_cached(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """Each call tries again until one succeeds."""
    for _ in range(2):
        with pytest.raises(ValueError, match="not yet"):
            proj.failing.delay(key).get(timeout=PATIENCE)
    assert [proj.failing.delay(key).get(timeout=PATIENCE) for _ in range(3)] == [3, 3, 3]
    assert runs(notes, key) == 3


def test_override_always_runs_and_renews(proj: ModuleType, key: str) -> None:
    """For others, who ask for the same with auto."""
    assert [proj.always.delay(key).get(timeout=PATIENCE) for _ in range(2)] == [1, 2]
    assert proj.always.override(cache="auto").delay(key).get(timeout=PATIENCE) == 2


def test_a_call_overrides_the_cache(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """Switched on, off, renewed, or of another version or salt; in signatures, too."""

    def call(cache: Any) -> int:
        value: int = proj.plain.override(cache=cache).delay(key).get(timeout=PATIENCE)
        return value

    assert [call("auto"), call("auto")] == [1, 1]
    assert proj.plain.delay(key).get(timeout=PATIENCE) == 2, "The task itself has no cache."
    assert [call(flyte.Cache("auto", salt="s")), call(flyte.Cache("auto", salt="s"))] == [3, 3]
    assert [call(flyte.Cache("auto", "7")), call(flyte.Cache("auto", "7"))] == [4, 4]
    assert [call("disable"), call("override"), call("auto")] == [5, 6, 6]
    overridden = proj.plain.override(cache=flyte.Cache("auto", "chain"))
    for _ in range(2):
        assert chain(proj.add.s(1, 2, f"{key}-add"), overridden.si(key)).apply_async().get(timeout=PATIENCE) == 7
        assert list(flyte.map(overridden, [key])) == [7]
    assert proj.square.override(cache="disable").delay(key, 1).get(timeout=PATIENCE) == 1
    assert not proj.square.delay(key, 1).hit


def test_a_run_leaves_out_or_renews_the_cache(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """With all the tasks that it calls."""

    def run(**options: Any) -> None:
        handle = flyte.with_runcontext(**options).run(proj.nested, key)
        assert handle.outputs(timeout=PATIENCE) == (13,)

    run()
    assert runs(notes, f"{key}:2") == 1
    run(disable_run_cache=True)
    assert runs(notes, f"{key}:2") == 2
    run(overwrite_cache=True)
    assert runs(notes, f"{key}:2") == 3
    run()
    assert runs(notes, f"{key}:2") == 3


def test_another_version_of_the_code_has_results_of_its_own(shared: Project, proj: ModuleType, key: str) -> None:
    """A client with new code does not take results of the old, and a replica with old code does not make new ones."""
    proj.square.delay(key, 3).get(timeout=PATIENCE)
    shared.write(SOURCE.replace("return x * x", "return x * x + 0"), "newer")
    code = f"import newer; r = newer.square.delay({key!r}, 3); print(r.hit, r.get(timeout=20), r.cached)"
    # Its message is answered by the old code, under the old version.
    assert run_python(shared.folder, code, shared.variables).split() == ["False", "9", "True"]
    assert run_python(shared.folder, code, shared.variables).split() == ["False", "9", "True"]


def test_large_results_are_not_cached(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """The worker's setting says what is large."""
    for _ in range(2):
        assert len(proj.large.delay(key, 20_000).get(timeout=PATIENCE)) == 20_000
        assert len(proj.large.delay(f"{key}-small", 5_000).get(timeout=PATIENCE)) == 5_000
    assert runs(notes, key) == 2 and runs(notes, f"{key}-small") == 1


# -- One computes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one", "one_sync"])
def test_of_identical_calls_one_computes(
    shared: Project, proj: ModuleType, notes: redis.Redis, key: str, name: str
) -> None:
    """Twenty callers in threads, and all have its result; the others hold no slot meanwhile."""
    task = getattr(proj, name)
    with ThreadPoolExecutor(20) as threads:
        results = list(threads.map(lambda _: task.delay(key), range(20)))
        wait_until(lambda: runs(notes, key) == 1, PATIENCE, "the first to run")
        environment = task.parent_env_name
        shared.wait(lambda: shared.status(environment)["suspended"] == 19, PATIENCE, "the others to wait")
        notes.set(f"go:{key}", 1)
        assert [result.get(timeout=PATIENCE) for result in results] == [1] * 20
    assert runs(notes, key) == 1
    assert sum(result.cached for result in results) == 19


def test_a_failure_lets_the_next_one_try(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """Callers whose own task failed hear of it, the others do not."""
    results = [proj.one_failing.delay(key) for _ in range(10)]
    notes.set(f"go:{key}", 1)
    outcomes = [result.get(timeout=PATIENCE, propagate=False) for result in results]
    assert sorted(str(each) for each in outcomes) == sorted(["attempt 1", "attempt 2", *["3"] * 8])
    assert runs(notes, key) == 3


def test_a_result_that_is_too_large_lets_the_next_one_compute(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """It is not there for them."""
    results = [proj.one_large.delay(key) for _ in range(3)]
    notes.set(f"go:{key}", 1)
    assert sorted(result.get(timeout=PATIENCE)[0] for result in results) == ["1", "2", "3"]


def test_a_revoked_one_is_replaced_and_one_that_waits_can_be_revoked(
    proj: ModuleType, notes: redis.Redis, key: str
) -> None:
    """Revoking a caller's task ends that alone."""
    leader = proj.one.delay(key)
    wait_until(lambda: runs(notes, key) == 1, PATIENCE, "the first to run")
    others = [proj.one.delay(key) for _ in range(3)]
    others[0].revoke(terminate=True)
    leader.revoke(terminate=True)
    wait_until(lambda: runs(notes, key) == 2, PATIENCE, "another to run")
    notes.set(f"go:{key}", 1)
    assert [result.get(timeout=PATIENCE) for result in others[1:]] == [2, 2]
    assert {leader.get(timeout=PATIENCE, propagate=False).__class__.__name__ for _ in "a"} == {"TaskRevokedError"}


def test_a_task_does_not_wait_for_itself(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """A child with its parent's key computes: its parent would wait for it for ever."""
    assert flyte.run(proj.recursive, key, 3).outputs(timeout=PATIENCE) == (3,)
    assert runs(notes, key) == 4


@pytest.mark.parametrize("name", ["one", "one_sync"])
def test_a_killed_replica_is_replaced(
    shared: Project, proj: ModuleType, notes: redis.Redis, key: str, name: str
) -> None:
    """Its task runs again, and the others get that result."""
    task = getattr(proj, name)
    results = [task.delay(key)]
    wait_until(lambda: runs(notes, key) == 1, PATIENCE, "the first to run")
    results += [task.delay(key) for _ in range(3)]
    for pid in shared.pids(task.parent_env_name):
        os.kill(pid, signal.SIGKILL)
    notes.set(f"go:{key}", 1)
    values = [result.get(timeout=2 * PATIENCE) for result in results]
    assert len(set(values)) == 1 and values[0] == runs(notes, key)


@pytest.mark.parametrize("again", [True, False], ids=["comes back", "is given up"])
def test_a_killed_worker_is_replaced(tmp_path: Path, redis_url: str, key: str, again: bool) -> None:
    """By its own task on another worker; or by another caller's when it may not run again."""
    project = Project(tmp_path, redis_url)
    source = SOURCE if again else SOURCE.replace("@aio.task(cache=ONE)", "@aio.task(cache=ONE, max_attempts=1)")
    project.write(source)
    lease = {"FLYTE_CELERY_LEASE": "1"}
    notes = redis.Redis.from_url(redis_url)
    try:
        first = project.start("cached", "-n", "cached@first", env=lease)
        results = [project.send("cached.one", key)]
        wait_until(lambda: runs(notes, key) == 1, PATIENCE, "the first to run")
        project.start("cached", "-n", "cached@second", env=lease)
        results += [project.send("cached.one", key) for _ in range(4)]
        first.kill()
        project.wait(lambda: not first.processes(), PATIENCE, "the end of its replicas")
        results += [project.send("cached.one", key) for _ in range(4)]
        notes.set(f"go:{key}", 1)
        outcomes = [result.get(timeout=2 * PATIENCE, propagate=False) for result in results]
        assert set(outcomes[-4:]) == {2} and runs(notes, key) == 2
        lost = [type(each).__name__ for each in outcomes if each != 2]
        assert lost == ([] if again else ["WorkerLostError"] * len(lost))
        assert again or outcomes[0] != 2, "Those of the others that waited on that worker are lost with it."
    finally:
        notes.close()
        project.close()


# -- Operating -------------------------------------------------------------------------------------------------------


def test_the_command_line_shows_and_clears(shared: Project, proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """By environment and by task."""
    for _ in range(2):
        proj.square.delay(key, 3).get(timeout=PATIENCE)
        proj.short.delay(key).get(timeout=PATIENCE)
    shown = json.loads(shared.celery("env", "cache", "show", "cached", "--json").stdout)
    tasks = shown["tasks"]
    assert tasks["cached.square"]["entries"] >= 1 and tasks["cached.square"]["hits"] >= 1
    assert tasks["cached.square"]["bytes"] > 100 and "cached.total" not in tasks
    text = shared.celery("env", "cache", "show", "cached", "square").stdout
    assert "cached.square" in text and "cached.short" not in text
    cleared = shared.celery("env", "cache", "clear", "cached", "cached.square")
    assert "cached results of cached.square are forgotten" in cleared.stdout
    assert not proj.square.delay(key, 3).hit
    wait_until(lambda: runs(notes, f"{key}:3") == 2, PATIENCE, "a new run")
    shared.celery("env", "cache", "clear", "cached")
    after = json.loads(shared.celery("env", "cache", "show", "cached", "--json").stdout)["tasks"]
    assert all(each["entries"] == 0 for each in after.values())
    wrong = shared.celery("env", "cache", "show", "cached", "nobody")
    assert wrong.returncode == 2 and "has no task 'nobody'" in wrong.stderr
    listed = shared.celery("env", "list").stdout
    assert "cached.square  cached: auto" in listed and "cached.one  cached: auto, one computes at a time" in listed


def test_without_redis_there_is_no_cache(tmp_path: Path, key: str) -> None:
    """Which is said once, and calls are made."""
    write_module(tmp_path, SOURCE.replace("redis.Redis.from_url(app.conf.broker_url)", "None"))
    variables = {"FLYTE_CELERY_BROKER_URL": "memory://", "FLYTE_CELERY_RESULT_BACKEND": "cache+memory://"}
    code = f"""
        import logging, sys
        logging.basicConfig(stream=sys.stdout, format="%(message)s", level="WARNING")
        import proj
        for _ in range(3):
            print(proj.square.delay({key!r}, 1).cached)
        """
    lines = run_python(tmp_path, code, variables).splitlines()
    assert lines.count("False") == 3
    (said,) = [line for line in lines if line.startswith("cached.square asks for a cache, and there is none")]
    assert "cache+memory://" in said and "Set result_backend to a Redis" in said


def test_a_redis_that_does_not_answer_makes_misses(own_redis_server: RedisServer, tmp_path: Path, key: str) -> None:
    """The broker is another one, and the call is made."""
    write_module(tmp_path, SOURCE.replace("redis.Redis.from_url(app.conf.broker_url)", "None"))
    variables = {"FLYTE_CELERY_BROKER_URL": "memory://", "FLYTE_CELERY_RESULT_BACKEND": own_redis_server.url()}
    own_redis_server.stop()
    code = f"import proj; print(proj.square.delay({key!r}, 1).hit)"
    assert run_python(tmp_path, code, variables).split() == ["False"]


def test_threads_of_a_process_share_the_cache(proj: ModuleType, notes: redis.Redis, key: str) -> None:
    """Many at once, with event loops of their own."""
    proj.square.delay(key, 2).get(timeout=PATIENCE)

    def use(_: int) -> set[int]:
        return {value for _ in range(50) for value in (proj.square.delay(key, 2).get(), asyncio.run(awaited()))}

    async def awaited() -> int:
        value: int = await (await flyte.run.aio(proj.square, key, 2))
        return value

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(use, range(8))) == [{4}] * 8
    assert runs(notes, f"{key}:2") == 1
