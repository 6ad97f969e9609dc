"""`trace`: helpers that are one step of a task and call no tasks themselves."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from .context import current_run
from .errors import TraceDoesNotAllowNestedTasksError

P = ParamSpec("P")
R = TypeVar("R")

#: The innermost traced function that runs, and the id of the task that it belongs to.
_traced: ContextVar[tuple[str, str] | None] = ContextVar("flyte_celery_traced", default=None)


def check_not_traced(task: str) -> None:
    """Refuse to call a task from a traced function.

    Raises:
        TraceDoesNotAllowNestedTasksError: If the current code runs in a function decorated with `trace`.
    """
    traced, run = _traced.get(), current_run.get()
    # A task that runs here, inside a traced function's context (an eager call), is another task: it may have children.
    if traced is not None and run is not None and traced[1] == run.task_id:
        raise TraceDoesNotAllowNestedTasksError(
            f"The traced function {traced[0]!r} calls the task {task!r}, but a trace cannot contain tasks: call the "
            f"task outside of it, or run its function in place with `.forward(...)`."
        )


@contextmanager
def _tracing(name: str) -> Iterator[None]:
    run = current_run.get()
    token = _traced.set(None if run is None else (name, run.task_id))
    try:
        yield
    finally:
        _traced.reset(token)


def trace(func: Callable[P, R]) -> Callable[P, R]:
    """Mark a helper as one step of a task: a function, coroutine function, generator or async generator.

    Outside of tasks it changes nothing. Inside, the helper must not call tasks; `task.forward(...)` is allowed.

    Raises:
        TraceDoesNotAllowNestedTasksError: When the helper calls a task.
    """
    name = getattr(func, "__qualname__", repr(func))
    function: Callable[..., Any] = func

    # The mark is set for each step of a generator and taken away while its consumer runs, which is not traced.
    if inspect.isasyncgenfunction(func):

        @functools.wraps(func)
        async def asynchronous_steps(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            generator = function(*args, **kwargs)
            step: Callable[..., Any] = generator.asend
            argument: Any = None
            while True:
                try:
                    with _tracing(name):
                        value = await step(argument)
                except StopAsyncIteration:
                    return
                try:
                    step, argument = generator.asend, (yield value)
                except GeneratorExit:
                    await generator.aclose()
                    raise
                except BaseException as exc:
                    step, argument = generator.athrow, exc

        wrapper: Any = asynchronous_steps
    elif inspect.isgeneratorfunction(func):

        @functools.wraps(func)
        def steps(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            generator = function(*args, **kwargs)
            step: Callable[..., Any] = generator.send
            argument: Any = None
            while True:
                try:
                    with _tracing(name):
                        value = step(argument)
                except StopIteration as end:
                    return end.value
                try:
                    step, argument = generator.send, (yield value)
                except GeneratorExit:
                    generator.close()
                    raise
                except BaseException as exc:
                    step, argument = generator.throw, exc

        wrapper = steps
    elif inspect.iscoroutinefunction(func):

        @functools.wraps(func)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            with _tracing(name):
                return await function(*args, **kwargs)

        wrapper = asynchronous
    else:

        @functools.wraps(func)
        def synchronous(*args: Any, **kwargs: Any) -> Any:
            with _tracing(name):
                return function(*args, **kwargs)

        wrapper = synchronous
    return wrapper  # type: ignore[no-any-return]
