"""Sees which workers lose their lease, as anybody can in Redis: a condemned worker's score is minus the moment."""

from __future__ import annotations

import threading
import time

import redis

from flyte_celery import names

#: Seconds between two looks; a condemned worker can be seen for seconds.
INTERVAL = 0.1


class LeaseWatch:
    """Notes when workers lost their lease, from a thread of its own, until `close`."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1)
        #: Member of the sorted set (`names.worker_member`) and monotonic second.
        self.lost: dict[str, float] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="leases", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        self._thread.join()
        self._client.close()

    def _watch(self) -> None:
        while not self._closed.wait(INTERVAL):
            try:
                self._look()
            except redis.RedisError:
                continue  # Redis is what the fault is about

    def _look(self) -> None:
        found = self._client.zrangebyscore(names.workers_key(), "-inf", 0, withscores=True)
        if not found:
            return
        seconds, micros = self._client.time()  # type: ignore[misc]
        now, server = time.monotonic(), seconds + micros / 1e6
        for member, score in found:  # type: ignore[union-attr]
            self.lost.setdefault(member.decode(), now - (server + score / 1000))


def node_of(member: str) -> str:
    """The node name in a member; behind the last colon is what makes a worker's life unique."""
    return member.partition("/")[2].rpartition(":")[0]
