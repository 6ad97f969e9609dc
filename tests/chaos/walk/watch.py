"""Looks at the fleet without pause, from a thread of its own, and keeps the first breach."""

from __future__ import annotations

import threading
from pathlib import Path

import redis

from tests.chaos.walk import replicas, snapshot
from tests.chaos.walk.invariants import Invariants

#: Seconds between two looks.
INTERVAL = 0.05


class Watch:
    """Sees what must not be, until `close`.

    Args:
        url: The fleet's Redis.
        invariants: What has to hold.
        folder: Where replicas write of themselves.
    """

    def __init__(self, url: str, invariants: Invariants, folder: Path) -> None:
        self._client = redis.Redis.from_url(url)
        self._invariants = invariants
        self._folder = folder
        self._closed = threading.Event()
        self._looked = threading.Condition()
        self.looks = 0
        #: What was wrong at the first look that found something.
        self.breaches: list[str] = []
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        self._thread.join()
        self._client.close()

    def look(self) -> list[str]:
        """Wait for a look that begins after this call, and return what was wrong so far."""
        with self._looked:
            wanted = self.looks + 2  # the next one may have begun
            self._looked.wait_for(lambda: self.looks >= wanted or self.breaches)
        return self.breaches

    def _run(self) -> None:
        while not self._closed.is_set() and not self.breaches:
            try:
                found = self._look()
            except Exception as exc:  # a watch that has gone must not look like one that sees nothing
                found = [f"the watch has ended: {exc!r}"]
            with self._looked:
                self.looks += 1
                self.breaches += found
                self._looked.notify_all()
            self._closed.wait(INTERVAL)

    def _look(self) -> list[str]:
        there = [environment for environment, _, _ in replicas.alive(self._folder)]
        seen = snapshot.take(self._client, self._invariants.bounds, self._invariants.lease)
        return self._invariants.look(seen, there) + replicas.sharings(self._folder)
