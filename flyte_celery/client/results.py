"""Results of environment tasks, and waiting for them: from threads, from any event loop, from inside tasks.

On Redis, results come to the process's reply channel and nothing is polled, see `replies`. Other backends are asked by
Celery itself, in a thread per wait.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from celery import states
from celery.backends.base import Backend
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, EagerResult
from kombu.utils.encoding import ensure_bytes

from .. import context, suspension
from ..errors import RuntimeSystemError
from ..task import TaskTemplate
from .readers import LoopWait, ThreadWait
from .replies import Reply, ReplyChannel
from .waits import check_blocking, check_circle

Meta = dict[str, Any]


class EnvironmentResult(AsyncResult):
    """Celery's `AsyncResult` of an environment's task: its value has the task's return type, and it can be awaited."""

    #: The task, when it is known in this process.
    template: TaskTemplate[Any, Any] | None = None
    #: What the reply channel knows of it; None where the backend has no such channel.
    reply: Reply | None = None
    #: Whether this call was answered from the cache, and made nothing run.
    hit = False
    #: Whether Celery's own subscription is used instead, for what the reply channel does not do.
    left_to_celery = False
    _filler: _CacheFiller | None = None

    if TYPE_CHECKING:
        backend: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if hasattr(self.backend, "replies"):
            self.reply = self.backend.reply(str(self.id))

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for the result, as Celery's `AsyncResult.get` does, and give it its type.

        It may be called inside a task, too, which holds no slot meanwhile.

        Raises:
            flyte_celery.errors.SyncTaskCallInAsyncContextError: It would block the event loop of an async task.
            flyte_celery.errors.StarvationError: The task would wait for itself, or for one that waits for it.
        """
        if context.current_run.get() is not None:
            check_blocking(f"get() of {self.id}")
            check_circle(self.id)
            kwargs.setdefault("disable_sync_subtasks", False)
            if self.reply is None and self._cache is None and not self.ignored:
                self._wait_slotless(*args, **kwargs)
        value = super().get(*args, **kwargs)
        return value if self.ignored else self.typed(value)

    def _wait_slotless(self, timeout: float | None = None, *_: Any, **__: Any) -> None:
        """Wait without a slot for what Celery itself then finds at once."""
        try:
            wait_for(self, timeout)
        except TimeoutError:
            raise CeleryTimeoutError(f"No result of {self.id} within {timeout:g} s.") from None

    def then(self, callback: Any, on_error: Any = None, weak: bool = False) -> Any:
        """Call back when the result is read, as Celery's `AsyncResult.then`."""
        if self.reply is None:
            return super().then(callback, on_error, weak)
        if self._filler is None:
            self._filler = _CacheFiller(self)
            self.backend.replies.attach(self.reply, self._filler, None)
            if self._cache is None:  # it may be here already, stored by one who knows no reply channel
                self._maybe_set_cache(self.backend.get_task_meta(self.id, cache=False))
        return self.on_ready.then(callback, on_error)

    def forget(self) -> None:
        """Delete the result, here and in Redis."""
        super().forget()
        if self.reply is not None:
            self.backend.replies.forget(self.reply)

    def answer(self, payload: bytes | str) -> None:
        """The call is not made, because its result is here: this one is done."""
        self.hit = True
        self.reply = Reply(ensure_bytes(self.backend.get_key_for_task(self.id)))
        self.reply.payload = payload
        self.fill_cache()

    @property
    def cached(self) -> bool:
        """Whether the value came from the cache. False as long as it is not there."""
        return self.hit or bool((self._get_task_meta() or {}).get("cached"))

    def fill_cache(self) -> None:
        """Have Celery's `AsyncResult` know the reply, which is here."""
        if self._cache is None and self.reply is not None and self.reply.payload is not None:
            self._maybe_set_cache(self.backend.decode_result(self.reply.payload))

    def typed(self, value: Any) -> Any:
        """Turn a stored result into the task's return type."""
        if self.template is None or isinstance(value, BaseException):
            return value
        return self.template.load_result(value)

    def __await__(self) -> Generator[Any, Any, Any]:
        """Wait for the result without blocking the event loop and without polling.

        Raises:
            Exception: What the task raised, as Celery's `get` does.
        """
        return self._wait().__await__()

    async def _wait(self) -> Any:
        if self.ignored:
            return None
        check_circle(self.id)
        meta = await outcome(self)
        if meta["status"] in states.PROPAGATE_STATES:
            raise meta["result"]
        return self.typed(meta["result"])


class _CacheFiller:
    """Fills a result's cache when the reply lands, which fires what was given to `then`."""

    def __init__(self, result: EnvironmentResult) -> None:
        self._result = weakref.ref(result)

    def land(self, arrived: Any) -> None:
        # Celery, where it waits itself, would not tell of a result that it did not put there.
        if (result := self._result()) is not None and not result.left_to_celery:
            result.fill_cache()


class EagerEnvironmentResult(EagerResult):
    """The result of a call that ran at once (`apply`, `task_always_eager`), with the same face as any other."""

    template: TaskTemplate[Any, Any]
    #: A call that runs at once is never looked up.
    cached = False

    @classmethod
    def of(cls, result: EagerResult, template: TaskTemplate[Any, Any]) -> EagerEnvironmentResult:
        """Give Celery's eager result the face of an environment's."""
        typed = cls(*result.__reduce_args__())
        typed.template = template
        return typed

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """The value with its type; raises what the task raised."""
        value = super().get(*args, **kwargs)
        return self.template.load_result(value) if self.successful() else value

    def __await__(self) -> Generator[Any, Any, Any]:
        """The same for code that awaits its results: nothing is waited for."""
        yield from ()
        return self.get(disable_sync_subtasks=False)


async def outcome(result: Any) -> Meta:
    """How a submitted call ends, as Celery's backend describes it, without blocking the event loop."""
    if result.ignored:
        return dict(_IGNORED)
    reply = getattr(result, "reply", None)
    if reply is None:
        future = _outcome_of(result)
        asked = LoopWait(None)
        future.add_done_callback(asked.land)
        try:
            async with suspension.awaiting(future.cancel):
                await asked.get()
            return future.result()
        finally:
            future.cancel()
    channel = result.backend.replies
    if reply.payload is None:
        wait = LoopWait(channel)
        channel.attach(reply, wait, None)
        try:
            channel.look_after([reply])
            async with suspension.awaiting(lambda: wait.land(None), lambda: [result.id]):
                await wait.get()
        finally:
            channel.detach(reply, wait)
    return result.backend.decode_result(reply.payload)  # type: ignore[no-any-return]


def wait_for(result: Any, timeout: float | None = None) -> Meta:
    """How a submitted call ends, as Celery's backend describes it; a task that waits gives its slot away meanwhile.

    Raises:
        TimeoutError: It has not ended within `timeout` seconds.
    """
    reply = getattr(result, "reply", None)
    if reply is None or isinstance(result, EagerResult) or result.ignored:
        future = _outcome_of(result)
        try:
            with suspension.waiting(future.cancel):
                future.exception(timeout)
            return future.result()
        finally:
            future.cancel()
    channel = result.backend.replies
    if reply.payload is None:
        wait = ThreadWait(channel)
        channel.attach(reply, wait, None)
        try:
            channel.look_after([reply])
            awaited = None if timeout is not None else lambda: [result.id]
            with suspension.waiting(lambda: wait.land(None), awaited):
                wait.get(timeout)
        finally:
            channel.detach(reply, wait)
    return result.backend.decode_result(reply.payload)  # type: ignore[no-any-return]


def needs_no_preparation(backend: Any) -> bool:
    """Whether a call may be published without telling its result backend first, by Celery's `on_task_call`.

    Celery's Redis backend would subscribe to each result. Here results come to the reply channel; whoever asks without
    one subscribes and then reads the key once. Other backends may rely on it.
    """
    return hasattr(backend, "replies") or type(backend).on_task_call is Backend.on_task_call


def is_known(result: Any) -> bool:
    """Whether this process knows how a submitted call ends, so that a wait for it would be over at once."""
    reply = getattr(result, "reply", None)
    return result.ignored or isinstance(result, EagerResult) or (reply is not None and reply.payload is not None)


def _outcome_of(result: Any) -> concurrent.futures.Future[Meta]:
    """A future of how a call without a reply channel ends; cancelling it ends the wait."""
    if isinstance(result, EagerResult) or result.ignored:
        future: concurrent.futures.Future[Meta] = concurrent.futures.Future()
        eager = {"status": result.state, "result": result.result, "traceback": result.traceback}
        future.set_result(dict(_IGNORED) if result.ignored else eager)
        return future
    return _ask_celery(result)


class _Landing:
    """How a call ends, on a reply channel: as a future, without the lock and the condition that make one dear."""

    __slots__ = ("__weakref__", "_backend", "_landed", "_reply")

    def __init__(self, backend: Any, reply: Reply, landed: Callable[[Any], object]) -> None:
        self._backend, self._reply, self._landed = backend, reply, landed
        backend.replies.attach(reply, self, None)

    def land(self, arrived: Any) -> None:
        """The reply is here."""
        self._landed(self)

    def done(self) -> bool:
        """Whether the reply is here."""
        return self._reply.payload is not None

    def result(self) -> Meta:
        """How the call ended, which is known."""
        return self._backend.decode_result(self._reply.payload)  # type: ignore[no-any-return]

    def cancel(self) -> None:
        """Forget the call."""
        self._backend.replies.detach(self._reply, self)


#: How a call ends, for one who knows when to look.
Ending = _Landing | concurrent.futures.Future[Meta]


def ending_of(call: Any, landed: Callable[[Any], object]) -> Ending:
    """How one of many submitted calls ends; it is forgotten when nobody holds what this returns.

    Args:
        call: What was submitted.
        landed: Called once when it is known, with something that does not matter.
    """
    reply = getattr(call, "reply", None)
    if reply is None or call.ignored or isinstance(call, EagerResult):
        future = _outcome_of(call)
        future.add_done_callback(landed)
        return future
    return _Landing(call.backend, reply, landed)


#: Celery's `get` says the same at once of a task whose result is not stored.
_IGNORED = {"status": states.SUCCESS, "result": None, "traceback": None}


def reply_channel(backend: Any) -> ReplyChannel | None:
    """The reply channel of a backend; None when it has none, and other threads bring its results."""
    channel: ReplyChannel | None = getattr(backend, "replies", None)
    return channel


#: Seconds between two looks whether the wait for a result is still wanted, where Celery itself waits for it.
_LOOK = 5.0


def _ask_celery(pending: Any) -> concurrent.futures.Future[Meta]:
    future: concurrent.futures.Future[Meta] = concurrent.futures.Future()
    # Its replies go to the queue of the thread that called, and a wait elsewhere would never end.
    if pending.backend.as_uri() == "rpc://":
        future.set_exception(
            RuntimeSystemError(
                "ResultBackendUnsupported",
                "The result backend rpc:// has a reply queue for each thread, so only `.get()` in the thread that "
                "called can wait. For await, flyte.run, flyte.map and tasks that call tasks, set `result_backend` to a "
                "Redis, for example.",
            )
        )
        return future

    def ask() -> None:
        outcome, failure = None, None
        try:
            result = AsyncResult(pending.id, backend=pending.backend)
            while outcome is None and not future.cancelled():
                with contextlib.suppress(CeleryTimeoutError):
                    result.get(timeout=_LOOK, propagate=False, disable_sync_subtasks=False)
                    outcome = {"status": result.state, "result": result.result, "traceback": result.traceback}
        except BaseException as exc:
            failure = exc
        if not future.set_running_or_notify_cancel():
            return
        if failure is not None:
            future.set_exception(failure)
        else:
            assert outcome is not None
            future.set_result(outcome)

    threading.Thread(target=ask, name=f"flyte-celery-result-{pending.id}", daemon=True).start()
    return future
