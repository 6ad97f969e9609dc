"""Celery's Redis result backend inside a replica: one round trip for many results, and no blocked event loop.

The format of results is Celery's own, so any process reads them. Celery reads the old state before it stores a new
one, to protect a result from a task that runs twice; here the claim does that: a worker that does not own the task any
more stores nothing.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import hiredis
import redis
import redis.asyncio
from celery import states
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError

from .. import kombu_json
from ..client.backend import CACHED_FIELD, RepliesBackend
from ..fleet.patience import backoff, passes
from ..fleet.scripts import script
from ..fleet.storing import Store, arguments, by_worker
from . import bridge

logger = get_logger("flyte_celery.replica")

#: Backends that this one replaces, by the scheme of `result_backend`. Behind Sentinel the client's own stores results.
REPLACES = ("redis", "rediss", "redis+socket")

#: Seconds after which a write is tried again: the connection may be dead without having said so.
WRITE_TIMEOUT = 10.0

#: Most results in one write, and most characters unless one result alone has more: a bound on how long it keeps the
#: server busy.
MOST_AT_ONCE = 200
MOST_CHARACTERS = 1024 * 1024


class ReplicaBackend(RepliesBackend):
    """Stores results of tasks on the event loop in batches, and those of sync tasks in one command."""

    def _encode(self, data: Any) -> Any:
        """As Celery's, by an encoder that is there already where results are kombu's JSON."""
        if self.serializer == "json" and kombu_json.was_kombus():
            try:
                return kombu_json.CONTENT_TYPE, kombu_json.CONTENT_ENCODING, kombu_json.dumps(data)
            except Exception as exc:
                raise EncodeError(exc) from exc
        return super()._encode(data)

    def _get_result_meta(
        self, result: Any, state: Any, traceback: Any, request: Any, *more: Any, **options: Any
    ) -> Any:
        """As Celery's, which looks up for each result whether it is to be an extended one."""
        if state != states.SUCCESS or more or options or self._extended or getattr(request, CACHED_FIELD, False):
            return super()._get_result_meta(result, state, traceback, request, *more, **options)
        meta = {
            "status": state,
            "result": result,
            "traceback": traceback,
            "children": self.current_task_children(request),
            "date_done": self.app.now().isoformat(),
        }
        for field, name in (("group_id", "group"), ("parent_id", "parent_id")):
            if value := getattr(request, name, None):
                meta[field] = value
        return meta

    @cached_property
    def _extended(self) -> bool:
        return bool(self.app.conf.find_value_for_key("extended", "result"))

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        # Whether a success is there already need not be read: that is for the claim to say.
        self._store_fenced(task_id, result, state, traceback, request)
        return result

    def _write(self, write: Store) -> int:
        if bridge.driven():
            return int(bridge.park(functools.partial(_batch_of(self).add, write)))
        return _store_patiently(self.client, write)


def _store_patiently(client: redis.Redis, write: Store) -> int:
    for delay in backoff():
        try:
            [stored] = script("store").run(client, *arguments([write]))
            return int(stored)
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
        self._waiting: list[tuple[Store, Callable[[Any], None]]] = []
        self._writer: asyncio.Task[None] | None = None

    def add(self, store: Store, stored: Callable[[Any], None]) -> None:
        """Store a result; what the script says, or the exception of a write, is told to `stored` then."""
        self._waiting.append((store, stored))
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._waiting:
                size = _first_write([store for store, _ in self._waiting[:MOST_AT_ONCE]])
                now, self._waiting = self._waiting[:size], self._waiting[size:]
                for (_, stored), outcome in zip(now, await self._execute([store for store, _ in now]), strict=True):
                    stored(outcome)
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
        outcomes: list[Any] = [None] * len(stores)
        for places in by_worker(stores):
            try:
                written = await script("store").run_async(self._client, *arguments([stores[place] for place in places]))
            except (redis.RedisError, OSError) as exc:
                written = [exc] * len(places)
            for place, outcome in zip(places, written, strict=True):
                outcomes[place] = outcome
        return outcomes


def _first_write(stores: list[Store]) -> int:
    """How many of some results go in one write."""
    characters = 0
    for place, each in enumerate(stores):
        characters += len(each.payload)
        if characters > MOST_CHARACTERS:
            return max(1, place)
    return len(stores)


_batches: dict[asyncio.AbstractEventLoop, ResultBatch] = {}


def _batch_of(backend: ReplicaBackend) -> ResultBatch:
    loop = asyncio.get_running_loop()
    batch = _batches.get(loop)
    if batch is None:
        batch = _batches[loop] = ResultBatch(_async_client(backend.connparams))
    return batch


class _Packing:
    """Mixed into redis-py's asyncio connections, which write commands in Python; one of ours has many arguments."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """A command in the form in which it is sent."""
        if " " in args[0]:  # redis-py's own, when it connects
            return super().pack_command(*args)  # type: ignore[misc,no-any-return]
        return [hiredis.pack_command(args)]


class _Connection(_Packing, redis.asyncio.Connection):
    pass


class _UnixConnection(_Packing, redis.asyncio.UnixDomainSocketConnection):
    pass


class _SSLConnection(_Packing, redis.asyncio.SSLConnection):
    pass


def _async_client(connparams: dict[str, Any]) -> redis.asyncio.Redis:
    """An asyncio client with the connection parameters of Celery's backend."""
    params = {name: value for name, value in connparams.items() if name not in ("max_connections", "connection_class")}
    params.pop("retry_on_timeout", None)
    params["socket_timeout"] = WRITE_TIMEOUT
    kind = connparams.get("connection_class")
    if kind is None:
        connection: type[Any] = _Connection
    elif issubclass(kind, redis.UnixDomainSocketConnection):
        connection = _UnixConnection
    else:
        connection = _SSLConnection
    return redis.asyncio.Redis(connection_pool=redis.asyncio.ConnectionPool(connection_class=connection, **params))


def install(app: Any) -> None:
    """Let an app of this process store its results through `ReplicaBackend`, when they go to Redis."""
    path = f"{__name__}:{ReplicaBackend.__name__}"
    app.loader.override_backends = {**app.loader.override_backends, **dict.fromkeys(REPLACES, path)}
