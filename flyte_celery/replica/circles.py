"""Finds tasks that wait for each other in a circle, none of which would ever end, and fails the one that closed it.

A task that waits for its own ancestor is told at once, because a message carries its ancestors. Any other circle
closes across trees, by ids of tasks that somebody handed over. So a wait that has lasted `PATIENCE` is noted in Redis,
and whoever notes one looks whether what it waits for waits for it: the last one to be noted sees the whole circle. It
may be no true one: a wait may still be noted of a replica that has just died, and a body may go on beside a wait. It
has to stand until every entry of a dead replica is gone.

There is a thread for it only while tasks of this replica wait. A wait with a time-out, which ends in any case, is never
noted, and neither is a task that has one.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import redis
from celery.utils.log import get_logger

from ..client.waits import circle
from ..errors import StarvationError
from ..fleet.waits import LEASE, Waits
from .suspended import Suspended

logger = get_logger("flyte_celery.replica")

#: Seconds that a wait lasts before it is noted.
PATIENCE = 1.0

#: Seconds between two looks at the waits of this replica.
INTERVAL = 0.5

#: Results that a task waits for whose wait is noted: one of more is long on its way, and a long text to note.
MOST = 100

#: Looks without any wait after which the thread ends.
_IDLE_LOOKS = 20


#: Ids and names of tasks of which each waits for the next one, and the last for the first.
Chain = list[tuple[str, str]]


class CircleWatch:
    """Looks after the lasting waits of one replica.

    Args:
        suspended: Its waiting tasks.
        backend: Where results are kept; nothing is noted where that is no Redis.
    """

    def __init__(self, suspended: Suspended, backend: Any) -> None:
        self._suspended = suspended
        self._backend = backend if hasattr(type(backend), "replies") else None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: What is noted of this replica's tasks.
        self._entries: dict[str, list[str]] = {}
        self._renewed = 0.0
        #: Circles and since when they were seen (monotonic), by the tasks that closed them.
        self._seen: dict[str, tuple[float, Chain]] = {}

    def begin(self) -> None:
        """A task waits."""
        if self._thread is None and self._backend is not None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._watch, name="flyte-celery-waits", daemon=True)
                    self._thread.start()

    def _watch(self) -> None:
        idle = 0
        while idle < _IDLE_LOOKS:
            time.sleep(INTERVAL)
            lasting = self._suspended.lasting(PATIENCE, MOST)
            idle = idle + 1 if lasting is None and not self._entries else 0
            if lasting or self._entries:
                try:
                    self._look(Waits(self._backend.client), lasting or {})  # type: ignore[union-attr]
                except (redis.RedisError, OSError) as exc:
                    logger.debug("Waits are not noted now: %s", exc)
        self._thread = None
        if self._suspended.lasting(0, MOST) is not None:  # one has begun meanwhile
            self.begin()

    def _look(self, waits: Waits, lasting: dict[str, tuple[str, list[str]]]) -> None:
        over = self._entries.keys() - lasting.keys()
        waits.remove(over)
        for task_id in over:
            del self._entries[task_id]
            self._seen.pop(task_id, None)
        now = time.monotonic()
        if now - self._renewed >= LEASE / 3:
            for task_id in waits.renew(self._entries):
                del self._entries[task_id]
            self._renewed = now
        for task_id, (name, awaited) in lasting.items():
            if self._entries.get(task_id) != awaited or task_id in self._seen:
                chain = waits.enter(task_id, name, awaited)
                self._entries[task_id] = awaited
                self._judge(task_id, chain)

    def _judge(self, task_id: str, chain: Chain) -> None:
        if not chain:
            self._seen.pop(task_id, None)
            return
        now = time.monotonic()
        since, before = self._seen.get(task_id, (now, chain))
        self._seen[task_id] = (since, chain) if before == chain else (now, chain)
        if before != chain or now - since < LEASE:
            return
        next_id, _ = chain[1 % len(chain)]
        names = [name for _, name in chain]
        error = StarvationError(circle((*names[1:], names[0])))
        logger.error("%s", error)
        self._suspended.fail(task_id, next_id, error)
