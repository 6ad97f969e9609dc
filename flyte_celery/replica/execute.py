"""Running one task in a replica: Celery's tracer, unmodified, at the right place.

A task of an environment with `async def` runs on the event loop through the bridge; everything else runs on the
main thread, one at a time, where signals and soft time limits work as Celery users expect.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import pickle
import queue
import signal
import threading
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.app.trace import fast_trace_task
from celery.exceptions import SoftTimeLimitExceeded

from . import bridge
from .wire import CANCELLED, OK, RAISED

Outcome = tuple[Any, ...]


def trace(*args: Any) -> Outcome:
    """Run Celery's tracer and put what it returned, or raised, into a form that the worker can always read."""
    try:
        failed, value, runtime = fast_trace_task(*args)
    except BaseException:
        # `Reject` and `MemoryError` leave the tracer by design; so does whatever tears through everything else.
        return (RAISED, pickled_exception(ExceptionInfo()))
    return (OK, failed, pickled_exception(value) if failed else value, runtime)


def pickled_exception(info: ExceptionInfo) -> bytes:
    """Pickle exception info; what does not survive a pickle is replaced by a description of itself."""
    try:
        data = pickle.dumps(info, protocol=pickle.HIGHEST_PROTOCOL)
        pickle.loads(data)
    except Exception as problem:
        name = type(info.exception).__name__
        try:
            raise RuntimeError(f"{name}: {info.exception} (the exception itself cannot be pickled: {problem})")
        except RuntimeError:
            return pickle.dumps(ExceptionInfo())
    return data


class MainThread:
    """Runs sync task bodies on the replica's main thread, in the order in which they come."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._running: asyncio.Future[Any] | concurrent.futures.Future[Any] | None = None

    def run_until_closed(self) -> None:
        """The main thread's loop."""
        while (work := self._work.get()) is not None:
            work()

    def close(self) -> None:
        """Let `run_until_closed` return, after everything that was submitted."""
        self._work.put(None)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function on the main thread and wait for its value, from the event loop."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        context = contextvars.copy_context()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(context.run(function, *args))
            except BaseException as exc:
                future.set_exception(exc)

        self._work.put(work)
        return await asyncio.wrap_future(future)


def interrupt_main_thread() -> None:
    """Raise `SoftTimeLimitExceeded` in the sync body that runs on the main thread, as Celery's own pool does."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def install_soft_timeout_signal() -> None:
    """Make SIGUSR1 mean "soft time limit exceeded", as in Celery's own pool processes."""

    def raise_soft_timeout(signum: int, frame: object) -> None:
        raise SoftTimeLimitExceeded()

    signal.signal(signal.SIGUSR1, raise_soft_timeout)


class Job:
    """One task in this replica, from its arrival to its outcome."""

    def __init__(self, number: int, args: tuple[Any, ...], on_loop: bool, main_thread: MainThread | None) -> None:
        self.number = number
        self._args = args
        self._main_thread = main_thread
        self._call = bridge.Call(trace, *args) if on_loop else None
        self._task: asyncio.Task[Any] | None = None
        self.cancelled = False

    async def run(self, accepted: Callable[[], None]) -> Outcome:
        """Run the task; never raises.

        Args:
            accepted: Called at the moment when the body's tracer begins.
        """
        self._task = asyncio.current_task()
        try:
            if self._call is not None:
                accepted()
                outcome: Outcome = await self._call.run()
            elif self._main_thread is not None:
                outcome = await self._main_thread.call(self._traced_there, accepted)
            else:  # a plain task of the app that somebody routed here: this replica's main thread is the loop's
                outcome = await asyncio.to_thread(self._traced_there, accepted)
            return outcome
        except asyncio.CancelledError:
            return (CANCELLED,)

    def _traced_there(self, accepted: Callable[[], None]) -> Outcome:
        accepted()
        return trace(*self._args)

    def cancel(self, soft: float | None) -> None:
        """End the task: by cancelling its coroutine, or for a soft limit by raising in its body."""
        if self._call is not None and self._task is not None:
            if soft is not None:
                self._call.replace_cancel(SoftTimeLimitExceeded(soft))
            else:
                self.cancelled = True
            self._task.cancel()
        elif soft is not None and self._main_thread is not None:
            interrupt_main_thread()
