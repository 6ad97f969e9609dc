"""The bridge between Celery's synchronous tracer and the replica's event loop.

The tracer (`celery.app.trace`) is a plain function that calls `task.run()` and wants a value back. It runs here,
unmodified, in a greenlet per task: when `run()` meets a coroutine, an asyncio task is made that steps it, and each step
is taken in the tracer's greenlet. So there is no thread per task, and retries, signals, links and result states stay
Celery's own. SQLAlchemy's asyncio layer works in a similar way.

```
start ──▶ tracer ──coroutine──▶ asyncio task: step, future, step, ... ──value──▶ tracer ──end──▶ ended(outcome)
                 ──park──▶ nothing of it runs until it is resumed ──value──▶ tracer
```
Celery keeps "the current task" and its request on stacks per greenlet, so they are right in the body. What the body
starts as asyncio tasks or threads runs outside the tracer's greenlet, and there those stacks are carried along
(`Carried`): they are pushed for each step of the coroutine and popped after it. `current_task`, `self.request` and the
parent ids of tasks that the body submits are right under any concurrency.
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
from ..client.stacks import working_for

T = TypeVar("T")

#: The Celery task and request that the running asyncio task works for.
_carried: contextvars.ContextVar[tuple[Any, Any] | None] = contextvars.ContextVar("flyte_celery_carried", default=None)


class _Ended:
    """What a tracer's greenlet hands over at the end of a call."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome


class _Tracer(greenlet):
    """A greenlet that runs the tracer of one call after the other: the memory of its stack is dear to get."""

    call: Call

    def __init__(self) -> None:
        super().__init__()
        #: Whether it is taking a step of a coroutine: what runs in that is asynchronous code, and no tracer.
        self.steps = False

    def run(self, call: Call) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # its types say property
        """The life of the greenlet."""
        assert self.parent is not None
        while True:
            self.call = call
            outcome = _Ended(call.function(*call.args))
            del self.call
            call = self.parent.switch(outcome)


#: Tracers without a call, and how many are kept.
_idle: list[_Tracer] = []
_MOST_IDLE = 100


class Abandoned(BaseException):
    """Thrown into the tracer of a task that was ended from outside: whatever its body does then counts no more.

    Its outcome is recorded already, so the tracer must neither store a result nor retry nor call anything back.
    """


class _Wrapped(Coroutine[Any, Any, Any]):
    """A coroutine around another one, which asyncio shows in its place."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self.__name__ = getattr(coroutine, "__name__", type(coroutine).__name__)
        self.__qualname__ = getattr(coroutine, "__qualname__", self.__name__)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def __iter__(self) -> _Wrapped:
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


class Carried(_Wrapped):
    """A coroutine that has Celery's stacks in place during each of its steps."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], task: Any, request: Any) -> None:
        super().__init__(coroutine)
        self._task = task
        self._request = request

    def send(self, value: Any) -> Any:
        """Resume the coroutine for one step."""
        return self._step(self._coroutine.send, value)

    def throw(self, exc: Any, *rest: Any) -> Any:
        """Raise in the coroutine."""
        return self._step(self._coroutine.throw, exc, *rest)

    def close(self) -> None:
        """End the coroutine before its time."""
        self._step(self._coroutine.close)

    def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        return _with_stacks(self._task, self._request, step, *args)


class _Driver(_Wrapped):
    """What the asyncio task of a call runs: each of its steps is one of the tracer's greenlet."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], call: Call) -> None:
        super().__init__(coroutine)
        self._call = call

    def send(self, value: Any) -> Any:
        """Go on with what was awaited."""
        return self._call.driven(value)

    def throw(self, exc: Any, *rest: Any) -> Any:
        """Raise where the tracer awaits."""
        return self._call.driven(_Raise(exc))

    def close(self) -> None:
        """Nothing: the tracer ends when nobody holds it."""


class _Raise:
    """A value that is raised where it arrives."""

    def __init__(self, exc: BaseException) -> None:
        self.exc = exc


class Call:
    """One run of a synchronous function that may await, on the event loop.

    Args:
        function: The function, and its arguments.
        ended: Called with what it returned.
    """

    def __init__(self, function: Callable[..., T], *args: Any, ended: Callable[[T], object]) -> None:
        self.function = function
        self.args = args
        self._ended = ended
        self._tracer: _Tracer | None = None
        #: The asyncio task that steps what the tracer awaits.
        self._driver: asyncio.Task[None] | None = None
        self._parked = False
        #: Whether what is awaited is the body.
        self._in_body = False
        #: An exception to deliver in place of the next `CancelledError` (a soft time limit).
        self._instead_of_cancel: BaseException | None = None
        #: Whether the driver was cancelled for the body's sake alone.
        self._uncancels = False
        #: Whether the call was ended from outside; its body is cancelled besides.
        self.abandoned = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the function until it awaits something; called on the event loop."""
        self._loop = loop
        self._context = contextvars.copy_context()
        tracer = self._tracer = _idle.pop() if _idle else _Tracer()
        tracer.gr_context = self._context
        self._go_on(self)

    def _go_on(self, value: Any) -> Any:
        """Let the tracer run until it awaits something; returns the future that it awaits, if that is new."""
        tracer = self._tracer
        assert tracer is not None
        handed = tracer.switch(value)
        if type(handed) is _Ended:
            ended, self._tracer = self._ended, None
            del self._ended  # whoever it tells has this call
            if len(_idle) < _MOST_IDLE:
                _idle.append(tracer)
            ended(handed.outcome)
        return handed

    # -- In the tracer's greenlet ------------------------------------------------------------------------------------

    def wait(self, coroutine: Coroutine[Any, Any, T], *, body: bool) -> T:
        """The value of a coroutine that the event loop awaits."""
        self._in_body = body
        try:
            return self._stepped(coroutine)
        finally:
            self._in_body = False
            if self._uncancels and self._driver is not None:  # what the tracer still awaits looks at this count
                self._driver.uncancel()
                self._uncancels = False
            if self.abandoned:
                raise Abandoned

    def _stepped(self, coroutine: Coroutine[Any, Any, T]) -> T:
        tracer = self._tracer
        assert tracer is not None
        assert tracer.parent is not None
        value = None
        if self._driver is None:
            # Not by the loop's factory: its steps have the right stacks already.
            self._driver = asyncio.Task(_Driver(coroutine, self), loop=self._loop, context=self._context)
            value = tracer.parent.switch()
        while True:
            tracer.steps = True
            try:
                awaited = coroutine.throw(self._thrown(value.exc)) if type(value) is _Raise else coroutine.send(value)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            finally:
                tracer.steps = False
            value = tracer.parent.switch(awaited)

    def _thrown(self, exc: BaseException) -> BaseException:
        if self._instead_of_cancel is None or not isinstance(exc, asyncio.CancelledError):
            return exc
        exc, self._instead_of_cancel = self._instead_of_cancel, None
        if self._driver is not None:
            self._driver.uncancel()  # the body goes on, and its timeouts and task groups look at this count
        return exc

    def park(self, begin: Callable[[Callable[[Any], None]], None]) -> Any:
        """See `park`."""
        assert self._tracer is not None
        assert self._tracer.parent is not None
        self._parked = True
        begin(self.resume)
        value = self._tracer.parent.switch(_PARKED)
        if isinstance(value, BaseException):
            raise value
        return value

    # -- On the event loop -------------------------------------------------------------------------------------------

    def driven(self, value: Any) -> Any:
        """One step of the driver."""
        awaited = self._go_on(value)
        if self._tracer is None or awaited is _PARKED:
            self._driver = None
            raise StopIteration
        return awaited

    def resume(self, value: Any) -> None:
        """Give a parked tracer what it waits for; an exception is raised there."""
        if self._parked:
            self._parked = False
            self._go_on(value)

    def abandon(self) -> None:
        """End the call: its body is cancelled, and whatever that does then counts no more."""
        self.abandoned = True
        if self._parked:
            self.resume(Abandoned())
        elif self._driver is not None:
            self._driver.cancel()

    def interrupt(self, instead: BaseException | None = None) -> None:
        """Cancel the body alone: the tracer goes on with its end, as with any other failure.

        Args:
            instead: What is raised in the body in place of `CancelledError`.
        """
        if self._driver is not None and self._in_body:
            self._instead_of_cancel = instead
            self._uncancels = instead is None
            self._driver.cancel()


_PARKED = object()


def _tracer() -> _Tracer | None:
    """The tracer that runs, and may await; None in other code, and in the coroutines that a tracer awaits."""
    tracer = getcurrent()
    return tracer if isinstance(tracer, _Tracer) and not tracer.steps else None


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a task's coroutine on the event loop and return its value; called by the tracer's greenlet.

    A sync task's thread may call it too, as for an async errback, and is blocked meanwhile.
    """
    tracer = _tracer()
    if tracer is None:
        if Loop.running is not None and not context.in_event_loop():
            return asyncio.run_coroutine_threadsafe(coroutine, Loop.running).result()
        return context.run_coroutine_here(coroutine)
    task = _task_stack.top
    if task is None:
        return tracer.call.wait(coroutine, body=False)
    token = _carried.set((task, task.request_stack.top))
    try:
        return tracer.call.wait(coroutine, body=True)
    finally:
        _carried.reset(token)


def driven() -> bool:
    """Whether the caller is a tracer that the event loop drives, so that it may `park`."""
    return _tracer() is not None


def park(begin: Callable[[Callable[[Any], None]], None]) -> Any:
    """Have a `driven` tracer wait for something that is no coroutine's: no asyncio task is needed for it.

    Args:
        begin: Called with the function that resumes the tracer, on the event loop and later: with the value that this
            returns, or an exception that it raises.
    """
    tracer = _tracer()
    assert tracer is not None
    return tracer.call.park(begin)


def _with_stacks(task: Any, request: Any, function: Callable[..., T], *args: Any) -> T:
    with working_for(task, request):
        return function(*args)


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
