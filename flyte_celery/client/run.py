"""`flyte.run`: submit a task and hold on to it, or run it here when there is nowhere to submit to."""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
import logging
import os
from collections.abc import Callable, Generator
from datetime import timedelta
from typing import Any, Generic, ParamSpec, TypeVar

from celery import states

from .. import context, errors
from ..dispatcher import not_initialized
from ..settings import Settings
from ..task import TaskTemplate, current_dispatcher
from . import local
from .dispatch import CeleryDispatcher, failure, value_of
from .results import Meta, outcome, outcome_of, wait_for
from .waits import check_blocking

logger = logging.getLogger("flyte_celery")

P = ParamSpec("P")
R = TypeVar("R")
AnyTask = TaskTemplate[Any, Any]


class ActionPhase(enum.StrEnum):
    """Where a run is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABORTED = "aborted"


_PHASES = {
    states.STARTED: ActionPhase.RUNNING,
    states.SUCCESS: ActionPhase.SUCCEEDED,
    states.FAILURE: ActionPhase.FAILED,
    states.REVOKED: ActionPhase.ABORTED,
}


class Outputs(tuple[Any, ...]):
    """A run's outputs: a tuple whose elements are also named `o0`, `o1`, ..."""

    @classmethod
    def of(cls, value: Any) -> Outputs:
        """The outputs of a task that returned `value`: one for each element of a tuple, else one."""
        return cls(value if isinstance(value, tuple) and not hasattr(value, "_fields") else (value,))

    def __getattr__(self, name: str) -> Any:
        if name[:1] == "o" and name[1:].isdigit() and int(name[1:]) < len(self):
            return self[int(name[1:])]
        raise AttributeError(f"These outputs have no {name!r}: they are o0 to o{len(self) - 1}.")


class LocalRun:
    """A run that has happened in this process."""

    #: As Flyte has it for local runs.
    name = "dry-run"
    url = None

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome

    @property
    def phase(self) -> ActionPhase:
        """Local runs have no phase.

        Raises:
            ValueError: Always, as in Flyte.
        """
        raise ValueError("A local run has no phase: it was finished when run() returned.")

    #: A local run is never looked up.
    cached = False

    def done(self) -> bool:
        """True: it was finished when `run` returned."""
        return True

    def wait(self) -> None:
        """Return at once."""

    def outputs(self) -> Outputs:
        """What the task returned."""
        return Outputs.of(self._outcome)

    def __await__(self) -> Generator[Any, Any, Any]:
        """The task's value."""
        return self._value().__await__()

    async def _value(self) -> Any:
        return self._outcome


class Run:
    """A submitted run: Flyte's handle, around Celery's result."""

    def __init__(self, dispatcher: CeleryDispatcher, task: AnyTask, result: Any) -> None:
        self._dispatcher = dispatcher
        self._task = task
        #: Celery's `AsyncResult`.
        self.result = result
        self._future = outcome_of(result)

    @property
    def id(self) -> str:
        """The task's id, in Celery and Flower."""
        return str(self.result.id)

    name = id

    @property
    def url(self) -> str | None:
        """The run's page in Flower, where the setting `flower_url` says where that is."""
        flower = Settings.from_environ(os.environ).flower_url
        return f"{flower.rstrip('/')}/task/{self.id}" if flower else None

    @property
    def phase(self) -> ActionPhase:
        """Where the run is now."""
        if self._future.done():
            return _PHASES.get(self._future.result()["status"], ActionPhase.FAILED)
        return _PHASES.get(self.result.state, ActionPhase.QUEUED)

    @property
    def cached(self) -> bool:
        """Whether its value came from the cache. False as long as it has not ended."""
        return bool(self.result.cached)

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._future.done() or bool(self.result.ready())

    def wait(self, timeout: float | None = None) -> None:
        """Block until it has ended, well or not.

        Raises:
            TimeoutError: It has not within `timeout` seconds.
        """
        self._meta(timeout)

    def outputs(self, timeout: float | None = None) -> Outputs:
        """Block until it has ended and return what the task returned.

        Raises:
            flyte_celery.errors.RuntimeUserError: The task failed.
            TimeoutError: It has not ended within `timeout` seconds.
        """
        return Outputs.of(value_of(self._task, self._meta(timeout)))

    def abort(self, reason: str = "aborted") -> None:
        """End the run, wherever it is."""
        logger.info("Aborting %s: %s", self.id, reason)
        self.result.revoke(terminate=True)

    def revoke(self, **options: Any) -> None:
        """Celery's name for `abort`; takes its options."""
        self.result.revoke(**options)

    def raise_for_status(self) -> None:
        """Block until it has ended; raise what the task raised."""
        meta = self._meta(None)
        if meta["status"] != states.SUCCESS:
            raise failure(meta)

    def _meta(self, timeout: float | None) -> Meta:
        if self._future.done():
            return self._future.result()
        check_blocking(f"A wait for {self.id}")
        try:
            return wait_for(self.result, timeout)
        except TimeoutError:
            raise TimeoutError(f"The run has not ended within {timeout:g} s.") from None

    def __await__(self) -> Generator[Any, Any, Any]:
        """The task's value, without blocking the event loop."""
        return self._value().__await__()

    async def _value(self) -> Any:
        return value_of(self._task, await outcome(self.result))

    def __repr__(self) -> str:
        return f"<Run {self._task.name} {self.id}>"


class Workflow(Generic[P, R]):
    """A function that only orchestrates: it runs in the calling process, and the tasks that it calls are submitted."""

    def __init__(self, func: Callable[P, R]) -> None:
        self.func = func
        functools.update_wrapper(self, func)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.func(*args, **kwargs)


def workflow(func: Callable[P, R]) -> Workflow[P, R]:
    """Flyte 1's decorator, kept as a compatibility name: in Flyte 2, and here, any task may call tasks."""
    return Workflow(func)


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

    def __call__(self, task: Any, *args: Any, **kwargs: Any) -> Run | LocalRun:
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
                return LocalRun(_run_workflow(task, args, kwargs))
            _check(task)
            dispatcher = _choose(mode)
            if dispatcher is None:
                return LocalRun(_run_here(task, args, kwargs))
            return Run(dispatcher, task, dispatcher.apply_async(task, *_bound(task, args, kwargs), {}))

    async def aio(self, task: Any, *args: Any, **kwargs: Any) -> Run | LocalRun:
        """The same for asyncio code: calls that are submitted in one turn of the event loop share a write."""
        mode, custom = self._runner._mode, self._runner._options.get("custom_context") or {}
        if not isinstance(task, TaskTemplate) or (dispatcher := _choose(mode)) is None:
            return await asyncio.to_thread(self, task, *args, **kwargs)
        with context.custom_context(**custom), context.with_run_cache(self._runner.cache):
            result = await dispatcher.submit(task, *_bound(task, args, kwargs))
        return Run(dispatcher, task, result)


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
        raise TypeError(f"run({task!r}) is no task: decorate the function with @env.task.")


def _bound(task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Flyte's rules for a run's inputs: missing or too many are ValueErrors, unknown keywords are ignored."""
    known = task.native_interface.inputs
    kwargs = {name: value for name, value in kwargs.items() if name in known}
    try:
        inspect.signature(task.func).bind(*([None] if task.bind else []), *args, **kwargs)
    except TypeError as exc:
        raise ValueError(f"The inputs of {task.name} do not fit: {exc}.") from None
    return args, kwargs


def _run_here(task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    args, kwargs = _bound(task, args, kwargs)
    args, kwargs = task.load_call(*task.dump_call(args, kwargs))
    value = local.call(task, args, kwargs)
    if value is not None and not task.native_interface.outputs:
        raise errors.RuntimeDataValidationError(
            "o0", TypeError(f"a value of type {type(value).__name__} without a return annotation"), task.name
        )
    return value


def _run_workflow(flow: Workflow[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = flow(*args, **kwargs)
    return context.run_coroutine(value) if inspect.iscoroutine(value) else value


#: Seconds or timedelta, as Flyte's parameters take them.
Seconds = int | timedelta

run = Runner().run
