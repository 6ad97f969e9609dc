"""A run in this process: what `flyte.run` does without a broker, or in the mode `"local"`, and its handle."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from typing import Any, Generic, ParamSpec, TypeVar

from celery import states
from celery.result import EagerResult
from celery.utils import uuid

from .. import context, errors
from ..task import TaskTemplate
from . import local
from .results import Meta
from .run_handle import ActionPhase, Run

P = ParamSpec("P")
R = TypeVar("R")
AnyTask = TaskTemplate[Any, Any]


class LocalRun(Run):
    """A run that has happened in this process: it had ended, and well, when `run` returned."""

    def __init__(self, value: Any) -> None:
        self.result = _LocalResult(uuid(), value, states.SUCCESS)

    @property
    def name(self) -> str:
        """As Flyte has it for local runs."""
        return "dry-run"

    @property
    def url(self) -> None:
        """None: Flower has not heard of it."""

    @property
    def phase(self) -> ActionPhase:
        """Local runs have no phase.

        Raises:
            ValueError: Always, as in Flyte.
        """
        raise ValueError("A local run has no phase: it was finished when run() returned.")

    @property
    def cached(self) -> bool:
        """False: a local run is never looked up."""
        return False

    def done(self) -> bool:
        """True."""
        return True

    def revoke(self, **options: Any) -> None:
        """Nothing: as any run that has ended, it stays as it is."""

    def _stop(self, reason: str) -> None:
        """Nothing: as any run that has ended, it stays as it is."""

    def _end(self, timeout: float | None) -> Meta:
        return {"status": states.SUCCESS, "result": self.result.result, "traceback": None}

    async def _end_aio(self) -> Meta:
        return self._end(None)

    def _value(self, meta: Meta) -> Any:
        return meta["result"]

    def __repr__(self) -> str:
        return f"<Run {self.id} in this process>"


class _LocalResult(EagerResult):
    """Celery's result of a call that ran at once, with a value in the task's type."""

    #: It was never looked up.
    cached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        """The value; nothing is waited for."""
        yield from ()
        return self.result


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


def run_workflow(flow: Workflow[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> LocalRun:
    """Run a workflow to its end."""
    value = flow(*args, **kwargs)
    return LocalRun(context.run_coroutine(value) if inspect.iscoroutine(value) else value)


def run_here(task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LocalRun:
    """Run a task to its end, with inputs and a value as if they had travelled.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is missing, or there are too many.
        flyte_celery.errors.RuntimeUserError: The task failed.
    """
    args, kwargs = task.load_call(*task.dump_call(*bound(task, args, kwargs)))
    value = local.call(task, args, kwargs)
    if value is not None and not task.native_interface.outputs:
        raise errors.RuntimeDataValidationError(
            "o0", TypeError(f"a value of type {type(value).__name__} without a return annotation"), task.name
        )
    return LocalRun(value)


def bound(task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Flyte's rules for a run's inputs: missing or too many are ValueErrors, unknown keywords are ignored."""
    known = task.native_interface.inputs
    kwargs = {name: value for name, value in kwargs.items() if name in known}
    try:
        inspect.signature(task.func).bind(*([None] if task.bind else []), *args, **kwargs)
    except TypeError as exc:
        raise ValueError(f"The inputs of {task.name} do not fit: {exc}.") from None
    return args, kwargs
