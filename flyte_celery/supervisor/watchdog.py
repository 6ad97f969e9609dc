"""Watches what replicas use, from the launcher, and says which of them broke its bounds.

How often it looks depends on how near a replica is to its bound: soon enough to see a replica that takes `FASTEST`
when it gets there. Far from every bound that is a few looks per second, of some 50 µs for each replica.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field

from . import usage
from .confinement import Confinement
from .family import Family

#: Bytes per second of the fastest growth that is reckoned with.
FASTEST = 4 * 2**30

#: Seconds between two looks, at least and at most.
SOONEST, LATEST = 0.004, 0.25

#: A replica's history has a new entry when it has changed by this part of its limit.
_STEP = 1 / 64
_MOST_ENTRIES = 512

#: Seconds between two reports of what a replica uses.
_TELL_EVERY = 1.0

#: From this part of the processes that it may have on, a replica is looked at all the time.
_MANY = 1 / 8

#: Exact readings take at most this part of the launcher's time.
_SHARE = 0.02


class Bound(enum.StrEnum):
    """What a replica has broken."""

    #: Its limit of memory, seen by the watchdog.
    MEMORY = "memory"
    #: It, or one of its processes, was killed by the kernel because memory ran out, of its group or of the machine.
    KERNEL = "kernel"
    #: Its number of processes.
    PROCESSES = "processes"


@dataclass(frozen=True, slots=True)
class Breach:
    """A replica has used more than it may, and was ended for it."""

    bound: Bound
    #: Bytes or processes that it used when it was seen, and that it may use; None where nobody has set any.
    used: int
    limit: int | None
    #: Monotonic seconds, and bytes that it used by then, from its beginning to its end.
    history: tuple[tuple[float, int], ...] = ()

    def before(self, at: float) -> int:
        """Bytes that it used when last looked at before this moment; at the first look where that was later."""
        level = self.history[0][1] if self.history else 0
        for moment, used in self.history:
            if moment > at:
                break
            level = used
        return level


@dataclass(frozen=True, slots=True)
class Usage:
    """What a replica uses."""

    memory: int = 0
    processes: int = 0
    files: int = 0

    def differs(self, other: Usage) -> bool:
        """Whether it is worth telling of after the other one."""
        return (
            abs(self.memory - other.memory) >= 2**20
            or abs(self.files - other.files) >= 16
            or self.processes != other.processes
        )


@dataclass(slots=True)
class Watched:
    """One replica under watch: the arithmetic, without its readings."""

    pid: int
    bounds: Confinement
    #: Bytes that its process shared with the launcher when it was forked.
    inherited: int
    usage: Usage = field(default_factory=Usage)
    peak: int = 0
    history: list[tuple[float, int]] = field(default_factory=list)
    #: What exact readings have added to, or taken from, quick ones.
    correction: int = 0
    next_look: float = 0.0
    next_exact: float = 0.0
    #: When it was last told of.
    told_at: float = -1.0
    told: Usage = field(default_factory=Usage)

    def seen(self, memory: int, processes: int, now: float) -> None:
        """Note a reading, and when to read again."""
        if (processes > 1) != (self.usage.processes > 1):
            self.correction = 0
        self.usage = Usage(memory, processes, self.usage.files)
        self.peak = max(self.peak, memory)
        limit = self.bounds.memory
        step = limit * _STEP if limit else 2**20
        if not self.history or abs(memory - self.history[-1][1]) >= step:
            if len(self.history) >= _MOST_ENTRIES:
                self.history = [self.history[0], *self.history[1::2]]
            self.history.append((now, memory))
        patience = LATEST if limit is None else (limit - memory) / FASTEST
        if self.bounds.processes is not None and processes > self.bounds.processes * _MANY:
            patience = 0.0
        self.next_look = now + min(LATEST, max(SOONEST, patience))

    def breach(self) -> Breach | None:
        """What it has broken, if anything."""
        most = self.bounds.processes
        if most is not None and self.usage.processes > most:
            return Breach(Bound.PROCESSES, self.usage.processes, most)
        limit = self.bounds.memory
        if limit is not None and self.usage.memory > limit:
            return Breach(Bound.MEMORY, self.usage.memory, limit, tuple(self.history))
        return None


class KernelKills:
    """Whether the kernel has killed a process of this machine for want of memory in the last second or two.

    It says nowhere which one, but to root; a replica that was killed at that time by nobody else was it.
    """

    def __init__(self) -> None:
        self._before = self._lately = usage.kernel_kills()
        self._next = 0.0

    def look(self, now: float) -> None:
        """Let what is longer ago be forgotten."""
        if now >= self._next:
            late = now >= self._next + 1.0
            found = usage.kernel_kills()
            self._next = now + 1.0
            self._before, self._lately = found if late else self._lately, found

    def happened(self) -> bool:
        """Whether there was one."""
        return usage.kernel_kills() > self._before


class Watchdog:
    """All replicas of a launcher under watch.

    Args:
        family: Which processes are theirs.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._watched: dict[int, Watched] = {}

    def watch(self, number: int, pid: int, bounds: Confinement, inherited: int) -> None:
        """Begin to watch a replica."""
        self._watched[number] = Watched(pid, bounds, inherited)

    def unwatch(self, number: int) -> Watched | None:
        """Watch a replica no longer; returns what was known of it."""
        return self._watched.pop(number, None)

    def wait(self, now: float) -> float | None:
        """Seconds until the next look; None when there is nothing to watch."""
        if not self._watched or not usage.AVAILABLE:
            return None
        return max(0.0, min(each.next_look for each in self._watched.values()) - now)

    def look(self, now: float) -> dict[int, Breach]:
        """Read what is due.

        Returns:
            Which replicas have broken what.
        """
        due = {number: each for number, each in self._watched.items() if each.next_look <= now}
        if not due:
            return {}
        self._family.look()
        broken: dict[int, Breach] = {}
        for number, watched in due.items():
            self._read(number, watched, now)
            if (breach := watched.breach()) is not None:
                broken[number] = breach
        return broken

    def changed(self, now: float) -> dict[int, Usage]:
        """What replicas use that have not been told of for a second."""
        news: dict[int, Usage] = {}
        for number, each in self._watched.items():
            if now - each.told_at < _TELL_EVERY or not each.history:
                continue
            each.told_at = now
            each.usage = Usage(each.usage.memory, each.usage.processes, usage.open_files(each.pid))
            if each.usage.differs(each.told):
                news[number] = each.told = each.usage
        return news

    def _read(self, number: int, watched: Watched, now: float) -> None:
        pids = self._family.members(number)
        alone = len(pids) == 1
        everything = sum(usage.held(pid) for pid in pids)
        quick = everything - watched.inherited
        limit = watched.bounds.memory
        memory = max(0, quick + watched.correction)
        # Alone, it may have written to what it shares with the launcher, which is its own since: a quick reading says
        # too little. With children, what they share with it was counted for each: too much.
        if limit is None or everything <= limit:
            doubtful = False
        elif alone:
            doubtful = memory <= limit and now >= watched.next_exact
        else:
            doubtful = memory > limit
        if doubtful:
            begun = time.monotonic()
            exact = usage.own(watched.pid) if alone else usage.shares(pids)
            watched.next_exact = now + max(1.0, (time.monotonic() - begun) / _SHARE)
            watched.correction = max(0, exact - quick) if alone else exact - quick
            memory = max(0, quick + watched.correction)
        watched.seen(memory, len(pids), now)
