"""Celery's Redis result backend inside a replica: one round trip for many results, and no blocked event loop.

The format of results is Celery's own, so any process reads them. Celery reads the old state before it stores a new
one, to protect a result from a task that runs twice; here the lease of the worker does that: a worker that was given
up for dead stores nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio
from celery import states
from celery.backends.redis import RedisBackend
from celery.utils.log import get_logger
from kombu.utils.encoding import bytes_to_str
from redis.exceptions import NoScriptError

from .. import names
from ..client.results import async_client
from ..fleet.scripts import script
from . import bridge
from .wire import LEASE_FIELD

logger = get_logger("flyte_celery.replica")

#: Backends of Celery that this one replaces, by the scheme of `result_backend`.
REPLACES = ("redis", "rediss", "redis+socket")

#: Most results in one write.
MOST_AT_ONCE = 200

Store = tuple[list[str], list[Any]]


class ReplicaBackend(RedisBackend):
    """Stores results of tasks on the event loop in batches, and those of sync tasks in one command."""

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = bytes_to_str(task_id)
        expires = self.failure_expires if state == states.FAILURE else self.expires
        key = bytes_to_str(self.get_key_for_task(task_id))
        lease = getattr(request, LEASE_FIELD, None) or ""
        store: Store = ([names.workers_key(), key], [lease, int(expires or 0), self.encode(meta)])
        if bridge.driven():
            stored = bridge.hand_over(_batch_of(self).add(store))
        else:
            stored = self.ensure(script("store").run, (self.client, *store))
        if not stored:
            logger.warning(
                "The result of %s is not stored: its worker lost its lease, and the task runs elsewhere.", task_id
            )
        return result


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
        return await asyncio.shield(done)  # a task may be cancelled while its result is on the way; others may not

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
        delay = 0.1
        while True:
            try:
                pipe: Any = self._client.pipeline(transaction=False)
                for keys, args in stores:
                    pipe.execute_command(*script("store").command(keys, args))
                outcomes: list[Any] = await pipe.execute(raise_on_error=False)
            except (redis.ConnectionError, redis.TimeoutError, OSError) as exc:
                logger.warning("%d result(s) wait for Redis: %s", len(stores), exc)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)
                continue
            if any(isinstance(outcome, NoScriptError) for outcome in outcomes):
                await self._client.script_load(script("store").text)
                continue
            return outcomes


_batches: dict[asyncio.AbstractEventLoop, ResultBatch] = {}


def _batch_of(backend: ReplicaBackend) -> ResultBatch:
    loop = asyncio.get_running_loop()
    batch = _batches.get(loop)
    if batch is None:
        batch = _batches[loop] = ResultBatch(async_client(backend.connparams))
    return batch


def install(app: Any) -> None:
    """Let an app of this process store its results through `ReplicaBackend`, when they go to Redis."""
    path = f"{__name__}:{ReplicaBackend.__name__}"
    app.loader.override_backends = {**app.loader.override_backends, **dict.fromkeys(REPLACES, path)}
