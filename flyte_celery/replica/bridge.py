"""The bridge between Celery's synchronous tracer and the replica's event loop.

The tracer (`celery.app.trace`) is a plain function that calls `task.run()` and wants a value back. It runs here,
unmodified, in a greenlet per task: when `run()` meets a coroutine it switches to the event loop, which awaits the
coroutine like any other and switches back with the outcome. So there is no thread per task, and retries, signals,
links and result states stay Celery's own. SQLAlchemy's asyncio layer works the same way.

Celery keeps "the current task" and its request on stacks per greenlet. The body, and every asyncio task that it
starts, runs outside the tracer's greenlet, so those stacks are carried along (`Carried`): they are pushed for each
step of the coroutine and popped after it. `current_task`, `self.request` and the parent ids of tasks that the body
submits are right under any concurrency.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
from collections.abc import Callable, Coroutine, Generator
from typing import Any, ClassVar, TypeVar

from celery._state import _task_stack
from greenlet import getcurrent, greenlet

from .. import context

T = TypeVar("T")

#: The Celery task and request that the running asyncio task works for.
_carried: contextvars.ContextVar[tuple[Any, Any] | None] = contextvars.ContextVar("flyte_celery_carried", default=None)


class _Tracer(greenlet):
    """A greenlet that runs the tracer; it sees the context variables of the asyncio task that drives it."""

    def __init__(self, function: Callable[..., Any], driver: greenlet) -> None:
        super().__init__(function, driver)
        self.gr_context = driver.gr_context
        #: The coroutine of the body while it is awaited.
        self.body: Carried | None = None


class Abandoned(BaseException):
    """Thrown into the tracer of a task that was ended from outside: whatever its body does then counts no more.

    Its outcome is recorded already, so the tracer must neither store a result nor retry nor call anything back.
    """


class Carried(Coroutine[Any, Any, Any]):
    """A coroutine that has Celery's stacks in place during each of its steps."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], task: Any, request: Any) -> None:
        self._coroutine = coroutine
        self._task = task
        self._request = request
        #: An exception to deliver in place of the next `CancelledError` (a soft time limit).
        self.instead_of_cancel: BaseException | None = None
        self.__name__ = getattr(coroutine, "__name__", type(coroutine).__name__)
        self.__qualname__ = getattr(coroutine, "__qualname__", self.__name__)

    def send(self, value: Any) -> Any:
        """Resume the coroutine for one step."""
        return self._step(self._coroutine.send, value)

    def throw(self, exc: Any, *rest: Any) -> Any:
        """Raise in the coroutine."""
        if self.instead_of_cancel is not None and isinstance(exc, asyncio.CancelledError):
            exc, self.instead_of_cancel = self.instead_of_cancel, None
            if (task := asyncio.current_task()) is not None:
                task.uncancel()  # the body goes on, and its timeouts and task groups look at this count
        return self._step(self._coroutine.throw, exc, *rest)

    def close(self) -> None:
        """End the coroutine before its time."""
        self._step(self._coroutine.close)

    def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        return _with_stacks(self._task, self._request, step, *args)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def __iter__(self) -> Carried:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    @property
    def cr_frame(self) -> Any:
        """The body's frame, for asyncio's stack printing."""
        return getattr(self._coroutine, "cr_frame", None)

    @property
    def cr_running(self) -> bool:
        """Whether the body is executing right now, for asyncio's stack printing."""
        return bool(getattr(self._coroutine, "cr_running", False))

    @property
    def cr_code(self) -> Any:
        """The body's code, for asyncio's stack printing."""
        return getattr(self._coroutine, "cr_code", None)

    @property
    def cr_await(self) -> Any:
        """What the body awaits, for asyncio's stack printing."""
        return getattr(self._coroutine, "cr_await", None)


class Call:
    """One run of a synchronous function that may await: `await Call(tracer, ...).run()` from the event loop."""

    def __init__(self, function: Callable[..., T], *args: Any) -> None:
        self._function = function
        self._args = args
        self._greenlet: _Tracer | None = None
        #: Whether the call was ended from outside; its body is cancelled besides.
        self.abandoned = False
        #: The asyncio task that was cancelled for the body's sake alone.
        self._uncancels: asyncio.Task[Any] | None = None

    async def run(self) -> Any:
        """Drive the function to its end, awaiting on the loop what it hands over with `wait`."""
        tracer = self._greenlet = _Tracer(self._function, getcurrent())
        handed = tracer.switch(*self._args)
        while not tracer.dead:
            try:
                value = await self._unless_abandoned(handed)
            except BaseException as exc:
                # With its traceback, which greenlets drop otherwise: it tells where the body failed.
                handed = tracer.throw(type(exc), exc, exc.__traceback__)
            else:
                handed = tracer.switch(value)
        return handed

    async def _unless_abandoned(self, handed: Any) -> Any:
        try:
            return await handed
        finally:
            if self._uncancels is not None:  # what the tracer still awaits looks at this count
                self._uncancels.uncancel()
                self._uncancels = None
            if self.abandoned:
                raise Abandoned

    def cancel_body(self, driver: asyncio.Task[Any]) -> None:
        """Cancel the body alone: the tracer goes on with its end, as with any other failure.

        Args:
            driver: The asyncio task of `run`.
        """
        if self._greenlet is not None and self._greenlet.body is not None:
            driver.cancel()
            self._uncancels = driver

    def replace_cancel(self, exc: BaseException) -> None:
        """Let the next cancellation arrive in the body as `exc`."""
        if self._greenlet is not None and self._greenlet.body is not None:
            self._greenlet.body.instead_of_cancel = exc


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a task's coroutine on the event loop and return its value; called by the tracer's greenlet.

    A sync task's thread may call it too, as for an async errback, and is blocked meanwhile.
    """
    tracer = getcurrent()
    if not isinstance(tracer, _Tracer) or tracer.parent is None:
        if Loop.running is not None and not context.in_event_loop():
            return asyncio.run_coroutine_threadsafe(coroutine, Loop.running).result()
        return context.run_coroutine_here(coroutine)
    task = _task_stack.top
    request = task.request_stack.top if task is not None else None
    if task is None:
        return tracer.parent.switch(coroutine)  # type: ignore[no-any-return]
    body = tracer.body = Carried(coroutine, task, request)
    token = _carried.set((task, request))
    try:
        return tracer.parent.switch(body)  # type: ignore[no-any-return]
    finally:
        _carried.reset(token)
        tracer.body = None


def driven() -> bool:
    """Whether the caller is a tracer that the event loop drives, so that it may hand over coroutines."""
    return isinstance(getcurrent(), _Tracer)


def hand_over(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of our own, not a task's, on the event loop from a `driven` tracer."""
    parent = getcurrent().parent
    assert parent is not None
    value: T = parent.switch(coroutine)
    return value


def _with_stacks(task: Any, request: Any, function: Callable[..., T], *args: Any) -> T:
    _task_stack.push(task)
    task.request_stack.push(request)
    try:
        return function(*args)
    finally:
        task.request_stack.pop()
        _task_stack.pop()


class Loop(asyncio.SelectorEventLoop):
    """The event loop of a replica: asyncio tasks and threads that a body starts carry its Celery task along."""

    #: The loop of this process, while it runs.
    running: ClassVar[Loop | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(task_factory)

    def run_forever(self) -> None:
        """Run until stopped."""
        Loop.running = self
        try:
            super().run_forever()
        finally:
            Loop.running = None

    def run_in_executor(  # type: ignore[override]  # as typeshed spells it, no wrapper fits
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run a function in a thread, as `asyncio.to_thread` does, or in another executor."""
        carried = _carried.get()
        # Celery's stacks mean nothing in another process, and do not travel there.
        if carried is not None and not isinstance(executor, concurrent.futures.ProcessPoolExecutor):
            func = functools.partial(_with_stacks, *carried, func)
        return super().run_in_executor(executor, func, *args)


def task_factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """Make asyncio tasks that a body starts (`gather`, `create_task`) carry the body's Celery task along."""
    carried = _carried.get()
    if carried is not None and not isinstance(coroutine, Carried):
        coroutine = Carried(coroutine, *carried)
    return asyncio.Task(coroutine, loop=loop, **options)
