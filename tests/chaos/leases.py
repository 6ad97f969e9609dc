"""Sees which workers lose their lease, as anybody can in Redis: a condemned worker's score is minus the moment.

A worker that was silent for nearly as long has lost its replicas, which end before its lease is over, and keeps it.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import redis

from flyte_celery import names
from flyte_celery.worker.keeper import MARGIN, MARGIN_SHARE

#: Seconds between two looks; a condemned worker can be seen for seconds.
INTERVAL = 0.1


class LeaseWatch:
    """Notes when workers lose their lease and when they begin anew, from a thread of its own, until `close`.

    Args:
        url: The Redis database.
        lease: Seconds of every lease.
    """

    def __init__(self, url: str, lease: float) -> None:
        self._lease = lease
        self._client: Any = redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1)
        #: Monotonic second at which each life of a worker was first seen, and at which it was condemned.
        self._born: dict[str, float] = {}
        self._condemned: dict[str, float] = {}
        #: When each life was heard before it was silent for too long, and when it was heard again.
        self._silent: dict[str, dict[float, float]] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="leases", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        self._thread.join()
        self._client.close()

    def without(self, node: str) -> list[tuple[float, float]]:
        """From when until when a worker was without a lease; until infinity when it did not begin anew.

        Args:
            node: Its name in Celery.
        """
        born = sorted(at for member, at in self._born.copy().items() if _node_of(member) == node)
        lost = sorted(at for member, at in self._condemned.copy().items() if _node_of(member) == node)
        silent = [each.copy() for member, each in self._silent.copy().items() if _node_of(member) == node]
        return [
            *((at, next((birth for birth in born if birth > at), float("inf"))) for at in lost),
            *(span for each in silent for span in each.items()),
        ]

    def _watch(self) -> None:
        while not self._closed.wait(INTERVAL):
            try:
                self._look()
            except redis.RedisError:
                continue  # Redis is what the fault is about

    def _look(self) -> None:
        found = self._client.zrange(names.workers_key(), 0, -1, withscores=True)
        now = time.monotonic()  # before the question: rather a little too early than after what the loss led to
        seconds, micros = self._client.time()
        server = seconds + micros / 1e6
        for member, score in found:
            life = member.decode()
            if score > 0:
                self._born.setdefault(life, now)
                self._listen(life, now, silence=server - score / 1000 + self._lease)
            else:
                self._condemned.setdefault(life, now - (server + score / 1000))

    def _listen(self, life: str, now: float, silence: float) -> None:
        spans = self._silent.setdefault(life, {})
        if silence > self._lease - min(MARGIN, self._lease * MARGIN_SHARE):
            heard = next((at for at, until in spans.items() if until == float("inf")), now - silence)
            spans[heard] = float("inf")
        else:
            spans.update({at: now for at, until in spans.items() if until == float("inf")})


def _node_of(member: str) -> str:
    """The node name in a member; behind the last colon is what makes a worker's life unique."""
    return member.partition("/")[2].rpartition(":")[0]
