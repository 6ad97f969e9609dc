"""Running one task in a replica: Celery's tracer, unmodified, at the right place.

A task of an environment with `async def` runs on the event loop through the bridge; everything else runs on the
main thread, one at a time, where signals and soft time limits work as Celery users expect.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import ctypes
import functools
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.app.task import Context
from celery.app.trace import fast_trace_task
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.serialization import UnpickleableExceptionWrapper

from .. import kombu_json, overrun, redaction
from ..errors import RuntimeUserError, message_of
from ..fleet.storing import FENCE_FIELD, Fence
from ..shortening import cut, shorten
from . import bridge, wire

Outcome = tuple[Any, ...]


def trace(
    name: str, task_id: str, request: dict[str, Any], body: Any, content_type: str | None, content_encoding: str | None
) -> Outcome:
    """Run Celery's tracer and put what it returned, or raised, into a form that the worker can always read."""
    properties = request["properties"]
    fence = properties[FENCE_FIELD] = Fence(*properties[FENCE_FIELD])
    try:
        if content_type == kombu_json.CONTENT_TYPE and kombu_json.was_kombus():
            body, content_type = kombu_json.loads(body), None  # what is accepted the worker has looked at
        if request.get("headers") is None:
            request["headers"] = {header: request[header] for header in _own_headers(tuple(request))}
        try:
            failed, value, runtime = fast_trace_task(name, task_id, request, body, content_type, content_encoding)
        finally:
            if fence.next_attempt is not None and not isinstance(sys.exception(), bridge.Abandoned):
                fence.next_attempt.backend.end_attempt(fence)  # nothing was stored that it could go with
    except BaseException as exc:
        # `Reject` and `MemoryError` leave the tracer by design; so does whatever tears through everything else.
        shorten(exc, redaction.current().value)
        return (wire.RAISED, pickled_exception(ExceptionInfo()))
    return (wire.OK, failed, pickled_exception(value) if failed else value, runtime)


@functools.lru_cache(maxsize=256)
def _own_headers(fields: tuple[str, ...]) -> tuple[str, ...]:
    """Which fields of a request are headers of the caller's own, as Celery finds out for each request anew."""
    return tuple(Context(dict.fromkeys(fields)).headers or ())


def keep_secrets(task: Any) -> None:
    """Let what a task raises be free of secrets before Celery stores, logs or passes on any of it.

    Celery's own `autoretry_for` wraps `run` in the same way.
    """
    redactor = redaction.current()
    if not redactor:
        return
    run = task.run

    @functools.wraps(run)
    def clean_run(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except BaseException as exc:
            clean = redactor.exception(exc)
            if clean is exc:
                raise
            raise clean from None

    task.run = clean_run


def pickled_exception(info: ExceptionInfo) -> bytes:
    """Pickle exception info; what does not survive a pickle, or has a secret, is replaced by its description."""
    info.traceback = cut(info.traceback or "")
    if isinstance(info.exception, ExceptionWithTraceback):
        info.exception.tb = cut(info.exception.tb)
    data = _pickled_exception(info)
    redactor = redaction.current()
    return _described(info, redactor.text) if redactor.found_in(data) else data


def _pickled_exception(info: ExceptionInfo) -> bytes:
    try:
        data = pickle.dumps(info, protocol=pickle.HIGHEST_PROTOCOL)
        pickle.loads(data)
    except Exception:
        return _described(info, str)
    return data


def _described(info: ExceptionInfo, text: Callable[[str], str]) -> bytes:
    """The same failure as an error that any process has, with its texts passed through a function."""
    exc: Any = info.exception
    exc = exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
    name = str(exc.exc_cls_name) if isinstance(exc, UnpickleableExceptionWrapper) else type(exc).__name__
    try:
        raise RuntimeUserError(name, text(cut(message_of(exc))))
    except RuntimeUserError:
        described = ExceptionInfo()
    described.traceback = text(info.traceback or "")
    return pickle.dumps(described)


class MainThread:
    """Runs sync task bodies and hooks on the replica's main thread, in the order in which they come."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def run_until_closed(self) -> None:
        """The main thread's loop; each piece of work has context variables of its own."""
        while (work := self._work.get()) is not None:
            contextvars.copy_context().run(work)

    def close(self) -> None:
        """Let `run_until_closed` return, after everything that was submitted."""
        self._work.put(None)

    def submit(self, work: Callable[[], None]) -> None:
        """Have a function called on the main thread; it must not raise."""
        self._work.put(work)

    async def call(self, function: Callable[[], Any]) -> Any:
        """Call a function on the main thread and wait for its value, from the event loop."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def work() -> None:
            try:
                future.set_result(function())
            except BaseException as exc:
                future.set_exception(exc)

        self.submit(work)
        return await asyncio.wrap_future(future)


#: The task whose body is to be interrupted, and no other one; None for whatever runs on the main thread.
_interrupted: str | None = None


def interrupt_main_thread(task_id: str | None = None) -> None:
    """Raise `SoftTimeLimitExceeded` in the sync body that runs on the main thread, as Celery's own pool does.

    Args:
        task_id: Nothing happens when the body of this task has ended by then.
    """
    global _interrupted
    _interrupted = task_id
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def install_soft_timeout_signal() -> None:
    """Make SIGUSR1 mean "soft time limit exceeded", as in Celery's own pool processes."""

    def raise_soft_timeout(signum: int, frame: object) -> None:
        global _interrupted
        task_id, _interrupted = _interrupted, None
        if task_id is None or overrun.in_body(task_id):
            raise SoftTimeLimitExceeded()

    signal.signal(signal.SIGUSR1, raise_soft_timeout)


#: How a job reports that its body begins (`wire.ACCEPTED`) and how it ended (`wire.DONE`). Any thread may call it.
Tell = Callable[[tuple[Any, ...]], None]


class LoopJob:
    """A task with an async body: it runs on the event loop, beside others."""

    def __init__(self, number: int, args: tuple[Any, ...], tell: Tell) -> None:
        self._number = number
        self.task_id: str = args[1]
        self._call = bridge.Call(trace, *args, ended=self._done)
        self._tell = tell

    def accept(self) -> None:
        """Tell the worker that it begins."""
        self._tell((wire.ACCEPTED, self._number, time.monotonic()))

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; the worker has been told."""
        if self._call.abandoned:
            self._done((wire.CANCELLED,))
        else:
            self._call.start(loop)

    def _done(self, outcome: Outcome) -> None:
        self._tell((wire.DONE, self._number, outcome))

    def cancel(self, soft: float | None) -> None:
        """End the task alone, by cancelling its coroutine; for a soft limit by raising that in it."""
        if soft is not None:
            self._call.interrupt(SoftTimeLimitExceeded(soft))
        else:
            self._call.abandon()

    def interrupt(self) -> None:
        """Cancel the body's coroutine alone; the tracer goes on."""
        self._call.interrupt()


class SyncJob:
    """A task with a sync body: it runs on a thread, and reports from there, so that none waits for the event loop."""

    def __init__(self, number: int, args: tuple[Any, ...], tell: Tell) -> None:
        self.task_id: str = args[1]
        self._number = number
        self._args = args
        self._tell = tell
        self._thread: int | None = None

    def run(self) -> None:
        """Run the task on the calling thread; never raises."""
        self._thread = threading.get_ident()
        self._tell((wire.ACCEPTED, self._number, time.monotonic()))
        outcome = trace(*self._args)
        self._thread = None
        self._tell((wire.DONE, self._number, outcome))

    def cancel(self, soft: float | None) -> None:
        """Raise a soft limit in the body. A hard end is the worker's: it kills the replica."""
        if soft is not None:
            self._raise_soft(None)

    def interrupt(self) -> None:
        """Raise `SoftTimeLimitExceeded` in the body, unless it ends first."""
        self._raise_soft(self.task_id)

    def _raise_soft(self, body_of: str | None) -> None:
        if self._thread is None:
            return
        if self._thread == threading.main_thread().ident:
            interrupt_main_thread(body_of)
        else:
            # A signal reaches the main thread alone; this arrives with the next bytecode of the other one.
            raised = ctypes.py_object(SoftTimeLimitExceeded)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), raised)
