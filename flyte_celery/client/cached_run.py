"""A task that runs and is cached: it looks once more, and its result goes into the cache when it is stored.

The call may come from a process that looks nowhere (`app.send_task`), and what was missing when it was made may be
there by now. With `Cache(serialize=True)` one task at a time has the right to compute a result:

```
result in the cache          return it
nobody computes it           take the right, renew it while the function runs, give it up with the result or a failure
somebody else computes it    wait without a slot, for news or until the right is over, and look again
```
A task that dies with its worker renews nothing, so another one that waits takes its place after `lease` seconds, and
the same task at once when it is delivered again. One that fails tells the others, of which the next one tries.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import redis
from celery import states
from celery.utils.log import get_logger
from kombu.utils.encoding import ensure_bytes

from .. import context, suspension
from ..errors import StarvationError
from ..fleet.cached import Found, Keep, Place, give_up, look_up, renew
from ..names import RUN_CACHE_HEADER
from ..settings import Settings
from . import caching
from .backend import CACHED_FIELD, KEEP_FIELD
from .readers import LoopWait, ThreadWait

logger = get_logger("flyte_celery.cache")

#: Seconds between two looks of a task that waits for another one's result and hears no news; doubles.
_FIRST_LOOK = 0.1
_LAST_LOOK = 2.0


def run(task: Any, args: Any, kwargs: Any) -> Any:
    """The result of a task, from the cache or of its function; called by a replica in the task's context.

    Raises:
        Exception: What the function raises.
        ValueError: No version can be found for the cache.
    """
    request = task.request
    headers = request.headers or {}
    plan = task.caching.plan(headers, headers.get(RUN_CACHE_HEADER))
    if plan is None or request.ignore_result or (client := caching.client_of(task)) is None:
        return task.compute(args, kwargs)
    try:
        place = plan.place(*task.template.dump_call(tuple(args), kwargs))
    except TypeError:
        return task.compute(args, kwargs)  # which says what is wrong with them
    settings = _settings()
    serialize = plan.cache.serialize and plan.cache.behavior == "auto"
    search = _Search(task, client, place, plan.max_age, settings.lease if serialize else None)
    found = search.result() if plan.cache.behavior == "auto" else Found()
    if found.payload is not None:
        setattr(request, CACHED_FIELD, True)
        logger.info("%s[%s] is answered from the cache", task.name, request.id)
        return task.backend.decode(found.payload)["result"]
    with search.leading() if found.computed_by == "" else contextlib.nullcontext():
        value = task.compute(args, kwargs)
    ttl = settings.cache_ttl if plan.max_age is None else min(plan.max_age, settings.cache_ttl)
    sizes = (settings.cache_bytes, settings.cache_result_bytes)
    refused = search.give_up if serialize else None
    setattr(request, KEEP_FIELD, Keep(place, request.id, ttl, settings.cache_ttl, *sizes, refused))
    return value


@functools.cache
def _settings() -> Settings:
    """Those of this process: a replica's environment variables are set before it begins."""
    return Settings.from_environ(os.environ)


class _Search:
    """One task's way to a result.

    Args:
        task: The registered Celery task, which runs.
        client: The Redis with the cache.
        place: Where the result is.
        max_age: Seconds after which it is too old; None for never.
        lease: Seconds for which the right to compute it holds; None where any number may at once.
    """

    def __init__(self, task: Any, client: Any, place: Place, max_age: float | None, lease: float | None) -> None:
        self._task = task
        self._client = client
        self._place = place
        self._lease = lease
        self._id: str = task.request.id
        expires = int(task.backend.expires or 0)
        asks = "" if lease is None else self._id
        self._look = look_up(place, max_age, expires, asks=asks, lease=lease or 0.0)
        run = context.current_run.get()
        #: Whoever waits for this task cannot be waited for.
        self._ancestors = () if run is None else run.chain[:-1]

    def result(self) -> Found:
        """What there is, with `serialize` after waiting for whoever computes it."""
        if self._task.template.is_async:
            return context.run_coroutine(self._awaited())
        found = self._find()
        if self._waits(found):
            with contextlib.suppress(StarvationError):  # too many wait already: it is computed twice
                return self._waited(found)
        return self._own(found)

    def _find(self) -> Found:
        return caching.find_or_miss(self._client, [self._look])[0]

    async def _find_async(self) -> Found:
        return await caching.Looks.current(self._task.publisher, self._client).find(self._look)

    def _waits(self, found: Found) -> bool:
        holder = found.computed_by
        return bool(holder) and not any(ancestor.endswith(f"[{holder}]") for ancestor in self._ancestors)

    @staticmethod
    def _own(found: Found) -> Found:
        """What a task does that does not wait for another: compute without the right to."""
        return Found() if found.computed_by else found

    def _waited(self, found: Found) -> Found:
        news = _News(self._task.backend, self._place, ThreadWait(self._task.backend.replies))
        interrupted = threading.Event()

        def interrupt() -> None:
            interrupted.set()
            news.wait.land(None)

        with news, suspension.waiting(interrupt):
            while self._waits(found) and not interrupted.is_set():
                with contextlib.suppress(TimeoutError):
                    news.wait.get(news.listen(found.for_seconds))
                found = self._find()
        return self._own(found)

    async def _awaited(self) -> Found:
        found = await self._find_async()
        if not self._waits(found):
            return self._own(found)
        news = _News(self._task.backend, self._place, LoopWait(self._task.backend.replies))
        try:
            async with suspension.awaiting(lambda: news.wait.land(None)):
                with news:
                    while self._waits(found):
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(news.wait.get(), news.listen(found.for_seconds))
                        found = await self._find_async()
        except StarvationError:
            pass
        return self._own(found)

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Around the computation that this task alone has the right to."""
        assert self._lease is not None
        leads = _Right(self._client, self._place, self._id, self._lease)
        _rights.add(leads)
        try:
            yield
        except BaseException:
            _rights.remove(leads)
            self.give_up()
            raise
        _rights.remove(leads)

    def give_up(self) -> None:
        """Let another task compute it; from a thread, because an event loop may not wait for Redis."""
        news = self._task.backend.encode({"status": states.FAILURE, "result": None})
        self._task.publisher.executor.submit(self._give_up, news)

    def _give_up(self, news: str | bytes) -> None:
        try:
            give_up(self._client, self._place, self._id, news)
        except (redis.RedisError, OSError) as exc:
            logger.warning("%s: others compute it when the lease is over: %s", self._place.member, exc)


class _News:
    """News of a result that another task computes: it is published under the entry's key."""

    def __init__(self, backend: Any, place: Place, wait: Any) -> None:
        self.wait = wait
        self._channel = backend.replies
        self._reply = self._channel.reply(ensure_bytes(place.entry))
        self._pause = _FIRST_LOOK
        self._listens = False

    def __enter__(self) -> None:
        """Nothing is heard before `listen`."""

    def __exit__(self, *_: object) -> None:
        self._channel.detach(self._reply, self.wait)

    def listen(self, most: float) -> float:
        """Listen from now on; returns the seconds to wait, `most` or less.

        After news that told nothing, such as an entry that is too old, the next ones are listened to after a pause.
        """
        heard, self._listens = self._listens and self._reply.payload is not None, False
        self._channel.detach(self._reply, self.wait)
        if not heard:
            self._channel.forget(self._reply)
            self._channel.attach(self._reply, self.wait, None)
            self._channel.look_after([self._reply])
            self._listens = True
        pause, self._pause = self._pause, min(2 * self._pause, _LAST_LOOK)
        return min(pause, most + 0.05)


@dataclass(frozen=True, slots=True)
class _Right:
    """A task of this process computes a result, and nobody else may."""

    client: Any
    place: Place
    task_id: str
    lease: float

    def renew(self) -> None:
        """Keep it."""
        try:
            renew(self.client, self.place, self.task_id, self.lease)
        except (redis.RedisError, OSError) as exc:
            logger.warning("%s: it may be computed twice, its lease is not renewed: %s", self.place.member, exc)


class _Rights:
    """Renews the rights of this process's tasks, from one thread that lives as long as there are some."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._held: dict[_Right, float] = {}
        self._thread: threading.Thread | None = None

    def add(self, right: _Right) -> None:
        """Renew it from now on."""
        with self._lock:
            self._held[right] = time.monotonic() + right.lease / 3
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, name="flyte-celery-cache", daemon=True)
                self._thread.start()
            self._lock.notify()

    def remove(self, right: _Right) -> None:
        """Renew it no more."""
        with self._lock:
            self._held.pop(right, None)
            self._lock.notify()

    def _renew(self) -> None:
        while True:
            with self._lock:
                if not self._held:
                    self._thread = None
                    return
                now = time.monotonic()
                due = [right for right, at in self._held.items() if at <= now]
                if not due:
                    self._lock.wait(min(self._held.values()) - now)
                    continue
                for right in due:
                    self._held[right] = now + right.lease / 3
            for right in due:
                right.renew()


_rights = _Rights()
