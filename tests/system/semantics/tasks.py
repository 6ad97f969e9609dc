"""The project of these tests: environments of async and of sync tasks, and plain tasks of the same Celery app.

What an async environment has, the sync one has under the same name, so that a test can run on both.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from celery import chain, current_task, signals
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from pydantic import BaseModel

import flyte_celery as flyte
from tests.system.semantics.notes import note, wait_at, wait_at_async

app = flyte.init()

_LONG = 3600

aio = flyte.TaskEnvironment("aio", reusable=flyte.ReusePolicy(replicas=1, concurrency=100, idle_ttl=_LONG))
unserved = flyte.TaskEnvironment("unserved", reusable=flyte.ReusePolicy(replicas=2, idle_ttl=_LONG))
snc = flyte.TaskEnvironment("snc", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=_LONG))


class Parcel(BaseModel):
    """A value with a type of its own."""

    weight: int
    label: str = ""


# -- Values ----------------------------------------------------------------------------------------------------------


@app.task
def plain_add(x: int, y: int) -> int:
    return x + y


@app.task
def plain_total(values: list[int]) -> int:
    return sum(values)


@app.task
def plain_pid(_: Any = None) -> int:
    return os.getpid()


@app.task
def plain_submit(x: int) -> str:
    """A plain task whose worker publishes to an environment."""
    return str(add.delay(x, x).id)


@app.task
def plain_submit_unserved(x: int) -> str:
    return str(app.send_task("unserved.unserved_add", (x, x)).id)


@unserved.task
async def unserved_add(x: int, y: int) -> int:
    return x + y


@aio.task
async def add(x: int, y: int) -> int:
    return x + y


@snc.task
def add_sync(x: int, y: int) -> int:
    return x + y


@aio.task
async def total(values: list[int]) -> int:
    await asyncio.sleep(0)
    return sum(values)


@snc.task
def total_sync(values: list[int]) -> int:
    return sum(values)


@snc.task
def record_result(value: int, key: str) -> None:
    note(key, value)


@aio.task(bind=True)
async def replaced(self: Any, x: int) -> int:
    """Let a chain give the result in place of this task."""
    await asyncio.sleep(0)
    raise self.replace(chain(add.s(x, x), add_sync.s(5)))


@aio.task
async def pack(weight: int) -> Parcel:
    return Parcel(weight=weight, label="packed")


@snc.task
def stamp(parcel: Parcel, ink: str) -> Parcel:
    return parcel.model_copy(update={"label": f"{parcel.label} {ink}"})


@aio.task
async def weigh(parcels: list[Parcel]) -> int:
    return sum(parcel.weight for parcel in parcels)


# -- Failures and retries --------------------------------------------------------------------------------------------


@aio.task
async def fail(text: str) -> None:
    raise ValueError(text)


@snc.task
def fail_sync(text: str) -> None:
    raise ValueError(text)


@aio.task
async def note_and_fail(key: str) -> None:
    note(key, "run")
    raise ValueError("noted")


@snc.task
def note_and_fail_sync(key: str) -> None:
    note(key, "run")
    raise ValueError("noted")


@aio.task(bind=True, max_retries=5)
async def retry_itself(self: Any, key: str, failures: int) -> list[int]:
    """Ask for a retry after `failures` attempts; returns the request's count of retries and ctx's attempt."""
    attempt = note(key, self.request.id)
    await asyncio.sleep(0.001)
    if attempt <= failures:
        raise self.retry(countdown=0.01, exc=KeyError(key))
    return [self.request.retries, flyte.ctx().attempt_number]


@snc.task(bind=True, max_retries=5)
def retry_itself_sync(self: Any, key: str, failures: int) -> list[int]:
    if note(key, self.request.id) <= failures:
        raise self.retry(countdown=0.01, exc=KeyError(key))
    return [self.request.retries, flyte.ctx().attempt_number]


@aio.task(autoretry_for=(ConnectionError,), retry_kwargs={"max_retries": 3, "countdown": 0.01})
async def retry_connection(key: str, failures: int) -> int:
    attempt = note(key)
    await asyncio.sleep(0)
    if attempt <= failures:
        raise ConnectionError(key)
    return attempt


@snc.task(autoretry_for=(ConnectionError,), retry_kwargs={"max_retries": 3, "countdown": 0.01})
def retry_connection_sync(key: str, failures: int) -> int:
    attempt = note(key)
    if attempt <= failures:
        raise ConnectionError(key)
    return attempt


@aio.task(retries=2)
async def strategy(key: str, failures: int) -> int:
    attempt = note(key, flyte.ctx().attempt_number)
    await asyncio.sleep(0)
    if attempt <= failures:
        raise RuntimeError(f"attempt {attempt}")
    return attempt


@snc.task(retries=2)
def strategy_sync(key: str, failures: int) -> int:
    attempt = note(key, flyte.ctx().attempt_number)
    if attempt <= failures:
        raise RuntimeError(f"attempt {attempt}")
    return attempt


@aio.task
async def override_child(key: str, failures: int) -> int:
    return await strategy.override(retries=failures + 1)(key, failures + 1)


@snc.task
def override_child_sync(key: str, failures: int) -> int:
    return strategy_sync.override(retries=failures + 1)(key, failures + 1)


@aio.task
async def echo(text: str) -> str:
    return text


@snc.task
def echo_sync(text: str) -> str:
    return text


@aio.task
async def repeat(text: str, times: int) -> str:
    return text * times


@snc.task
def repeat_sync(text: str, times: int) -> str:
    return text * times


@aio.task
async def errback_by_id(task_id: str, key: str) -> None:
    note(key, task_id)


@snc.task
def errback_by_id_sync(task_id: str, key: str) -> None:
    note(key, task_id)


@app.task
def plain_errback(request: Any, exc: Exception, traceback: Any, key: str) -> None:
    note(key, [request.id, repr(exc)])


@snc.task
def errback_with_error(request: Any, exc: Any, traceback: Any, key: str) -> None:
    """An errback as Celery's documentation writes it; Celery calls it where the task failed."""
    note(key, [request.id, repr(exc)])


@aio.task
async def errback_with_error_async(request: Any, exc: Any, traceback: Any, key: str) -> None:
    await asyncio.sleep(0)
    note(key, [request.id, repr(exc)])


@aio.task
async def ignore() -> None:
    raise Ignore()


@aio.task
async def reject() -> None:
    raise Reject("not wanted", requeue=False)


@aio.task
async def out_of_memory() -> None:
    raise MemoryError("too large")


@aio.task
async def cancel_itself() -> None:
    raise asyncio.CancelledError()


@aio.task
async def leave() -> None:
    raise SystemExit(1)


# -- State -----------------------------------------------------------------------------------------------------------


@aio.task(ignore_result=True)
async def silent(key: str) -> int:
    note(key)
    return 1


@snc.task(ignore_result=True)
def silent_sync(key: str) -> int:
    note(key)
    return 1


@aio.task(bind=True)
async def progress(self: Any, key: str) -> str:
    self.update_state(state="HALFWAY", meta={"key": key})
    note(key)
    await wait_at_async(key)
    return key


@snc.task(bind=True)
def progress_sync(self: Any, key: str) -> str:
    self.update_state(state="HALFWAY", meta={"key": key})
    note(key)
    wait_at(key)
    return key


@aio.task(track_started=True)
async def tracked(key: str) -> None:
    await wait_at_async(key)


@snc.task(track_started=True)
def tracked_sync(key: str) -> None:
    wait_at(key)


# -- Identity --------------------------------------------------------------------------------------------------------


@aio.task(bind=True)
async def identity(self: Any, pause: float) -> dict[str, Any]:
    """Every id that this task believes to have, wherever its code runs; all must be the same."""

    def seen() -> list[Any]:
        return [self.request.id, current_task.request.id, flyte.ctx().action.name, current_task.name]

    async def inner() -> list[Any]:
        await asyncio.sleep(pause)
        return seen()

    places = {"start": seen()}
    await asyncio.sleep(pause)
    places["after an await"] = seen()
    gathered = await asyncio.gather(inner(), inner())
    places["gather 1"], places["gather 2"] = gathered
    places["create_task"] = await asyncio.create_task(inner())
    async with asyncio.TaskGroup() as tasks:
        started = tasks.create_task(inner())
    places["TaskGroup"] = started.result()
    places["to_thread"] = await asyncio.to_thread(seen)
    places["wait_for"] = await asyncio.wait_for(inner(), 10)
    return places


@snc.task(bind=True)
def identity_sync(self: Any, pause: float) -> dict[str, Any]:
    def seen() -> list[Any]:
        return [self.request.id, current_task.request.id, flyte.ctx().action.name, current_task.name]

    places = {"start": seen()}
    time.sleep(pause)
    places["later"] = seen()
    return places


@aio.task(bind=True)
async def lineage(self: Any) -> dict[str, Any]:
    return {
        "id": self.request.id,
        "parent": self.request.parent_id,
        "root": self.request.root_id,
        "run": flyte.ctx().action.run_name,
        "custom": flyte.get_custom_context(),
        "environment": flyte.ctx().environment,
        "worker": flyte.ctx().worker,
    }


@aio.task
async def parent_by_delay() -> dict[str, Any]:
    """Submit a child with Celery's face, from a sub-task of the body."""

    async def submit() -> Any:
        return await lineage.delay()

    return await asyncio.create_task(submit())


@aio.task
async def parent_by_call() -> dict[str, Any]:
    with flyte.custom_context(colour="blue"):
        return await lineage()


@snc.task
def parent_by_delay_sync() -> str:
    return str(lineage.delay().id)


@snc.task
def parent_by_call_sync() -> dict[str, Any]:
    with flyte.custom_context(colour="red"):
        return asyncio.run(lineage.aio())


@aio.task(bind=True)
async def retry_with_context(self: Any, key: str) -> dict[str, str]:
    if note(key, flyte.get_custom_context()) == 1:
        raise self.retry(countdown=0.01)
    return flyte.get_custom_context()


# -- Time ------------------------------------------------------------------------------------------------------------


@aio.task
async def hold(key: str) -> str:
    """Wait at a gate; notes how it ended."""
    note(key, "begun")
    try:
        await wait_at_async(key)
    except BaseException as exc:
        note(key, type(exc).__name__)
        raise
    finally:
        note(key, "finally")
    return key


@snc.task
def hold_sync(key: str) -> str:
    note(key, "begun")
    try:
        wait_at(key)
    except BaseException as exc:
        note(key, type(exc).__name__)
        raise
    finally:
        note(key, "finally")
    return key


@aio.task(soft_time_limit=0.2)
async def clean_up_in_time(key: str) -> str:
    """Catch the soft limit and go on with asynchronous work, as a task that cleans up does."""
    try:
        await asyncio.gather(wait_at_async(key), wait_at_async(key))
    except SoftTimeLimitExceeded:
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(0.01))
        return "cleaned up"
    return "passed"


@snc.task(soft_time_limit=0.2)
def clean_up_in_time_sync(key: str) -> str:
    try:
        wait_at(key)
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return "passed"


@aio.task(time_limit=0.3)
async def stubborn(key: str) -> str:
    """Swallow the cancellation and return a value all the same."""
    try:
        await wait_at_async(key)
    except asyncio.CancelledError:
        note(key, "swallowed")
    return "a value"


@snc.task
def record(key: str, value: int) -> None:
    note(key, value)


@snc.task
def pid() -> int:
    return os.getpid()


@aio.task
async def pid_async() -> int:
    return os.getpid()


@aio.task
async def pid_of_item(_: int) -> int:
    return os.getpid()


@snc.task
def pid_of_item_sync(_: int) -> int:
    return os.getpid()


@aio.task
async def same(value: Any) -> Any:
    return value


@aio.task
async def beaten(key: str) -> None:
    note(key)


# -- Signals ---------------------------------------------------------------------------------------------------------


@aio.task(bind=True, max_retries=1)
async def signalled(self: Any, key: str, outcome: str) -> str:
    await asyncio.sleep(0)
    if outcome == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0.01)
    if outcome == "failure":
        raise ValueError(outcome)
    return outcome


@snc.task(bind=True, max_retries=1)
def signalled_sync(self: Any, key: str, outcome: str) -> str:
    if outcome == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0.01)
    if outcome == "failure":
        raise ValueError(outcome)
    return outcome


def _signalled(name: str, sender: Any, task_id: str) -> None:
    if sender.name in (signalled.name, signalled_sync.name):
        note(f"signals:{task_id}", [name, os.getpid()])


@signals.task_prerun.connect
def _prerun(sender: Any, task_id: str, **_: Any) -> None:
    _signalled("prerun", sender, task_id)


@signals.task_postrun.connect
def _postrun(sender: Any, task_id: str, **_: Any) -> None:
    _signalled("postrun", sender, task_id)


@signals.task_success.connect
def _success(sender: Any, **_: Any) -> None:
    _signalled("success", sender, sender.request.id)


@signals.task_failure.connect
def _failure(sender: Any, task_id: str, **_: Any) -> None:
    _signalled("failure", sender, task_id)


@signals.task_retry.connect
def _retry(sender: Any, request: Any, **_: Any) -> None:
    _signalled("retry", sender, request.id)


@signals.task_revoked.connect
def _revoked(sender: Any, request: Any, terminated: bool, expired: bool, **_: Any) -> None:
    note(f"revoked:{request.id}", [terminated, expired])


@signals.worker_process_init.connect
def _process_init(**_: Any) -> None:
    note("process_init", os.getpid())


app.conf.beat_schedule = {"beaten": {"task": "aio.beaten", "schedule": 0.3, "args": ["beat"]}}
