"""Waiting for results without polling: from threads, from any event loop, from inside tasks.

One background thread per process has an event loop and one Redis pub/sub connection. A waiter subscribes to the
channel that Celery publishes a task's result on, and then reads the key once, so that a result that came before the
wait is not missed. Backends other than Redis are asked by Celery itself, in a thread per wait.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Generator
from typing import Any

import redis
import redis.asyncio
from celery import states
from celery.backends.base import Backend
from celery.backends.redis import RedisBackend
from celery.result import AsyncResult, EagerResult
from celery.utils.log import get_logger

from ..errors import RuntimeSystemError
from ..task import TaskTemplate

logger = get_logger("flyte_celery.results")

Meta = dict[str, Any]


class EnvironmentResult(AsyncResult):
    """Celery's `AsyncResult` of an environment's task: its value has the task's return type, and it can be awaited."""

    #: The task, when it is known in this process.
    template: TaskTemplate[Any, Any] | None = None
    #: Whether Celery was told of the call before it was published (see `needs_no_preparation`).
    prepared = True

    def then(self, callback: Any, on_error: Any = None, weak: bool = False) -> Any:
        """Call back when the result is there, as Celery's `AsyncResult.then`."""
        promise = super().then(callback, on_error, weak)
        consumer = None if self.prepared else getattr(self.backend, "result_consumer", None)
        if consumer is not None:  # it subscribed only now: what came before is read once, as `get` does
            consumer.on_wait_for_pending(self)
        return promise

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for the result, as Celery's `AsyncResult.get` does, and give it its type."""
        return self.typed(super().get(*args, **kwargs))

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
        meta = await asyncio.wrap_future(waiter_of(self.backend).wait(str(self.id)))
        self.maybe_throw_meta(meta)
        return self.typed(meta["result"])

    def maybe_throw_meta(self, meta: Meta) -> None:
        """Raise what the task raised."""
        if meta["status"] in states.PROPAGATE_STATES:
            raise meta["result"]


class EagerEnvironmentResult(EagerResult):
    """The result of a call that ran at once (`apply`, `task_always_eager`), with the same face as any other."""

    template: TaskTemplate[Any, Any]

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


class ResultWaiter:
    """Waits for the results of one backend."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: redis.asyncio.Redis | None = None
        self._pubsub: Any = None

    def wait(self, task_id: str) -> concurrent.futures.Future[Meta]:
        """A future of the task's result, as Celery's backend describes it; cancelling it forgets the wait."""
        connparams = getattr(self._backend, "connparams", None)
        if connparams is None or not hasattr(self._backend, "get_key_for_task"):
            return _ask_celery(self._backend, task_id)
        loop = self._running_loop(connparams)
        return asyncio.run_coroutine_threadsafe(self._one(task_id), loop)

    def _running_loop(self, connparams: dict[str, Any]) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                ready = threading.Event()
                thread = threading.Thread(
                    target=self._serve, args=(loop, connparams, ready), name="flyte-celery-results", daemon=True
                )
                thread.start()
                ready.wait()
                self._loop = loop
            return self._loop

    def _serve(self, loop: asyncio.AbstractEventLoop, connparams: dict[str, Any], ready: threading.Event) -> None:
        asyncio.set_event_loop(loop)
        self._client = async_client(connparams)
        self._pubsub = self._client.pubsub()
        self._futures: dict[str, list[asyncio.Future[Meta]]] = {}
        self._subscribed = asyncio.Event()
        self._subscribing = asyncio.Lock()
        self._reads: set[asyncio.Future[None]] = set()
        listener = loop.create_task(self._listen())
        loop.call_soon(ready.set)
        try:
            loop.run_forever()
        finally:
            listener.cancel()

    async def _one(self, task_id: str) -> Meta:
        key = self._key(task_id)
        future: asyncio.Future[Meta] = asyncio.get_running_loop().create_future()
        waiting = self._futures.setdefault(key, [])
        waiting.append(future)
        try:
            if len(waiting) == 1:
                await self._retried(self._subscribe, key)
            else:
                await self._read(key)
            return await future
        finally:
            waiting.remove(future)
            if not waiting and self._futures.get(key) is waiting:
                del self._futures[key]
                with contextlib.suppress(redis.ConnectionError, OSError):  # the subscription went with the connection
                    await self._pubsub.unsubscribe(key)

    async def _read(self, key: str) -> None:
        assert self._client is not None
        self._settle(key, await self._retried(self._client.get, key))

    async def _subscribe(self, key: str) -> None:
        # redis-py's pub/sub object connects at its first command; two first commands at once would connect twice.
        async with self._subscribing:
            await self._pubsub.subscribe(key)
        self._subscribed.set()

    async def _listen(self) -> None:
        while True:
            await self._subscribed.wait()
            try:
                message = await self._pubsub.get_message(timeout=None)
            except (redis.ConnectionError, redis.TimeoutError, OSError) as exc:
                logger.warning("The connection to the result backend was lost (%s); reconnecting", exc)
                await self._recover()
                continue
            if message is not None and message["type"] == "message":
                self._settle(_text(message["channel"]), message["data"])
            elif message is not None and message["type"] == "subscribe":
                # Read only when the server has confirmed: it serves another connection's GET before an earlier
                # SUBSCRIBE, and a result that is published in between would be missed for ever.
                self._reading(asyncio.ensure_future(self._read(_text(message["channel"]))))
            elif not self._pubsub.subscribed:
                self._subscribed.clear()

    async def _recover(self) -> None:
        """Subscribe again and read what may have come meanwhile."""
        delay = 0.1
        while True:
            try:
                await self._pubsub.aclose()
                assert self._client is not None
                self._pubsub = self._client.pubsub()
                keys = list(self._futures)
                if not keys:
                    self._subscribed.clear()
                    return
                await self._pubsub.subscribe(*keys)  # the confirmations make the listener read
                return
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)

    def _reading(self, read: asyncio.Future[None]) -> None:
        self._reads.add(read)  # a loop keeps weak references only
        read.add_done_callback(self._reads.discard)

    async def _retried(self, command: Any, key: str) -> Any:
        delay = 0.1
        while True:
            try:
                return await command(key)
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)

    def _settle(self, key: str, payload: bytes | str | None) -> None:
        if not payload:
            return
        meta = self._backend.meta_from_decoded(self._backend.decode(payload))
        if meta["status"] not in states.READY_STATES:
            return
        for future in self._futures.get(key, ()):
            if not future.done():
                future.set_result(meta)

    def _key(self, task_id: str) -> str:
        return _text(self._backend.get_key_for_task(task_id))


def needs_no_preparation(backend: Any) -> bool:
    """Whether a call may be published without telling its result backend first, by Celery's `on_task_call`.

    Celery's Redis backend would subscribe to each result, so that one which comes before `get` is pushed to it. That
    costs a command per call, and the messages pile up for those who never ask. `get` subscribes itself and then reads
    the key once, here and in any other process, so nothing is missed without; `EnvironmentResult.then` does the same.
    Other backends may rely on it.
    """
    return type(backend).on_task_call in (Backend.on_task_call, RedisBackend.on_task_call)


def outcome_of(result: Any) -> concurrent.futures.Future[Meta]:
    """A future of how a submitted call ends, as Celery's backend describes it; cancelling it forgets the wait.

    Args:
        result: A result, or anything else with the call's `id` and `backend`.
    """
    if not isinstance(result, EagerResult):
        return waiter_of(result.backend).wait(str(result.id))
    future: concurrent.futures.Future[Meta] = concurrent.futures.Future()
    future.set_result({"status": result.state, "result": result.result, "traceback": result.traceback})
    return future


def waiter_of(backend: Any) -> ResultWaiter:
    """The waiter of a backend in this process."""
    waiter = _waiters.get(id(backend))
    if waiter is None or waiter._backend is not backend:
        waiter = _waiters[id(backend)] = ResultWaiter(backend)
    return waiter


_waiters: dict[int, ResultWaiter] = {}
# A forked child has neither the thread nor the right to the connection.
os.register_at_fork(after_in_child=_waiters.clear)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def async_client(connparams: dict[str, Any]) -> redis.asyncio.Redis:
    """An asyncio client with the connection parameters of Celery's backend."""
    params = {name: value for name, value in connparams.items() if name not in ("max_connections", "connection_class")}
    params.pop("retry_on_timeout", None)
    params.pop("socket_timeout", None)  # a subscription may be silent for as long as a task takes
    kind = connparams.get("connection_class")
    if kind is None:
        connection: type[Any] = redis.asyncio.Connection
    elif issubclass(kind, redis.UnixDomainSocketConnection):
        connection = redis.asyncio.UnixDomainSocketConnection
    else:
        connection = redis.asyncio.SSLConnection
    return redis.asyncio.Redis(connection_pool=redis.asyncio.ConnectionPool(connection_class=connection, **params))


def _ask_celery(backend: Any, task_id: str) -> concurrent.futures.Future[Meta]:
    future: concurrent.futures.Future[Meta] = concurrent.futures.Future()
    if backend.as_uri() == "rpc://":  # replies go to the queue of the thread that called, and a wait would never end
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
        try:
            result = AsyncResult(task_id, backend=backend)
            result.get(propagate=False, disable_sync_subtasks=False)
            future.set_result({"status": result.state, "result": result.result, "traceback": result.traceback})
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=ask, name=f"flyte-celery-result-{task_id}", daemon=True).start()
    return future
