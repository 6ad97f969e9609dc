"""Celery's Redis result backend inside a replica: one round trip for many results, and no blocked event loop.

The format of results is Celery's own, so any process reads them. Celery reads the old state before it stores a new
one, to protect a result from a task that runs twice; here the claim does that: a worker that does not own the task any
more stores nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import redis
import redis.asyncio
from celery import states
from celery.utils.log import get_logger
from redis.exceptions import NoScriptError

from ..client.backend import KEEP_FIELD, RepliesBackend, following_of
from ..fleet.patience import backoff, passes
from ..fleet.scripts import script
from ..fleet.storing import UNFENCED, Fence, Store, followed
from . import bridge

logger = get_logger("flyte_celery.replica")

#: Backends that this one replaces, by the scheme of `result_backend`. Behind Sentinel the client's own stores results.
REPLACES = ("redis", "rediss", "redis+socket")

#: Seconds after which a write is tried again: the connection may be dead without having said so.
WRITE_TIMEOUT = 10.0

#: Most results in one write.
MOST_AT_ONCE = 200


class ReplicaBackend(RepliesBackend):
    """Stores results of tasks on the event loop in batches, and those of sync tasks in one command."""

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        fence = Fence.of(request)
        # After a success nothing follows but a chord's callback; after a failure errbacks do, and Celery calls them
        # when the failure is stored.
        finished = state == states.SUCCESS and not getattr(request, "chord", None)
        pair = UNFENCED if fence is None else fence.pair
        write = self.write_of(task_id, result, state, traceback, request, pair, finished=finished)
        if (following := following_of(task_id, state, fence)) is not None:
            write = followed(write, following)
        elif state == states.SUCCESS and (keep := getattr(request, KEEP_FIELD, None)) is not None:
            write = keep.added_to(write)
        if not self._write(write):
            logger.warning("The result of %s is not stored: its worker does not own the task any more.", task_id)
        return result

    def _write(self, write: Store) -> int:
        if bridge.driven():
            return bridge.hand_over(_batch_of(self).add(write))
        return _store_patiently(self.client, write)


def _store_patiently(client: redis.Redis, write: Store) -> int:
    for delay in backoff():
        try:
            return int(script("store").run(client, *write))
        except (redis.RedisError, OSError) as exc:
            if not passes(exc):
                raise
            logger.warning("A result waits for Redis: %s", exc)
        time.sleep(delay)
    raise AssertionError("the back-off ends never")


class ResultBatch:
    """Gathers results while the last write is on its way, and writes them together."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._waiting: list[tuple[Store, asyncio.Future[int]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def add(self, store: Store) -> int:
        """Store a result and wait until it is; says what the script says."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        self._waiting.append((store, done))
        if self._writer is None:
            self._writer = loop.create_task(self._write())
        return await done

    async def _write(self) -> None:
        try:
            while self._waiting:
                now, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
                for (_, done), outcome in zip(now, await self._execute([store for store, _ in now]), strict=True):
                    if done.done():
                        continue
                    if isinstance(outcome, BaseException):
                        done.set_exception(outcome)
                    else:
                        done.set_result(outcome)
        finally:
            self._writer = None

    async def _execute(self, stores: list[Store]) -> list[Any]:
        """Write until Redis has answered: results that are finished while it is away are stored when it is back."""
        outcomes: list[Any] = [None] * len(stores)
        left = list(range(len(stores)))
        for delay in backoff():
            for index, outcome in zip(left, await self._attempt([stores[index] for index in left]), strict=True):
                outcomes[index] = outcome
            left = [index for index in left if isinstance(outcomes[index], Exception) and passes(outcomes[index])]
            if not left:
                break
            logger.warning("%d result(s) wait for Redis: %s", len(left), outcomes[left[0]])
            await asyncio.sleep(delay)
        return outcomes

    async def _attempt(self, stores: list[Store]) -> list[Any]:
        """One write; the outcome of each, which is an exception where there is no other."""
        try:
            pipe: Any = self._client.pipeline(transaction=False)
            for write in stores:
                pipe.execute_command(*script("store").command(*write))
            outcomes: list[Any] = await pipe.execute(raise_on_error=False)
            if any(isinstance(outcome, NoScriptError) for outcome in outcomes):
                await self._client.script_load(script("store").text)
                return await self._attempt(stores)
            return outcomes
        except (redis.RedisError, OSError) as exc:
            return [exc] * len(stores)


_batches: dict[asyncio.AbstractEventLoop, ResultBatch] = {}


def _batch_of(backend: ReplicaBackend) -> ResultBatch:
    loop = asyncio.get_running_loop()
    batch = _batches.get(loop)
    if batch is None:
        batch = _batches[loop] = ResultBatch(_async_client(backend.connparams))
    return batch


def _async_client(connparams: dict[str, Any]) -> redis.asyncio.Redis:
    """An asyncio client with the connection parameters of Celery's backend."""
    params = {name: value for name, value in connparams.items() if name not in ("max_connections", "connection_class")}
    params.pop("retry_on_timeout", None)
    params["socket_timeout"] = WRITE_TIMEOUT
    kind = connparams.get("connection_class")
    if kind is None:
        connection: type[Any] = redis.asyncio.Connection
    elif issubclass(kind, redis.UnixDomainSocketConnection):
        connection = redis.asyncio.UnixDomainSocketConnection
    else:
        connection = redis.asyncio.SSLConnection
    return redis.asyncio.Redis(connection_pool=redis.asyncio.ConnectionPool(connection_class=connection, **params))


def install(app: Any) -> None:
    """Let an app of this process store its results through `ReplicaBackend`, when they go to Redis."""
    path = f"{__name__}:{ReplicaBackend.__name__}"
    app.loader.override_backends = {**app.loader.override_backends, **dict.fromkeys(REPLACES, path)}
