"""Results reach whoever waits, wherever and however they wait, and waiting leaves nothing behind."""

from __future__ import annotations

import asyncio
import builtins
import gc
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import redis
from celery import chord, group
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, TimeoutError, WorkerLostError
from celery.result import AsyncResult

import flyte_celery as flyte
from flyte_celery.client import replies
from flyte_celery.errors import InlineIOMaxBytesBreached
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.redis_server import RedisServer
from tests.helpers.waiting import wait_until
from tests.helpers.workers import run_python

SOURCE = """
    import asyncio
    import os
    import signal
    import time

    import flyte_celery as flyte

    app = flyte.init()
    aio = flyte.TaskEnvironment("answers", reusable=flyte.ReusePolicy(replicas=2, concurrency=500, idle_ttl=3600))
    snc = flyte.TaskEnvironment("sync-answers", reusable=flyte.ReusePolicy(replicas=2, idle_ttl=3600))
    abandoned = flyte.TaskEnvironment("abandoned", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600))


    @aio.task
    async def add(x: int, y: int) -> int:
        return x + y


    @aio.task
    async def nap(seconds: float, n: int) -> int:
        await asyncio.sleep(seconds)
        return n


    @aio.task
    async def total(values: list[int]) -> int:
        return sum(values)


    @aio.task
    async def fail(text: str) -> int:
        raise ValueError(text)


    @aio.task
    async def parent(n: int) -> int:
        return sum(await asyncio.gather(*(add(i, 0) for i in range(n))))


    @snc.task
    def parent_sync(n: int) -> int:
        return sum(add_sync(i, 0) for i in range(n))


    @snc.task
    def add_sync(x: int, y: int) -> int:
        return x + y


    @snc.task
    def big(size: int) -> str:
        return "x" * size


    @snc.task(max_inline_io_bytes=1000)
    def bounded(text: str, times: int) -> str:
        return text * times


    @snc.task(max_attempts=1)
    def deadly() -> None:
        os.kill(os.getpid(), signal.SIGKILL)


    @snc.task(time_limit=1)
    def endless() -> None:
        time.sleep(60)


    @abandoned.task
    async def nobody(x: int) -> int:
        return x


    @app.task(name="plain_add")
    def plain_add(x: int, y: int) -> int:
        return x + y
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of this module's own: pub/sub channels have no database."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shared(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with workers for its environments and a plain one."""
    project = Project(tmp_path_factory.mktemp("results"), server.url())
    project.write(SOURCE)
    try:
        for environment in ("answers", "sync-answers"):
            project.start(environment, ready=False)
        project.start("--concurrency", "1", command="worker", ready=False)
        for worker in project.workers:
            worker.wait_ready()
        yield project
    finally:
        project.close()


@pytest.fixture(scope="module")
def proj(shared: Project) -> Iterator[ModuleType]:
    """The client of these tests."""
    with shared.imported() as module:
        yield module


@pytest.fixture(scope="module")
def client(server: RedisServer) -> Iterator[redis.Redis]:
    """Looks at the server."""
    with redis.Redis.from_url(server.url(), decode_responses=True) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_is_left(proj: ModuleType, client: redis.Redis) -> Iterator[None]:
    """After each test no wait, no reply and no subscription is left."""
    yield

    def left() -> list[Any]:
        gc.collect()
        channel = proj.app.backend.replies
        subscriptions = [name for name in client.pubsub_channels() if name.startswith("celery-task-meta-")]
        return [*subscriptions, *["a wait"] * channel.open_waits(), *channel._replies]

    try:
        wait_until(lambda: not left(), 5)
    except AssertionError:
        pytest.fail(f"The waits left this behind: {left()}")


def commands(client: redis.Redis, *names: str) -> dict[str, int]:
    """How often commands were served so far."""
    statistics: Any = client.info("commandstats")
    return {name: statistics.get(f"cmdstat_{name}", {}).get("calls", 0) for name in names}


def pubsub_ids(client: redis.Redis) -> set[str]:
    """The ids of all connections in subscriber mode."""
    return {each["id"] for each in client.client_list(_type="pubsub")}


def reply_connections(client: redis.Redis, proj: ModuleType) -> list[str]:
    """The ids of this process's connection for replies."""
    local = proj.app.backend.replies.subscription._socket.getsockname()
    port = f":{local[1]}"
    return [each["id"] for each in client.client_list(_type="pubsub") if each["addr"].endswith(port)]


def store(client: redis.Redis, task_id: str, value: Any, status: str = "SUCCESS") -> None:
    """Store a result as somebody does who knows Celery's format and no reply channel."""
    payload = json.dumps({"task_id": task_id, "status": status, "result": value, "traceback": None, "children": []})
    client.set(f"celery-task-meta-{task_id}", payload, ex=3600)
    client.publish(f"celery-task-meta-{task_id}", payload)


def stored(client: redis.Redis, result: AsyncResult) -> None:
    """Wait until a result is stored."""
    wait_until(lambda: client.exists(f"celery-task-meta-{result.id}"), PATIENCE, "the stored result")


# -- One notification ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_doubts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, no result is so late that it is looked for."""
    monkeypatch.setattr(replies, "DOUBT", 600.0)


@pytest.mark.usefixtures("no_doubts")
def test_a_result_costs_no_command(proj: ModuleType, client: redis.Redis) -> None:
    """Neither a subscription nor a read: the notification carries it."""
    proj.add.delay(0, 0).get(timeout=PATIENCE)
    before = commands(client, "subscribe", "unsubscribe", "mget")
    for n in range(20):
        assert proj.add.delay(n, n).get(timeout=PATIENCE) == 2 * n

    async def awaited() -> list[int]:
        return [await proj.add.delay(n, 1) for n in range(20)]

    assert asyncio.run(awaited()) == list(range(1, 21))
    assert group(proj.add.s(n, 0) for n in range(20))().get(timeout=PATIENCE) == list(range(20))
    assert list(flyte.map(proj.add, range(20), range(20))) == [2 * n for n in range(20)]
    assert flyte.run(proj.add, 1, 2).outputs(timeout=PATIENCE) == (3,)
    assert commands(client, "subscribe", "unsubscribe", "mget") == before


def test_a_result_that_came_before_the_wait_is_held(proj: ModuleType, client: redis.Redis) -> None:
    result = proj.add.delay(1, 2)
    stored(client, result)
    client.delete(f"celery-task-meta-{result.id}")  # it has expired, say
    assert (result.get(timeout=PATIENCE), result.state) == (3, "SUCCESS")


def test_what_nobody_holds_does_not_pile_up(proj: ModuleType, client: redis.Redis) -> None:
    last = [proj.add.delay(n, n) for n in range(200)][-1]
    assert last.get(timeout=PATIENCE) == 398
    gc.collect()
    assert list(proj.app.backend.replies._replies) == [f"celery-task-meta-{last.id}".encode()]


def test_large_results(proj: ModuleType) -> None:
    """Longer than what is read at once."""
    assert len(proj.big.delay(3_000_000).get(timeout=PATIENCE)) == 3_000_000

    async def awaited() -> str:
        value: str = await proj.big.delay(3_000_000)
        return value

    assert len(asyncio.run(awaited())) == 3_000_000


def test_any_other_process_reads_any_result(proj: ModuleType, shared: Project) -> None:
    result = proj.add.delay(3, 4)
    assert AsyncResult(result.id, app=shared.celery_app).get(timeout=PATIENCE) == 7
    assert proj.add.AsyncResult(result.id).get(timeout=PATIENCE) == 7


def test_plain_tasks_are_celerys(proj: ModuleType) -> None:
    assert proj.plain_add.delay(1, 2).get(timeout=PATIENCE) == 3
    assert group(proj.plain_add.s(n, n) for n in range(5))().get(timeout=PATIENCE) == [0, 2, 4, 6, 8]


# -- Waiting ---------------------------------------------------------------------------------------------------------


def test_two_thousand_awaits_share_one_connection_and_no_thread(proj: ModuleType, client: redis.Redis) -> None:
    proj.add.delay(0, 0).get(timeout=PATIENCE)
    connections, threads = pubsub_ids(client), threading.active_count()

    async def awaited() -> list[int]:
        results = [proj.nap.delay(0.2, n) for n in range(2000)]
        waits = asyncio.gather(*(asyncio.ensure_future(_value(result)) for result in results))
        await asyncio.sleep(0)
        assert threading.active_count() <= threads + 1
        assert pubsub_ids(client) == connections
        return list(await waits)

    assert asyncio.run(awaited()) == list(range(2000))


async def _value(result: Any) -> Any:
    return await result


def test_event_loops_come_and_go(proj: ModuleType) -> None:
    for n in range(5):
        assert asyncio.run(_value(proj.nap.delay(0.05, n))) == n


def test_threads_and_event_loops_wait_at_once(proj: ModuleType) -> None:
    def in_thread(n: int) -> list[int]:
        return [proj.nap.delay(0.01 * (n % 3), n).get(timeout=PATIENCE) for _ in range(10)]

    def in_loop(n: int) -> list[int]:
        async def awaited() -> list[int]:
            return list(await asyncio.gather(*(_value(proj.nap.delay(0.01 * (n % 3), n)) for _ in range(10))))

        return asyncio.run(awaited())

    with ThreadPoolExecutor(16) as executor:
        jobs = [(n, executor.submit(in_loop if n % 2 else in_thread, n)) for n in range(16)]
        assert all(job.result(PATIENCE * 2) == [n] * 10 for n, job in jobs)


def test_a_blocked_event_loop_keeps_no_thread_waiting(proj: ModuleType) -> None:
    release = threading.Event()

    async def blocked() -> int:
        wait = asyncio.ensure_future(_value(proj.nap.delay(0.1, 1)))
        await asyncio.sleep(0.01)
        release.wait(PATIENCE)  # it blocks the loop, as nobody should
        return await wait

    with ThreadPoolExecutor(1) as executor:
        loop = executor.submit(asyncio.run, blocked())
        assert proj.nap.delay(0.3, 2).get(timeout=PATIENCE) == 2
        release.set()
        assert loop.result(PATIENCE) == 1


def test_get_in_a_coroutine_blocks_and_works(proj: ModuleType) -> None:
    async def mixed() -> tuple[int, int]:
        wait = asyncio.ensure_future(_value(proj.nap.delay(0.1, 1)))
        await asyncio.sleep(0)
        return proj.nap.delay(0.2, 2).get(timeout=PATIENCE), await wait

    assert asyncio.run(mixed()) == (2, 1)


def test_several_wait_for_one_result(proj: ModuleType) -> None:
    result = proj.nap.delay(0.3, 7)
    again = proj.nap.AsyncResult(result.id)

    async def awaited() -> list[int]:
        return list(await asyncio.gather(*(_value(each) for each in (result, result, again))))

    with ThreadPoolExecutor(3) as executor:
        jobs = [executor.submit(each.get, timeout=PATIENCE) for each in (result, again, again)]
        assert asyncio.run(awaited()) == [7, 7, 7]
        assert [job.result() for job in jobs] == [7, 7, 7]


def test_inside_tasks(proj: ModuleType) -> None:
    assert proj.parent.delay(50).get(timeout=PATIENCE) == sum(range(50))
    assert proj.parent_sync.delay(1).get(timeout=PATIENCE) == 0


def test_a_run_points_to_its_page_in_flower(proj: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    run = flyte.run(proj.add, 2, 2)
    assert run.url is None
    monkeypatch.setenv("FLYTE_CELERY_FLOWER_URL", "https://flower.example.com/")
    assert run.url == f"https://flower.example.com/task/{run.id}"
    run.wait()


def test_arguments_and_results_have_a_bound(proj: ModuleType) -> None:
    too_long = r"takes? 10\d\d bytes, and its max_inline_io_bytes is 1000: pass a path"
    with pytest.raises(InlineIOMaxBytesBreached, match=f"The arguments of sync-answers.bounded {too_long}"):
        proj.bounded.delay("x" * 1000, 1)
    with pytest.raises(InlineIOMaxBytesBreached, match=f"The result of sync-answers.bounded {too_long}"):
        proj.bounded.delay("x" * 10, 100).get(timeout=20)
    assert proj.bounded.delay("x" * 10, 99).get(timeout=20) == "x" * 990
    values = list(flyte.map(proj.bounded, ["a", "x" * 1000, "b"], [1, 1, 1]))
    assert [type(value) for value in values] == [str, InlineIOMaxBytesBreached, str]


def test_flyte_run_in_a_coroutine(proj: ModuleType) -> None:
    async def awaited() -> list[int]:
        runs = [await flyte.run.aio(proj.nap, 0.1, n) for n in range(20)]
        return list(await asyncio.gather(*(_value(run) for run in runs)))

    assert asyncio.run(awaited()) == list(range(20))


def test_a_wait_that_gives_up_leaves_nothing(proj: ModuleType) -> None:
    result = proj.nobody.delay(1)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=f"No result of {result.id} within 0.2 s"):
        result.get(timeout=0.2)
    assert time.monotonic() - start < 10
    run = flyte.run(proj.nobody, 1)
    with pytest.raises(builtins.TimeoutError, match=r"has not ended within 0.1 s"):
        run.wait(timeout=0.1)
    with pytest.raises(TimeoutError, match="No result of 3 tasks"):
        group(proj.nobody.s(n) for n in range(3))().get(timeout=0.2)


def test_a_storm_of_cancellations_leaves_nothing(proj: ModuleType, client: redis.Redis) -> None:
    """Cancelled before, while and after Celery's own channels are subscribed to."""
    results = [proj.nobody.delay(n) for n in range(500)]
    foreign = [proj.nobody.AsyncResult(f"foreign-{n}") for n in range(500)]

    async def storm() -> None:
        for seconds in (0.0, 0.02, 1.3):
            waits = [asyncio.ensure_future(_value(each)) for each in (*results, *foreign)]
            await asyncio.sleep(seconds)
            for wait in waits:
                wait.cancel()
            assert all(isinstance(each, BaseException) for each in await asyncio.gather(*waits, return_exceptions=True))
            assert proj.app.backend.replies.open_waits() == 0

    asyncio.run(storm())
    assert proj.add.delay(1, 1).get(timeout=PATIENCE) == 2


# -- What may be missed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["get", "await"])
def test_the_connection_is_killed_during_a_wait(proj: ModuleType, client: redis.Redis, how: str) -> None:
    """Several times, and once when the result is on its way."""
    proj.add.delay(0, 0).get(timeout=PATIENCE)
    result = proj.nap.delay(0.6, 5)
    kills = [threading.Timer(0.2 * n, kill_replies, (client, proj)) for n in range(1, 4)]
    for kill in kills:
        kill.start()
    assert (result.get(timeout=PATIENCE) if how == "get" else asyncio.run(_value(result))) == 5
    for kill in kills:
        kill.join()


def kill_replies(client: redis.Redis, proj: ModuleType) -> None:
    """Kill this process's connection for replies."""
    for number in reply_connections(client, proj):
        client.client_kill_filter(_id=number)


def test_results_that_came_without_a_connection_are_found(proj: ModuleType, client: redis.Redis) -> None:
    results = [proj.nap.delay(0.2, n) for n in range(50)]
    kill_replies(client, proj)
    for result in results:
        stored(client, result)

    async def awaited() -> list[int]:
        return list(await asyncio.gather(*(_value(each) for each in results[:25])))

    assert asyncio.run(awaited()) == list(range(25))
    assert [each.get(timeout=PATIENCE) for each in results[25:]] == list(range(25, 50))


def test_a_call_after_a_lost_connection(proj: ModuleType, client: redis.Redis) -> None:
    proj.add.delay(0, 0).get(timeout=PATIENCE)
    kill_replies(client, proj)
    assert proj.add.delay(1, 2).get(timeout=PATIENCE) == 3


@pytest.mark.parametrize("how", ["get", "await", "group"])
def test_a_result_that_nobody_announces_is_found(proj: ModuleType, client: redis.Redis, how: str) -> None:
    """It is stored by somebody who knows no reply channel, before the wait or during it."""
    early, late = proj.nobody.delay(1), proj.nobody.delay(2)
    store(client, early.id, 10)
    timer = threading.Timer(1.5, store, (client, late.id, 20))
    timer.start()

    async def awaited() -> list[int]:
        return list(await asyncio.gather(_value(early), _value(late)))

    if how == "group":
        joined = flyte_group(proj, [early, late])
        assert joined.get(timeout=PATIENCE) == [10, 20]
    elif how == "get":
        assert [each.get(timeout=PATIENCE) for each in (early, late)] == [10, 20]
    else:
        assert asyncio.run(awaited()) == [10, 20]
    timer.join()


def flyte_group(proj: ModuleType, results: list[Any]) -> Any:
    """A group of results that exist."""
    return proj.app.GroupResult("some-group", results)


def test_states_before_the_last_are_no_results(proj: ModuleType, client: redis.Redis) -> None:
    result = proj.nobody.AsyncResult("progressing")
    store(client, "progressing", {"done": 1}, "PROGRESS")
    assert (result.state, result.info) == ("PROGRESS", {"done": 1})
    timers = [threading.Timer(0.3, store, (client, "progressing", {"done": 2}, "PROGRESS"))]
    timers.append(threading.Timer(0.6, store, (client, "progressing", 3, "SUCCESS")))
    for timer in timers:
        timer.start()
    seen: list[Any] = []
    assert asyncio.run(_value(proj.nobody.AsyncResult("progressing"))) == 3
    for timer in timers:
        timer.join()
    assert result.get(timeout=PATIENCE, on_message=seen.append) == 3


def test_messages_of_all_states_on_request(proj: ModuleType, client: redis.Redis) -> None:
    result = proj.nobody.AsyncResult("watched-progress")
    seen: list[Any] = []

    def note(meta: dict[str, Any]) -> None:
        if meta["task_id"] == "watched-progress":  # Celery calls it for whatever this process waits for
            seen.append(meta["status"])

    def go_on() -> None:
        wait_until(lambda: "celery-task-meta-watched-progress" in client.pubsub_channels(), PATIENCE)
        store(client, "watched-progress", 1, "PROGRESS")
        wait_until(lambda: seen, PATIENCE)
        store(client, "watched-progress", 2, "SUCCESS")

    with ThreadPoolExecutor(1) as thread:
        going = thread.submit(go_on)
        assert result.get(timeout=PATIENCE, on_message=note) == 2
        going.result()
    assert seen == ["PROGRESS", "SUCCESS"]


def test_fork_in_the_middle(shared: Project) -> None:
    """A child has a channel of its own; what its parent called it finds as any other process does."""
    output = run_python(
        shared.folder,
        """
        import asyncio, os, sys
        import proj

        async def value(result):
            return await result

        before = proj.nap.delay(1.0, 1)
        name = proj.app.backend.replies.name
        pids = []
        for n in range(2):
            pid = os.fork()
            if not pid:
                mine = proj.add.delay(n, 10)
                assert proj.app.backend.replies.name != name
                assert mine.get(timeout=20) == n + 10
                assert before.get(timeout=20) == 1
                assert asyncio.run(value(proj.add.delay(n, 20))) == n + 20
                os._exit(0)
            pids.append(pid)
        assert asyncio.run(value(proj.add.delay(1, 1))) == 2
        assert before.get(timeout=20) == 1
        print([os.waitpid(pid, 0)[1] for pid in pids], proj.app.backend.replies.name == name)
        """,
        env=shared.variables,
    )
    assert output.strip() == "[0, 0] True"


def test_fork_while_an_event_loop_waits(shared: Project) -> None:
    output = run_python(
        shared.folder,
        """
        import asyncio, os, sys
        import proj

        async def value(result):
            return await result

        async def main():
            wait = asyncio.ensure_future(value(proj.nap.delay(0.5, 1)))
            await asyncio.sleep(0.1)
            pid = os.fork()
            if not pid:
                try:
                    assert proj.add.delay(1, 2).get(timeout=20) == 3
                    sys.exit(0)  # unwinds this coroutine in the child
                except SystemExit:
                    del wait
                    os._exit(0)
            return await wait, os.waitpid(pid, 0)[1]

        print(asyncio.run(main()))
        """,
        env=shared.variables,
    )
    assert output.strip() == "(1, 0)"


# -- What Celery stores ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_doubts")
def test_failures_that_the_worker_stores_are_announced(proj: ModuleType, client: redis.Redis) -> None:
    before = commands(client, "subscribe")
    with pytest.raises(ValueError, match="no good"):
        proj.fail.delay("no good").get(timeout=PATIENCE)
    with pytest.raises(ValueError, match="no good"):
        asyncio.run(_value(proj.fail.delay("no good")))
    assert commands(client, "subscribe") == before
    with pytest.raises(TaskRevokedError, match="expired"):
        proj.add.apply_async((1, 1), expires=-1).get(timeout=PATIENCE)
    with pytest.raises(WorkerLostError, match="attempt 1 of 1"):
        proj.deadly.delay().get(timeout=PATIENCE)
    with pytest.raises(TimeLimitExceeded):
        asyncio.run(_value(proj.endless.delay()))


def test_a_revoked_task(proj: ModuleType) -> None:
    running = proj.nap.delay(60, 1)
    wait_until(lambda: _running(proj, running.id), PATIENCE, "the task to run")
    running.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        running.get(timeout=PATIENCE)
    run = flyte.run(proj.nap, 60, 2)
    wait_until(lambda: _running(proj, run.id), PATIENCE, "the task to run")
    run.abort()
    with pytest.raises(flyte.errors.ActionAbortedError):
        run.outputs(timeout=PATIENCE)
    awaited = proj.nap.delay(60, 3)
    wait_until(lambda: _running(proj, awaited.id), PATIENCE, "the task to run")
    awaited.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        asyncio.run(_value(awaited))


def _running(proj: ModuleType, task_id: str) -> bool:
    replies = proj.app.control.inspect(timeout=1.0).active() or {}
    return any(each["id"] == task_id for tasks in replies.values() for each in tasks)


# -- Celery's face ---------------------------------------------------------------------------------------------------


def test_an_unknown_id_stays_pending(proj: ModuleType) -> None:
    result = proj.add.AsyncResult("nobody-called-this")
    assert (result.state, result.ready()) == ("PENDING", False)
    with pytest.raises(TimeoutError, match="the id is unknown, or the result has expired"):
        result.get(timeout=0.1)


def test_forget(proj: ModuleType, client: redis.Redis) -> None:
    result = proj.add.delay(1, 2)
    assert result.get(timeout=PATIENCE) == 3
    result.forget()
    assert not client.exists(f"celery-task-meta-{result.id}")
    assert result.state == "PENDING"


def test_a_task_without_a_result(proj: ModuleType) -> None:
    result = proj.add.apply_async((1, 2), ignore_result=True)
    assert result.get(timeout=PATIENCE) is None
    assert asyncio.run(_value(result)) is None


def test_groups(proj: ModuleType) -> None:
    result = group(proj.nap.s(0.1 * (n % 3), n) for n in range(10)).apply_async()
    called: list[Any] = []
    result.then(called.append)
    assert result.join_native(timeout=PATIENCE) == list(range(10))
    assert (result.completed_count(), result.successful(), called) == (10, True, [result])
    assert result.get(timeout=PATIENCE) == list(range(10)), "it is asked a second time"
    pairs: list[Any] = []
    result.get(timeout=PATIENCE, callback=lambda task_id, value: pairs.append(value))
    assert sorted(pairs) == list(range(10))


def test_groups_of_groups_and_of_plain_tasks(proj: ModuleType) -> None:
    nested = group(group(proj.add.s(1, 1), proj.add.s(2, 2)), proj.add.s(3, 3))()
    assert nested.get(timeout=PATIENCE) in ([2, 4, 6], [[2, 4], 6])
    assert group(proj.add.s(1, 1), proj.plain_add.s(2, 2), proj.add_sync.s(3, 3))().get(timeout=PATIENCE) == [2, 4, 6]


def test_a_group_of_plain_and_other_tasks_beside_other_waits(proj: ModuleType) -> None:
    """Whoever reads the reply channel finds results that the group waits for."""
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            proj.add.delay(0, 0).get(timeout=PATIENCE)

    with ThreadPoolExecutor(1) as executor:
        reader = executor.submit(read)
        try:
            for _ in range(10):
                result = group(proj.nap.s(0.05, 1), proj.plain_add.s(2, 2), proj.nap.s(0.1, 3))()
                assert result.get(timeout=PATIENCE) == [1, 4, 3]
        finally:
            over.set()
            reader.result()


def test_a_group_with_a_failure(proj: ModuleType) -> None:
    result = group(proj.add.s(1, 1), proj.fail.s("no good"))()
    with pytest.raises(ValueError, match="no good"):
        result.get(timeout=PATIENCE)
    values = result.get(timeout=PATIENCE, propagate=False)
    assert values[0] == 2 and isinstance(values[1], ValueError)


def test_chords_and_chains(proj: ModuleType) -> None:
    joined = chord([proj.nap.s(0.05, n) for n in range(5)])(proj.total.s())
    assert joined.get(timeout=PATIENCE) == 10
    chained = (proj.add.s(1, 1) | proj.add_sync.s(2) | proj.plain_add.s(3)).apply_async()
    assert (chained.get(timeout=PATIENCE), chained.parent.get(timeout=PATIENCE), chained.parent.parent.get()) == (
        7,
        4,
        2,
    )

    async def awaited() -> tuple[int, int]:
        chained = (proj.add.s(1, 1) | proj.add.s(2)).apply_async()
        return await chained, await chained.parent

    assert asyncio.run(awaited()) == (4, 2)
    failing = (proj.fail.s("no good") | proj.add.s(2)).apply_async()
    with pytest.raises(ValueError, match="no good"):
        failing.get(timeout=PATIENCE)


def test_callbacks_of_results(proj: ModuleType) -> None:
    called: list[Any] = []
    result = proj.add.delay(1, 2)
    result.then(lambda each: called.append(each.result))
    result.get(timeout=PATIENCE)
    wait_until(lambda: called == [3], 5)


# -- Redis goes away -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["result.get(timeout=30)", "asyncio.run(value(result))"], ids=["get", "await"])
def test_redis_restarts_during_a_wait(own_redis_server: RedisServer, tmp_path: Path, how: str) -> None:
    project = Project(tmp_path, own_redis_server.url())
    project.write(SOURCE)
    program = f"""
        import asyncio
        import proj

        async def value(result):
            return await result

        result = proj.nap.delay(4.0, 5)
        first = {how}
        print(first, proj.add.delay(1, 1).get(timeout=30))
        """
    try:
        project.start("answers")
        with ThreadPoolExecutor(1) as executor:
            output = executor.submit(run_python, project.folder, program, project.variables)
            project.wait(lambda: project.status("answers")["running"])
            with redis.Redis.from_url(own_redis_server.url()) as client:
                client.save()  # the server reads it when it starts again
            own_redis_server.stop()
            time.sleep(0.5)  # away for a while
            own_redis_server.start()
            assert output.result(60).strip() == "5 2"
    finally:
        project.close()
