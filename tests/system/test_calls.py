"""Flyte's face over real workers: `flyte.map`, `flyte.run`'s handle, and children called from tasks."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import tracemalloc
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError

import flyte_celery as flyte
from flyte_celery.client.mapping import WINDOW
from flyte_celery.client.run_handle import ActionPhase, Run
from flyte_celery.errors import ActionAbortedError, RuntimeUserError
from flyte_celery.names import wait_key
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.redis_server import RedisServer
from tests.helpers.waiting import wait_until

SOURCE = """
    import asyncio
    import os
    import warnings
    from pathlib import Path
    from typing import Any

    import flyte_celery as flyte

    app = flyte.init(result_expires=3600)
    here = Path(__file__).parent
    aio = flyte.TaskEnvironment("calls", reusable=flyte.ReusePolicy(replicas=1, concurrency=50, idle_ttl=3600))
    snc = flyte.TaskEnvironment("sync-calls", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600))
    snc2 = flyte.TaskEnvironment("more-calls", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600))
    unserved = flyte.TaskEnvironment("unserved-calls")
    running = 0


    class OwnError(Exception):
        pass


    @aio.task
    async def add(x: int, y: int = 0) -> int:
        return x + y


    @aio.task
    async def pair(x: int, y: int) -> tuple[int, int]:
        return x, y


    @aio.task
    async def nothing() -> None:
        return None


    @aio.task
    async def invert(x: int) -> float:
        return 1 / x


    @aio.task
    async def own(x: int) -> int:
        raise OwnError(f"own {x}")


    @aio.task
    async def crowd(x: int) -> int:
        global running
        running += 1
        await asyncio.sleep(0.02)
        found = running
        running -= 1
        return found


    @aio.task
    async def stays(name: str) -> str:
        (here / name).touch()
        try:
            while not (here / f"{name}-enough").exists():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            (here / f"{name}-cancelled").touch()
            raise
        return name


    @aio.task(bind=True)
    async def says_how_far(self: Any, name: str) -> str:
        self.update_state(state="PROGRESS", meta={"done": 1})
        return await stays.func(name)


    @unserved.task
    async def unserved_task() -> None: ...


    @aio.task
    async def maps(name: str) -> list[Any]:
        return [value async for value in flyte.map.aio(stays, [f"{name}-{n}" for n in range(3)])]


    @snc.task
    def maps_sync(name: str) -> list[Any]:
        return list(flyte.map(stays, [f"{name}-{n}" for n in range(3)]))


    @snc.task
    def maps_values(n: int) -> list[Any]:
        with flyte.group("outer"):
            groups = list(flyte.map(has_no_group, range(2)))
        return [list(flyte.map(add, range(n))), list(flyte.map(invert, [0], return_exceptions=True))[0].code, groups]


    @aio.task
    async def has_no_group(n: int) -> bool:
        return flyte.ctx().group_data is None


    @aio.task
    async def catches(how: str) -> list[str]:
        caught = []
        for error in (ZeroDivisionError, flyte.errors.RuntimeUserError):
            try:
                await invert(0)
            except error as exc:
                caught.append(f"{type(exc).__name__} {exc.code} {exc}")
        try:
            await own(1)
        except OwnError as exc:
            caught.append(f"{exc.code} {exc}")
        return caught


    @snc.task
    def catches_sync() -> list[str]:
        caught = []
        for error in (ZeroDivisionError, flyte.errors.RuntimeUserError):
            try:
                invert_sync(0)
            except error as exc:
                caught.append(f"{type(exc).__name__} {exc.code} {exc}")
        return caught


    @snc.task
    def invert_sync(x: int) -> float:
        return 1 / x


    @aio.task
    async def gives_up_on(name: str) -> str:
        try:
            async with asyncio.timeout(0.5):
                return await stays(name)
        except TimeoutError:
            return "gave up"


    @aio.task
    async def first_failure_ends_the_group(name: str) -> str:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(stays(name))
                while not (here / name).exists():
                    await asyncio.sleep(0.01)
                tasks.create_task(invert(0))
        except ExceptionGroup as group:
            return str([exc.code for exc in group.exceptions])


    @snc.task
    def forks() -> int:
        with warnings.catch_warnings(action="ignore"):
            pid = os.fork()
        if not pid:
            right = False
            try:
                right = (add.delay(1, 2).get(timeout=20), add_sync(1, 2)) == (3, 3)
            finally:
                os._exit(0 if right else 1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


    @snc2.task
    def add_sync(x: int, y: int) -> int:
        return x + y


    @aio.task
    async def waits_for(name: str) -> str:
        return await stays(name)
"""


ENVIRONMENTS = ("calls", "sync-calls", "more-calls")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of this module's own, whose connections it may kill."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def project(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with its two workers."""
    project = Project(tmp_path_factory.mktemp("calls"), server.url())
    project.write(SOURCE, "calls_proj")
    try:
        for environment in ENVIRONMENTS:
            project.start(environment, app="calls_proj", ready=False)
        for worker in project.workers:
            worker.wait_ready()
        yield project
    finally:
        project.close()


@pytest.fixture(scope="module")
def proj(project: Project) -> Iterator[ModuleType]:
    """The project's module, imported here as an application does."""
    with project.imported("calls_proj") as module:
        yield module


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    """Looks at the server."""
    with redis.Redis.from_url(server.url(), decode_responses=True) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_is_left(project: Project, proj: ModuleType, client: redis.Redis) -> Iterator[None]:
    """After each test nothing runs or waits, here or there, and nothing is noted."""
    yield

    def left() -> list[Any]:
        gc.collect()
        channel = proj.app.backend.replies
        busy = [name for name in ENVIRONMENTS if (at := project.status(name))["running"] or at["suspended"]]
        subscribed = [name for name in client.pubsub_channels() if "meta" in name]
        return [*busy, *subscribed, *client.keys(wait_key("*")), *["a wait"] * channel.open_waits(), *channel._replies]

    wait_until(lambda: not left(), 10, "nothing that is left")


# -- flyte.map -------------------------------------------------------------------------------------------------------


def test_a_map_yields_in_order_and_zips_to_the_shortest(proj: ModuleType) -> None:
    assert list(flyte.map(proj.add, [9, 1, 5, 3], itertools.repeat(1))) == [10, 2, 6, 4]
    assert list(flyte.map(proj.pair, [1, 2, 3], [4])) == [(1, 4)]
    assert list(flyte.map(proj.add, [])) == []
    assert list(flyte.map(proj.nothing)) == []


def test_a_map_is_lazy(proj: ModuleType, client: redis.Redis) -> None:
    seen: list[int] = []
    values = flyte.map(proj.add, (seen.append(n) or n for n in range(3)))  # type: ignore[func-returns-value]
    assert not seen
    assert next(values) == 0
    assert list(values) == [1, 2]
    assert seen == [0, 1, 2]


def test_a_map_of_coroutines(proj: ModuleType) -> None:
    async def collected(**options: Any) -> list[Any]:
        return [value async for value in flyte.map.aio(proj.invert, [1, 0, 2], **options)]

    first, second, third = asyncio.run(collected())
    assert (first, third) == (1.0, 0.5)
    assert isinstance(second, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(collected(return_exceptions=False))

    async def awaited() -> None:
        await flyte.map.aio(proj.invert, [1])  # type: ignore[misc]

    with pytest.raises(TypeError):
        asyncio.run(awaited())


def test_failures_are_values_or_raised(proj: ModuleType) -> None:
    first, second, third, fourth = flyte.map(proj.invert, [0, 1, 0, 4])
    assert (second, fourth) == (1.0, 0.25)
    for failure in (first, third):
        assert isinstance(failure, RuntimeUserError) and isinstance(failure, ZeroDivisionError)
        assert failure.code == "ZeroDivisionError"
    with pytest.raises(RuntimeUserError):
        sum(flyte.map(proj.invert, [1, 0]))
    values = flyte.map(proj.invert, [1, 0, 1], return_exceptions=False)
    assert next(values) == 1.0
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_partials_leave_one_parameter(proj: ModuleType) -> None:
    assert list(flyte.map(functools.partial(proj.pair, 1), [2, 3])) == [(1, 2), (1, 3)]
    assert list(flyte.map(functools.partial(proj.pair, y=1), [2, 3])) == [(2, 1), (3, 1)]
    for partial in (
        functools.partial(proj.pair, 1, 2),
        functools.partial(proj.pair),
        functools.partial(proj.pair, x=1),
    ):
        with pytest.raises(TypeError, match="partial"):
            list(flyte.map(partial, [1]))


def test_what_cannot_be_mapped_is_refused(proj: ModuleType) -> None:
    with pytest.raises(AttributeError, match="is no task"):
        list(flyte.map(len, ["a"]))
    with pytest.raises(TypeError):
        list(flyte.map(proj.add, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        list(flyte.map(proj.add, [1], unknown=1))  # type: ignore[call-arg]
    wrong, right = flyte.map(proj.add, ["no number", 1])
    assert isinstance(wrong, TypeError) and right == 1


def test_so_many_calls_are_in_flight(proj: ModuleType) -> None:
    assert max(flyte.map(proj.crowd, range(30), concurrency=3)) <= 3
    assert max(flyte.map(proj.crowd, range(60))) > 3


def test_an_endless_map_needs_the_memory_of_its_window(proj: ModuleType) -> None:
    taken = 0

    def inputs() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    values = flyte.map(proj.add, inputs())
    for _ in itertools.islice(values, 2 * WINDOW):
        pass
    gc.collect()
    tracemalloc.start()
    try:
        for place, _ in enumerate(itertools.islice(values, 3 * WINDOW)):
            assert taken <= 2 * WINDOW + place + 1 + WINDOW
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(proj.app.backend.replies._replies) <= WINDOW
    # What is in flight is the same number of calls as before, and one costs some kilobytes.
    assert grown < WINDOW * 10_000
    values.close()


def test_a_map_in_a_task(proj: ModuleType) -> None:
    values, code, groups = proj.maps_values.delay(5).get(timeout=PATIENCE)
    assert (values, code) == (list(range(5)), "ZeroDivisionError")
    assert groups == [True, True], "a group is its parent's alone"


def test_map_task_of_flyte_1(proj: ModuleType) -> None:
    assert list(flyte.map_task(proj.add)(x=[1, 2], y=[3, 4])) == [4, 6]
    assert list(flyte.map_task(proj.add)(x=range(3))) == [0, 1, 2]

    async def awaited() -> list[int]:
        return await flyte.map_task(proj.add)(y=[1, 2], x=[3, 4])

    assert asyncio.run(awaited()) == [4, 6]
    with pytest.raises(TypeError, match="takes an iterable for each of x, y; got z"):
        flyte.map_task(proj.add)(z=[1])
    with pytest.raises(ZeroDivisionError):
        list(flyte.map_task(proj.invert)(x=[0]))


@pytest.mark.parametrize("task", ["calls.maps", "sync-calls.maps_sync"])
def test_who_ends_a_parent_that_maps_ends_the_children(project: Project, task: str) -> None:
    name = uuid4().hex
    result = project.send(task, name)
    for n in range(3):
        project.wait((project.folder / f"{name}-{n}").exists)
    project.celery_app.control.revoke(result.id, terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    for n in range(3):
        project.wait((project.folder / f"{name}-{n}-cancelled").exists)


def test_a_map_that_is_left_early_ends_its_calls(project: Project, proj: ModuleType) -> None:
    name = uuid4().hex
    values = flyte.map(proj.stays, [f"{name}-{n}" for n in range(3)])
    (project.folder / f"{name}-0-enough").touch()
    assert next(values) == f"{name}-0"
    for n in (1, 2):
        project.wait((project.folder / f"{name}-{n}").exists)
    values.close()
    for n in (1, 2):
        project.wait((project.folder / f"{name}-{n}-cancelled").exists)


# -- flyte.run -------------------------------------------------------------------------------------------------------


def test_the_handle_of_a_run(project: Project, proj: ModuleType) -> None:
    name = uuid4().hex
    run = flyte.run(proj.stays, name)
    project.wait((project.folder / name).exists)
    assert run.id == run.name == run.result.id
    assert not run.done()
    project.wait(lambda: run.phase is ActionPhase.RUNNING)  # though it has stored no state
    with pytest.raises(TimeoutError, match=r"has not ended within 0.1 s"):
        run.outputs(timeout=0.1)
    (project.folder / f"{name}-enough").touch()
    run.wait(timeout=PATIENCE)
    assert (run.done(), run.phase) == (True, ActionPhase.SUCCEEDED)
    assert (run.outputs(), run.outputs().o0) == ((name,), name)
    run.raise_for_status()
    assert flyte.run(proj.pair, 1, 2).outputs() == (1, 2)
    assert flyte.run(proj.nothing).outputs() == (None,)


def test_where_a_run_is(project: Project, proj: ModuleType) -> None:
    """Also one that nobody serves, and one that has a state of its own."""
    assert flyte.run(proj.unserved_task).phase is ActionPhase.QUEUED
    name = uuid4().hex
    run = flyte.run(proj.says_how_far, name)
    project.wait(lambda: run.result.state == "PROGRESS")
    assert run.phase is ActionPhase.RUNNING
    (project.folder / f"{name}-enough").touch()
    assert run.outputs(timeout=PATIENCE) == (name,)


def test_the_same_code_handles_a_run_on_the_fleet_and_one_here(proj: ModuleType) -> None:
    def handled(run: Run) -> tuple[Any, ...]:
        run.wait(PATIENCE)
        run.raise_for_status(timeout=PATIENCE)
        run.abort("too late")
        run.revoke(terminate=True)
        assert run.id == run.result.id and run.result.ready() and run.name
        assert (run.done(), run.cached, run.url) == (True, False, None)
        return run.outputs(timeout=PATIENCE), run.result.get(timeout=PATIENCE)

    async def awaited(run: Run) -> tuple[Any, ...]:
        await run.wait.aio(timeout=PATIENCE)
        await run.raise_for_status.aio()
        await run.abort.aio("too late")
        return await run.outputs.aio(PATIENCE), await run, await run.result

    for mode in ("local", "remote"):
        runner = flyte.with_runcontext(mode=mode)
        assert handled(runner.run(proj.pair, 1, 2)) == ((1, 2), (1, 2))
        assert asyncio.run(awaited(runner.run(proj.pair, 1, 2))) == ((1, 2), (1, 2), (1, 2))


def test_a_wait_in_a_coroutine_has_an_end(proj: ModuleType) -> None:
    run = flyte.run(proj.unserved_task)
    with pytest.raises(TimeoutError, match=r"has not ended within 0.1 s"):
        asyncio.run(run.outputs.aio(timeout=0.1))


def test_a_run_that_fails_and_one_that_is_aborted(project: Project, proj: ModuleType) -> None:
    run = flyte.run(proj.invert, 0)
    with pytest.raises(ZeroDivisionError):
        run.outputs(timeout=PATIENCE)
    assert run.phase == ActionPhase.FAILED
    with pytest.raises(RuntimeUserError):
        run.raise_for_status()

    name = uuid4().hex
    aborted = flyte.run(proj.stays, name)
    project.wait((project.folder / name).exists)
    aborted.abort("enough")
    with pytest.raises(ActionAbortedError, match=r"^The task was revoked: enough$"):
        aborted.outputs(timeout=PATIENCE)
    assert aborted.phase == ActionPhase.ABORTED

    async def awaited() -> Any:
        return await (await flyte.run.aio(proj.invert, 0))

    with pytest.raises(ZeroDivisionError):
        asyncio.run(awaited())


# -- Children --------------------------------------------------------------------------------------------------------


def test_a_childs_failure_is_caught_by_its_class_and_by_flytes(proj: ModuleType) -> None:
    kept = "ZeroDivisionError ZeroDivisionError division by zero"
    assert proj.catches.delay("await").get(timeout=PATIENCE) == [kept, kept, "OwnError own 1"]
    assert proj.catches_sync.delay().get(timeout=PATIENCE) == [kept, kept]


@pytest.mark.parametrize(
    ("task", "value"), [("gives_up_on", "gave up"), ("first_failure_ends_the_group", "['ZeroDivisionError']")]
)
def test_a_cancelled_wait_ends_the_child(project: Project, proj: ModuleType, task: str, value: str) -> None:
    name = uuid4().hex
    assert getattr(proj, task).delay(name).get(timeout=PATIENCE) == value
    project.wait((project.folder / f"{name}-cancelled").exists)


def test_a_replica_whose_connection_is_killed_finds_its_childs_result(
    project: Project, proj: ModuleType, client: redis.Redis
) -> None:
    """Also when the result comes while it has none."""
    name = uuid4().hex
    result = proj.waits_for.delay(name)
    project.wait((project.folder / name).exists)
    client.client_kill_filter(_type="pubsub", skipme=True)
    (project.folder / f"{name}-enough").touch()
    assert result.get(timeout=PATIENCE) == name


def test_a_process_that_a_task_forks_waits_like_any_other(project: Project, proj: ModuleType) -> None:
    """It is no replica, and its parent keeps its slot."""
    assert proj.forks.delay().get(timeout=PATIENCE) == 0
    assert project.status("sync-calls")["suspended"] == 0
    assert proj.catches_sync.delay().get(timeout=PATIENCE)


# -- Results ---------------------------------------------------------------------------------------------------------


def test_an_event_loop_that_ends_with_waits_leaves_nothing_to_the_next(project: Project, proj: ModuleType) -> None:
    name = uuid4().hex

    async def value(result: Any) -> Any:
        return await result

    async def cut_short(result: Any) -> None:
        waits = [asyncio.ensure_future(value(result)) for _ in range(10)]
        await asyncio.wait(waits, timeout=0.05)  # asyncio.run cancels them

    result = proj.stays.delay(name)
    for _ in range(3):
        asyncio.run(cut_short(result))
        assert proj.app.backend.replies.open_waits() == 0
    (project.folder / f"{name}-enough").touch()
    assert asyncio.run(value(result)) == name


def test_a_result_that_has_expired(proj: ModuleType, client: redis.Redis) -> None:
    """Celery cannot tell it from one of an unknown id; the message says both."""
    result = proj.add.delay(1, 2)
    assert result.get(timeout=PATIENCE) == 3
    assert 0 < client.ttl(f"celery-task-meta-{result.id}") <= 3600
    task_id = result.id
    del result
    gc.collect()
    client.expire(f"celery-task-meta-{task_id}", 0)
    late = proj.add.AsyncResult(task_id)
    assert late.state == "PENDING"
    with pytest.raises(CeleryTimeoutError, match=rf"No result of {task_id} .*expired \(result_expires\)"):
        late.get(timeout=0.1)

    async def awaited() -> None:
        async with asyncio.timeout(0.1):
            await late

    with pytest.raises(TimeoutError):
        asyncio.run(awaited())
