"""When a replica has lived long enough: it works on until another one has taken its place, then it ends.

Each replica has a random part of its own in that, so that replicas which were started together do not go together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ..supervisor.watchdog import Usage

#: By how much, at most, a replica goes before its time.
JITTER = 0.1

#: The part of its tasks after which the next replica is started, at most: the others run meanwhile.
EARLY = 0.9

#: The part of the files that it may have open from which on a replica is replaced.
FULL = 0.8


@dataclass(frozen=True, slots=True)
class Recycling:
    """What makes replicas of an environment go. None: nothing of the kind."""

    #: Bytes.
    max_memory: int | None = None
    #: Seconds.
    max_age: float | None = None
    #: Files that one process may have open.
    files: int | None = None


@dataclass(frozen=True, slots=True)
class Life:
    """When one replica is to be replaced. None: never for that."""

    tasks: int | None
    memory: int | None
    until: float | None
    files: float | None

    @classmethod
    def begun(cls, recycling: Recycling, max_tasks: int | None, now: float) -> Life:
        """The life of a replica that is being started.

        Args:
            recycling: What makes it go.
            max_tasks: How many tasks it may run.
            now: Monotonic seconds.
        """
        early = 1 - JITTER * random.random()
        return cls(
            tasks=None if max_tasks is None or max_tasks == 1 else max(1, int(max_tasks * EARLY * early)),
            memory=recycling.max_memory,
            until=None if recycling.max_age is None else now + recycling.max_age * early,
            files=None if recycling.files is None else recycling.files * FULL,
        )

    def over(self, served: int, usage: Usage, now: float) -> str | None:
        """Why the replica is to be replaced now; None when it is not."""
        if self.tasks is not None and served >= self.tasks:
            return f"it has run {served} tasks"
        if self.memory is not None and usage.memory > self.memory:
            return f"it holds {usage.memory / 2**20:.0f} MiB, and is to hold {self.memory / 2**20:.0f}"
        if self.files is not None and usage.files > self.files:
            return f"it has {usage.files} files open"
        if self.until is not None and now >= self.until:
            return "it has reached its age"
        return None
