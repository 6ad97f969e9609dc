"""How app code calls this package, as type checkers see it: read by mypy and pyright, never run."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, assert_type

import flyte_celery as flyte
from flyte_celery.context import RunContext
from flyte_celery.environment import environments
from flyte_celery.task import AsyncFunctionTaskTemplate, TaskTemplate

env = flyte.TaskEnvironment(
    "typed", resources=flyte.Resources(cpu=1), reusable=flyte.ReusePolicy(replicas=(1, 3), concurrency=2)
)
plain = env.clone_with("typed-plain", reusable=None, depends_on=[env])
assert_type(plain, flyte.TaskEnvironment)
assert_type(environments(), dict[str, flyte.TaskEnvironment])


@plain.task
def bare(x: int, name: str = "") -> str:
    return name * x


@env.task
async def bare_async(x: int) -> str:
    return str(x)


@plain.task()
def called(x: int) -> str:
    return str(x)


@env.task(
    cache="auto",
    retries=flyte.RetryStrategy(3),
    timeout=timedelta(minutes=1),
    autoretry_for=(OSError,),
    rate_limit="1/s",
)
async def with_options(x: int) -> list[float]:
    return [x / 2]


@plain.task(bind=True, max_retries=5)
def bound(self: Any, x: int) -> int:
    return x + int(self.request.retries)


@plain.task(bind=False, short_name="nice")
def unbound(x: int) -> int:
    return x


@env.on_startup
async def start() -> None: ...


@env.on_startup(timeout=300)
def load_model() -> None: ...


@env.on_shutdown
def stop() -> None: ...


def name_of(x: int) -> str:
    return str(x)


def the_decorator_makes_tasks() -> tuple[TaskTemplate[..., str], ...]:
    asynchronous: TaskTemplate[..., Coroutine[Any, Any, list[float]]] = with_options
    assert isinstance(bound, AsyncFunctionTaskTemplate)
    assert_type(bound.name, str)
    assert_type(asynchronous.retries, flyte.RetryStrategy | None)
    return bare, called, plain.task(name_of)


def a_sync_task_is_called_like_its_function() -> None:
    assert_type(bare(1), str)
    assert_type(bare(1, name="x"), str)
    assert_type(bound(1), int)
    bare("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bare()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def an_async_task_is_awaited() -> None:
    assert_type(await bare_async(1), str)
    assert_type(await with_options(x=1), list[float])
    first, second = await asyncio.gather(bare_async(1), bare_async(2))
    assert_type(first + second, str)
    await bare_async("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def aio_awaits_both_kinds_once() -> None:
    assert_type(await bare.aio(1), str)
    assert_type(await bare_async.aio(1), str)
    await bare.aio("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


def forward_runs_the_body() -> None:
    assert_type(bare.forward(1), str)
    coroutine: Coroutine[Any, Any, str] = bare_async.forward(1)
    coroutine.close()
    assert_type(bound.forward(1), int)


def an_overridden_task_is_the_same_kind_of_task() -> None:
    assert_type(called.override(retries=3)(1), str)
    called.override(retries=3)("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(bare.override(reusable="off", resources=flyte.Resources(memory="16Gi"))(1), str)
    bare.override(retries="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def celerys_face_is_on_the_same_object() -> None:
    bare.delay(1, name="x").get(timeout=5)
    bare.apply_async((1,), {"name": "x"}, countdown=3)
    (bare.s(1) | bare_async.s()).delay()
    bare.si(1).apply_async()
    bare.signature((1,), expires=5)
    bare.AsyncResult("id").revoke()
    bare.apply((1,))
    bare.update_state(state="PROGRESS")
    bare.delay("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def options_are_checked() -> None:
    env.task(retries="3")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    env.task(bogus=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def partials_are_tasks_for_map() -> Callable[..., str]:
    return functools.partial(bare, 1)


@flyte.trace
def traced(x: int) -> str:
    return str(x)


@flyte.trace
async def traced_async(x: int) -> str:
    return str(x)


async def a_task_knows_its_run() -> None:
    assert_type(flyte.ctx(), RunContext)
    assert_type(flyte.ctx().attempt_number, int)
    assert_type(flyte.ctx().action.run_name, str)
    with flyte.group("batch"), flyte.custom_context(tenant="a"):
        assert_type(flyte.get_custom_context(), dict[str, str])
    assert_type(traced(1), str)
    assert_type(await traced_async(1), str)
