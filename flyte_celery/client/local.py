"""Running tasks in this process: what `flyte.run` does without a broker, as Flyte does without a client.

Nested calls, retries and typed inputs work as in a real run; caching, timeouts and environment variables do not
exist here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from .. import context, errors
from ..dispatcher import not_initialized

if TYPE_CHECKING:
    from ..task import TaskTemplate

    AnyTask = TaskTemplate[Any, Any]

#: Seconds before the first retry of a task without a `Backoff`; doubles with each.
FIRST_RETRY_DELAY = 0.5


def call(task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a task here and wait for it; its failure arrives as from a real run."""
    attempt = 0
    while True:
        try:
            with _running(task, attempt):
                value = task.forward(*args, **kwargs)
                return context.run_coroutine(value) if task.is_async else value
        except Exception as exc:
            delay = _retry_delay(task, exc, attempt)
            if delay is None:
                _raise_as_in_a_run(exc)
            time.sleep(delay)
            attempt += 1


async def call_async(task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a task here without blocking the event loop; a sync body runs in a thread."""
    attempt = 0
    while True:
        try:
            with _running(task, attempt):
                if task.is_async:
                    return await task.forward(*args, **kwargs)
                return await asyncio.to_thread(task.forward, *args, **kwargs)
        except Exception as exc:
            delay = _retry_delay(task, exc, attempt)
            if delay is None:
                _raise_as_in_a_run(exc)
            await asyncio.sleep(delay)
            attempt += 1


class LocalDispatcher:
    """Carries the calls of local runs in a process that has no Celery app; there is nowhere to submit to."""

    def call(self, task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `call`."""
        return call(task, args, kwargs)

    async def call_async(self, task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `call_async`."""
        return await call_async(task, args, kwargs)

    def registered(self, task: AnyTask) -> None:
        """Nobody needs to know."""

    def apply_async(self, task: AnyTask, args: Any, kwargs: Any, options: Any) -> Any:
        """Refuse, as all that needs an app."""
        raise not_initialized()

    def signature(self, task: AnyTask, args: Any, kwargs: Any, options: Any) -> Any:
        """Refuse, as all that needs an app."""
        raise not_initialized()

    def celery_task(self, task: AnyTask) -> Any:
        """Refuse, as all that needs an app."""
        raise not_initialized()


def _raise_as_in_a_run(exc: Exception) -> NoReturn:
    """Raise an exception of a body, which is being handled, as a caller in a run sees it.

    Raises:
        flyte_celery.errors.BaseRuntimeError: The exception itself, with the cause that it has, where it is one; else
            an error that it is the cause of.
    """
    if isinstance(exc, errors.BaseRuntimeError):
        raise exc
    raise errors.raised("user", type(exc).__name__, errors.message_of(exc), original=exc) from exc


def _retry_delay(task: AnyTask, exc: Exception, attempt: int) -> float | None:
    strategy = task.retries
    if strategy is None or attempt >= strategy.count or isinstance(exc, errors.NonRecoverableError):
        return None
    if strategy.backoff is not None:
        return strategy.backoff.compute_delay(attempt).total_seconds()
    return float(FIRST_RETRY_DELAY * 2**attempt)


@contextmanager
def _running(task: AnyTask, attempt: int) -> Iterator[None]:
    run = context.RunContext.local(environment=task.parent_env_name, task=task.name, is_async=task.is_async)
    token = context.current_run.set(run)
    try:
        yield
    finally:
        context.current_run.reset(token)
