"""How app code calls this package, as type checkers see it: read by mypy and pyright, never run."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, assert_type

from flyte_celery.context import RunContext, ctx, custom_context, get_custom_context, group
from flyte_celery.environment import TaskEnvironment, environments
from flyte_celery.resources import Resources
from flyte_celery.retry import RetryStrategy
from flyte_celery.reuse import ReusePolicy
from flyte_celery.task import AsyncFunctionTaskTemplate, TaskTemplate
from flyte_celery.tracing import trace

env = TaskEnvironment("typed", resources=Resources(cpu=1), reusable=ReusePolicy(replicas=(1, 3), concurrency=2))
plain = env.clone_with("typed-plain", reusable=None, depends_on=[env])
assert_type(plain, TaskEnvironment)
assert_type(environments(), dict[str, TaskEnvironment])


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
    cache="auto", retries=RetryStrategy(3), timeout=timedelta(minutes=1), autoretry_for=(OSError,), rate_limit="1/s"
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


def the_decorator_makes_tasks() -> None:
    assert_type(called, TaskTemplate[[int], str])
    assert_type(bound, TaskTemplate[[int], int])
    assert_type(with_options, TaskTemplate[[int], Coroutine[Any, Any, list[float]]])
    _: AsyncFunctionTaskTemplate[..., Any] = bare
    assert_type(env.task(name_of), TaskTemplate[[int], str])


def name_of(x: int) -> str:
    return str(x)


def a_sync_task_is_called_like_its_function() -> None:
    assert_type(bare(1), str)
    assert_type(bare(1, name="x"), str)
    assert_type(bound(1), int)
    bare("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bare()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def an_async_task_is_awaited() -> None:
    assert_type(await bare_async(1), str)
    assert_type(await with_options(x=1), list[float])
    assert_type(await asyncio.gather(bare_async(1), bare_async(2)), list[str])
    await bare_async("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def aio_awaits_both_kinds_once() -> None:
    assert_type(await bare.aio(1), str)
    assert_type(await bare_async.aio(1), str)
    await bare.aio("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


def forward_runs_the_body() -> None:
    assert_type(bare.forward(1), str)
    assert_type(bare_async.forward(1), Coroutine[Any, Any, str])
    assert_type(bound.forward(1), int)


def an_overridden_task_is_the_same_kind_of_task() -> None:
    assert_type(called.override(retries=3), TaskTemplate[[int], str])
    assert_type(bare.override(reusable="off", resources=Resources(memory="16Gi"))(1), str)
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


@trace
def traced(x: int) -> str:
    return str(x)


@trace
async def traced_async(x: int) -> str:
    return str(x)


async def a_task_knows_its_run() -> None:
    assert_type(ctx(), RunContext)
    assert_type(ctx().attempt_number, int)
    assert_type(ctx().action.run_name, str)
    with group("batch"), custom_context(tenant="a"):
        assert_type(get_custom_context(), dict[str, str])
    assert_type(traced(1), str)
    assert_type(await traced_async(1), str)
