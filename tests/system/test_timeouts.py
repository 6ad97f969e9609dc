"""`Timeout` in a worker: what runs, waits or takes too long ends with its own error, and its neighbours go on."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
import redis
from celery import chain, group
from celery.exceptions import TimeLimitExceeded

import flyte_celery as flyte
from flyte_celery.errors import DeadlineExceededError, MaxQueuedTimeExceededError, MaxRuntimeExceededError
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.redis_server import RedisServer

SOURCE = """
    import asyncio
    import ctypes
    import os
    import time
    from datetime import timedelta

    import redis

    import flyte_celery as flyte

    app = flyte.init()
    notes = redis.Redis.from_url(os.environ["FLYTE_CELERY_BROKER_URL"], decode_responses=True)
    aio = flyte.TaskEnvironment("timed", reusable=flyte.ReusePolicy(replicas=1, concurrency=10, idle_ttl=3600))
    snc = flyte.TaskEnvironment("timed-sync", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600))
    soon = flyte.RetryStrategy(2, flyte.Backoff(timedelta(milliseconds=10)))


    def note(key: str, value: object) -> None:
        notes.rpush(f"notes-{key}", str(value))


    @aio.task(timeout=1)
    async def sleep(key: str, seconds: float) -> str:
        note(key, flyte.ctx().attempt_number)
        try:
            await asyncio.sleep(seconds)
        except BaseException as exc:
            note(key, type(exc).__name__)
            await asyncio.sleep(0.01)
            note(key, "cleaned up")
            raise
        return key


    @snc.task(timeout=timedelta(seconds=1))
    def sleep_sync(key: str, seconds: float) -> str:
        note(key, flyte.ctx().attempt_number)
        try:
            time.sleep(seconds)
        except BaseException as exc:
            note(key, type(exc).__name__)
            time.sleep(0.01)
            note(key, "cleaned up")
            raise
        return key


    @aio.task(timeout=flyte.Timeout(max_runtime=1))
    async def returns_all_the_same(key: str) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "partial"
        return "whole"


    @snc.task(timeout=flyte.Timeout(max_runtime=1))
    def returns_all_the_same_sync(key: str) -> str:
        try:
            time.sleep(60)
        except Exception:
            return "partial"
        return "whole"


    @aio.task(timeout=1)
    async def stubborn(key: str) -> None:
        note(key, flyte.ctx().attempt_number)
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                note(key, "swallowed")


    @snc.task(timeout=1)
    def stubborn_sync(key: str) -> None:
        note(key, flyte.ctx().attempt_number)
        while True:
            try:
                time.sleep(60)
            except BaseException:
                note(key, "swallowed")


    @snc.task(timeout=1)
    def holds_the_gil_sync(key: str) -> None:
        note(key, flyte.ctx().attempt_number)
        ctypes.PyDLL(None).sleep(60)


    @aio.task(timeout=1)
    async def holds_the_gil(key: str) -> None:
        note(key, flyte.ctx().attempt_number)
        ctypes.PyDLL(None).sleep(60)


    @aio.task(max_attempts=1)
    async def neighbour(key: str) -> int:
        note(key, "begun")
        while not notes.exists(f"gate-{key}"):
            await asyncio.sleep(0.05)
        return os.getpid()


    @snc.task(timeout=1)
    def waits_for_its_child_sync(key: str) -> str:
        return list(flyte.map(sleep.override(timeout=60), [key + "-child"], [60.0], return_exceptions=False))[0]


    @aio.task(timeout=1)
    async def waits_for_its_child(key: str) -> str:
        return await sleep.override(timeout=60)(key + "-child", 60.0)


    @aio.task
    async def pid() -> int:
        return os.getpid()


    @snc.task
    def pid_sync() -> int:
        return os.getpid()


    @snc.task
    def hold_sync(key: str) -> str:
        note(key, "begun")
        while not notes.exists(f"gate-{key}"):
            time.sleep(0.05)
        return key


    @aio.task(retries=100, timeout=flyte.Timeout(deadline=2))
    async def never(key: str) -> None:
        note(key, flyte.ctx().attempt_number)
        await asyncio.sleep(0.3)
        raise RuntimeError("never")
"""

async_and_sync = pytest.mark.parametrize("suffix", ["", "_sync"], ids=["async", "sync"])

#: Seconds that an interrupted task has to end.
PATIENCE_OF_WORKER = 2.0


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, _redis_databases: Iterator[int]
) -> Iterator[Project]:
    """A project with a worker for each environment."""
    project = Project(tmp_path_factory.mktemp("timeouts"), redis_server.url(next(_redis_databases)))
    project.write(SOURCE, "timeouts_project")
    for environment in ("timed", "timed-sync"):  # no names of other tests, for this process has all of them
        env = {"FLYTE_CELERY_CANCEL_PATIENCE": str(PATIENCE_OF_WORKER)}
        project.start(environment, app="timeouts_project", env=env, ready=False)
    for worker in project.workers:
        worker.wait_ready()
    yield project
    project.close()


@pytest.fixture(scope="module")
def tasks(project: Project) -> Iterator[ModuleType]:
    """The project's module, imported here."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in project.variables.items():
            patch.setenv(name, value)
        patch.syspath_prepend(str(project.folder))
        module = importlib.import_module("timeouts_project")
    yield module
    module.app.close()
    module.notes.close()
    del sys.modules["timeouts_project"]


@pytest.fixture
def notes(tasks: ModuleType) -> Callable[[str], list[str]]:
    """What the bodies have noted under a key."""
    return lambda key: tasks.notes.lrange(f"notes-{key}", 0, -1)  # type: ignore[no-any-return]


Notes = Callable[[str], list[str]]


def begun(project: Project, notes: Notes, task: Any, key: str, **options: Any) -> Any:
    """Submit a task that notes its begin, and return its result's handle when it has begun."""
    result = task.apply_async((key,), **options)
    project.wait(lambda: notes(key), description=f"the begin of {key}")
    return result


# -- Runtime ---------------------------------------------------------------------------------------------------------


@async_and_sync
def test_a_body_that_runs_too_long_is_interrupted_and_cleans_up(
    project: Project, tasks: ModuleType, notes: Notes, suffix: str
) -> None:
    before = getattr(tasks, "pid" + suffix).delay().get(timeout=PATIENCE)
    result = getattr(tasks, "sleep" + suffix).delay(f"long{suffix}", 60)
    with pytest.raises(MaxRuntimeExceededError, match="ran for more than 1 s, its max_runtime"):
        result.get(timeout=PATIENCE)
    assert result.state == "FAILURE"
    interrupted = "SoftTimeLimitExceeded" if suffix else "CancelledError"
    assert notes(f"long{suffix}") == ["0", interrupted, "cleaned up"]
    assert getattr(tasks, "pid" + suffix).delay().get(timeout=PATIENCE) == before


@async_and_sync
def test_flytes_face_raises_the_same_error(tasks: ModuleType, suffix: str) -> None:
    with pytest.raises(MaxRuntimeExceededError):
        flyte.run(getattr(tasks, "sleep" + suffix), f"run{suffix}", 60).outputs(PATIENCE)
    (failure,) = flyte.map(getattr(tasks, "sleep" + suffix), [f"map{suffix}"], [60])
    assert isinstance(failure, MaxRuntimeExceededError)


@async_and_sync
def test_a_body_that_ends_in_time_is_left_alone(tasks: ModuleType, suffix: str) -> None:
    assert getattr(tasks, "sleep" + suffix).delay(f"short{suffix}", 0.01).get(timeout=PATIENCE) == f"short{suffix}"


@async_and_sync
def test_what_a_body_returns_after_its_time_does_not_count(tasks: ModuleType, suffix: str) -> None:
    with pytest.raises(MaxRuntimeExceededError):
        getattr(tasks, "returns_all_the_same" + suffix).delay("x").get(timeout=PATIENCE)


@async_and_sync
def test_each_attempt_has_its_own_time(tasks: ModuleType, notes: Notes, suffix: str) -> None:
    task = getattr(tasks, "sleep" + suffix).override(retries=tasks.soon)
    with pytest.raises(MaxRuntimeExceededError):
        task.delay(f"attempts{suffix}", 60).get(timeout=PATIENCE)
    assert [note for note in notes(f"attempts{suffix}") if note.isdigit()] == ["0", "1", "2"]


@async_and_sync
def test_an_override_sets_and_lifts_the_limit_also_in_chains_and_groups(tasks: ModuleType, suffix: str) -> None:
    task = getattr(tasks, "sleep" + suffix)
    longer = task.override(timeout=60)
    assert chain(longer.si("a", 1.2), longer.si("b", 0.1)).delay().get(timeout=PATIENCE) == "b"
    assert group(longer.si("c", 0.1), longer.si("d", 1.2)).delay().get(timeout=PATIENCE) == ["c", "d"]
    assert task.override(timeout=flyte.Timeout()).delay("e", 1.2).get(timeout=PATIENCE) == "e"
    with pytest.raises(MaxRuntimeExceededError, match=r"more than 0\.2 s"):
        chain(longer.si("f", 0.1), task.override(timeout=timedelta(seconds=0.2)).si("g", 60)).delay().get(
            timeout=PATIENCE
        )


@async_and_sync
def test_a_task_that_waits_for_its_child_too_long_ends_as_well(tasks: ModuleType, suffix: str) -> None:
    with pytest.raises(MaxRuntimeExceededError):
        getattr(tasks, "waits_for_its_child" + suffix).delay(f"waits{suffix}").get(timeout=PATIENCE)


@pytest.mark.parametrize("name", ["stubborn", "holds_the_gil"])
@async_and_sync
def test_a_body_that_goes_on_loses_its_replica(
    project: Project, tasks: ModuleType, notes: Notes, name: str, suffix: str
) -> None:
    """Swallowing the interruption, or keeping the interpreter to itself so that it cannot arrive, helps nobody."""
    before = getattr(tasks, "pid" + suffix).delay().get(timeout=PATIENCE)
    key = f"{name}{suffix}"
    result = begun(project, notes, getattr(tasks, key), key)
    with pytest.raises(MaxRuntimeExceededError, match="did not end within 2 s after it was interrupted"):
        result.get(timeout=PATIENCE)
    assert notes(key) == (["0", "swallowed"] if name == "stubborn" else ["0"])
    assert getattr(tasks, "pid" + suffix).delay().get(timeout=PATIENCE) != before


@async_and_sync
def test_its_retries_go_on_in_the_next_replica(tasks: ModuleType, notes: Notes, suffix: str) -> None:
    task = getattr(tasks, "stubborn" + suffix).override(retries=flyte.RetryStrategy(1))
    key = f"stubborn-again{suffix}"
    with pytest.raises(MaxRuntimeExceededError):
        task.delay(key).get(timeout=2 * PATIENCE)
    assert notes(key) == ["0", "swallowed", "1", "swallowed"]


def test_its_neighbours_run_again_and_lose_no_attempt(project: Project, tasks: ModuleType, notes: Notes) -> None:
    """The neighbour has one attempt alone: if the lost start counted, it would be given up."""
    neighbour = begun(project, notes, tasks.neighbour, "innocent")
    with pytest.raises(MaxRuntimeExceededError):
        tasks.stubborn.delay("guilty").get(timeout=PATIENCE)
    project.wait(lambda: notes("innocent") == ["begun", "begun"], description="the neighbour's second begin")
    tasks.notes.set("gate-innocent", 1)
    assert neighbour.get(timeout=PATIENCE) > 0


def test_neighbours_of_a_task_that_ends_when_it_is_told_go_on(
    project: Project, tasks: ModuleType, notes: Notes
) -> None:
    neighbour = begun(project, notes, tasks.neighbour, "undisturbed")
    with pytest.raises(MaxRuntimeExceededError):
        tasks.sleep.delay("disturbed", 60).get(timeout=PATIENCE)
    tasks.notes.set("gate-undisturbed", 1)
    assert neighbour.get(timeout=PATIENCE) > 0
    assert notes("undisturbed") == ["begun"]


def test_celerys_limits_work_beside(tasks: ModuleType) -> None:
    with pytest.raises(TimeLimitExceeded):
        tasks.sleep.override(timeout=60).apply_async(("celerys", 60), time_limit=0.3).get(timeout=PATIENCE)
    with pytest.raises(MaxRuntimeExceededError):
        tasks.sleep.apply_async(("ours", 60), time_limit=60, soft_time_limit=50).get(timeout=PATIENCE)


# -- Waiting ---------------------------------------------------------------------------------------------------------


def test_a_task_that_waits_too_long_for_a_replica_ends(project: Project, tasks: ModuleType, notes: Notes) -> None:
    holder = begun(project, notes, tasks.hold_sync, "queued-holder")
    waits = tasks.sleep_sync.override(timeout=flyte.Timeout(max_queued_time=1))
    with pytest.raises(MaxQueuedTimeExceededError, match="waited for a replica for more than 1 s"):
        waits.delay("queued", 0).get(timeout=PATIENCE)
    tasks.notes.set("gate-queued-holder", 1)
    assert holder.get(timeout=PATIENCE) == "queued-holder"
    assert notes("queued") == []
    assert waits.delay("queued-not", 0).get(timeout=PATIENCE) == "queued-not"


def test_a_task_behind_thousands_of_others_is_told_in_time(project: Project, tasks: ModuleType, notes: Notes) -> None:
    holder = begun(project, notes, tasks.hold_sync, "behind-holder")
    results = [tasks.sleep_sync.delay(f"ahead-{n}", 0) for n in range(20)]
    with redis.Redis.from_url(project.url) as client:
        ahead = project.wait(lambda: client.lindex("timed-sync", 0), description="a message that waits")
        for start in range(0, 6000, 1000):
            copies = [ahead.replace(results[-1].id.encode(), b"%036d" % n) for n in range(start, start + 1000)]
            client.lpush("timed-sync", *copies)
        waits = tasks.sleep_sync.override(timeout=flyte.Timeout(max_queued_time=1))
        late = waits.delay("behind", 0)
        client.lpush("timed-sync", *copies)
        with pytest.raises(MaxQueuedTimeExceededError):
            late.get(timeout=PATIENCE)
        assert client.llen("timed-sync") > 5000
        client.delete("timed-sync")
    tasks.notes.set("gate-behind-holder", 1)
    assert holder.get(timeout=PATIENCE) == "behind-holder"
    assert notes("behind") == []


def test_time_before_its_countdown_is_no_waiting(tasks: ModuleType) -> None:
    waits = tasks.sleep_sync.override(timeout=flyte.Timeout(max_queued_time=1))
    assert waits.apply_async(("counted-down", 0), countdown=2).get(timeout=PATIENCE) == "counted-down"


def test_a_message_that_was_submitted_too_long_ago_never_begins(
    project: Project, tasks: ModuleType, notes: Notes
) -> None:
    """It waited where no worker saw it; times are the submitters', so it does not matter where."""
    for name, error in (("max_queued_time", MaxQueuedTimeExceededError), ("deadline", DeadlineExceededError)):
        task = tasks.sleep.override(timeout=flyte.Timeout(**{name: 5}))
        old = {"flyte_celery_times": {"submitted": time.time() - 60, "queued": time.time() - 60}}
        message = task.s(f"old-{name}", 0)
        headers = {**message.options["headers"], **old}
        result = project.send("timed.sleep", f"old-{name}", 0, headers=headers)
        with pytest.raises(error):
            result.get(timeout=PATIENCE)
        assert notes(f"old-{name}") == []


# -- Deadline --------------------------------------------------------------------------------------------------------


def test_a_deadline_ends_the_attempts(tasks: ModuleType, notes: Notes) -> None:
    with pytest.raises(DeadlineExceededError):
        tasks.never.delay("never").get(timeout=PATIENCE)
    assert 2 <= len(notes("never")) <= 7


@async_and_sync
def test_a_deadline_ends_a_body_and_no_retry_follows(tasks: ModuleType, notes: Notes, suffix: str) -> None:
    task = getattr(tasks, "sleep" + suffix).override(timeout=flyte.Timeout(deadline=1), retries=5)
    with pytest.raises(DeadlineExceededError, match="1 s after its submission"):
        task.delay(f"deadline{suffix}", 60).get(timeout=PATIENCE)
    assert [note for note in notes(f"deadline{suffix}") if note.isdigit()] == ["0"]


def test_a_deadline_ends_what_waits_for_a_replica(project: Project, tasks: ModuleType, notes: Notes) -> None:
    holder = begun(project, notes, tasks.hold_sync, "deadline-holder")
    with pytest.raises(DeadlineExceededError):
        tasks.sleep_sync.override(timeout=flyte.Timeout(deadline=1)).delay("late", 0).get(timeout=PATIENCE)
    tasks.notes.set("gate-deadline-holder", 1)
    assert holder.get(timeout=PATIENCE) == "deadline-holder"


def test_a_timeout_that_is_none_is_refused_when_the_task_is_submitted(tasks: ModuleType) -> None:
    for timeout in ("x", -1):
        with pytest.raises(ValueError, match="timeout="):
            tasks.pid.override(timeout=timeout).delay()
