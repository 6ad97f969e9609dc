"""What work costs: processor time by the role of a process, and commands that Redis ran."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import redis

from tests.helpers import processes

#: Clock ticks per second of the times in /proc.
_TICKS = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """A look at the counters; the difference of two is what happened in between."""

    #: Seconds of processor time of this process.
    client: float
    #: Of the processes that the command lines started.
    parent: float
    #: Of all processes below those, also of ended ones.
    children: float
    #: Of the Redis server.
    redis: float
    #: Commands that it ran for anybody, the looks themselves excluded.
    commands: float

    def since(self, before: Usage) -> Usage:
        """What happened after another look."""
        return Usage(*(now - then for now, then in zip(self, before, strict=True)))

    @property
    def workers(self) -> float:
        """Seconds of all processes of the workers."""
        return self.parent + self.children

    @property
    def cpu(self) -> float:
        """Seconds of everybody."""
        return self.client + self.workers + self.redis


class Meter:
    """Looks at the counters of workers that run and of their Redis server.

    Args:
        roots: Process ids of what the workers' command lines started.
        server: Process id of the Redis server.
        url: Its address.
    """

    def __init__(self, roots: list[int], server: int, url: str) -> None:
        self._roots = roots
        self._seen: set[int] = set()
        self._server = server
        self._redis = redis.Redis.from_url(url)

    def read(self) -> Usage:
        """The counters now."""
        self._seen |= self.children()  # an ended one keeps its times until its parent takes them over
        reaped = sum(_seconds(pid, own=False) for pid in self._roots)
        return Usage(
            time.process_time(),
            sum(map(_seconds, self._roots)),
            sum(_seconds(pid) + _seconds(pid, own=False) for pid in self._seen) + reaped,
            _seconds(self._server),
            self._commands(),
        )

    def children(self) -> set[int]:
        """Process ids of everything below the workers' command lines."""
        return {pid for root in self._roots for pid in processes.descendants(root)}

    def _commands(self) -> int:
        calls = {name: stats["calls"] for name, stats in self._redis.info("commandstats").items()}
        return sum(calls.values()) - calls.get("cmdstat_info", 0)


def _seconds(pid: int, own: bool = True) -> float:
    """User and system time of a process, or of the children that it reaped; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    first = 11 if own else 13
    return (int(fields[first]) + int(fields[first + 1])) / _TICKS
