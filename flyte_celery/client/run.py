"""`flyte.run`: submit a task and hold on to it, or run it here when there is nowhere to submit to."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from .. import context, errors
from ..dispatcher import not_initialized
from ..task import TaskTemplate, current_dispatcher
from .dispatch import CeleryDispatcher
from .local_run import Workflow, bound, run_here, run_workflow
from .remote_run import RemoteRun
from .run_handle import Run

logger = logging.getLogger("flyte_celery")


class Runner:
    """Runs tasks with fixed options: what `with_runcontext` returns."""

    def __init__(self, mode: str | None = None, **options: Any) -> None:
        self._mode = mode
        self._options = options
        disabled, overwritten = options.get("disable_run_cache"), options.get("overwrite_cache")
        #: What its runs say about the cache.
        self.cache = "disable" if disabled else "override" if overwritten else None
        self.run = _RunCall(self)


class _RunCall:
    """`run(task, ...)` and `run.aio(task, ...)`."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __call__(self, task: Any, *args: Any, **kwargs: Any) -> Run:
        """Run a task.

        Args:
            task: What `@env.task` returned.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            A handle: `.outputs()`, `.wait()`, `.done()`, `.abort()`, `await handle`.

        Raises:
            TypeError: `task` is no task, or an argument has the wrong type.
            ValueError: An argument is missing, or there are too many.
            flyte_celery.errors.RuntimeUserError: The task failed, when it runs here.
        """
        mode, custom = self._runner._mode, self._runner._options.get("custom_context") or {}
        with context.custom_context(**custom), context.with_run_cache(self._runner.cache):
            if isinstance(task, Workflow):
                return run_workflow(task, args, kwargs)
            _check(task)
            dispatcher = _choose(mode)
            if dispatcher is None:
                return run_here(task, args, kwargs)
            return RemoteRun(dispatcher, task, dispatcher.apply_async(task, *bound(task, args, kwargs), {}))

    async def aio(self, task: Any, *args: Any, **kwargs: Any) -> Run:
        """The same for asyncio code: calls that are submitted in one turn of the event loop share a write."""
        mode, custom = self._runner._mode, self._runner._options.get("custom_context") or {}
        if not isinstance(task, TaskTemplate) or (dispatcher := _choose(mode)) is None:
            return await asyncio.to_thread(self, task, *args, **kwargs)
        with context.custom_context(**custom), context.with_run_cache(self._runner.cache):
            result = await dispatcher.submit(task, *bound(task, args, kwargs))
        return RemoteRun(dispatcher, task, result)


def with_runcontext(mode: str | None = None, **options: Any) -> Runner:
    """Options for runs: `with_runcontext(mode="local").run(task, ...)`.

    Args:
        mode: `"local"` runs in this process, `"remote"` submits; None submits when there is a broker.
        **options: Flyte's options. `custom_context` reaches the tasks; `disable_run_cache=True` lets the run's tasks
            neither use nor fill the cache, `overwrite_cache=True` runs them all and renews what is cached. Those that
            name parts of Flyte's back end (`project`, `domain`, `copy_style`, ...) are accepted and mean nothing here,
            see the parameter table.

    Raises:
        ValueError: `max_action_concurrency` is 1 or negative.
    """
    most = options.get("max_action_concurrency")
    if most is not None and (most < 0 or most == 1):
        raise ValueError(f"max_action_concurrency={most} can never run a parent with its child: use 0 or at least 2.")
    return Runner(mode, **options)


def active_dispatcher() -> CeleryDispatcher | None:
    """Where calls are submitted to now; None means that they run here."""
    current = context.current_run.get()
    if current is not None and current.mode == "local":
        return None
    try:
        dispatcher = current_dispatcher()
    except errors.InitializationError:
        return None
    return dispatcher if isinstance(dispatcher, CeleryDispatcher) and dispatcher.has_broker else None


def _choose(mode: str | None) -> CeleryDispatcher | None:
    if mode == "local":
        return None
    if mode is not None:
        dispatcher = current_dispatcher()
        if not isinstance(dispatcher, CeleryDispatcher):
            raise not_initialized()
        return dispatcher
    found = active_dispatcher()
    where = "here: there is no broker to submit to" if found is None else "on the fleet"
    logger.info("flyte.run runs %s", where)
    return found


def _check(task: Any) -> None:
    if not isinstance(task, TaskTemplate):
        raise TypeError(f"run() got {task!r}, which is no task: pass a function that @env.task decorates.")


run = Runner().run
