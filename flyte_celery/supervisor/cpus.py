"""Which cores each replica is bound to."""

from __future__ import annotations

import math
import os
from collections import Counter

from . import usage


class Cpus:
    """Gives replicas with a limit of cores those that fewest others of the same launcher have."""

    def __init__(self) -> None:
        self._all = sorted(os.sched_getaffinity(0)) if usage.AVAILABLE else []
        # Launchers do not know of each other: not all of them may begin with the same core.
        start = os.getpid() % max(1, len(self._all))
        self._order = self._all[start:] + self._all[:start]
        self._taken: dict[int, tuple[int, ...]] = {}

    def take(self, number: int, cores: float | None) -> tuple[int, ...]:
        """The cores of a new replica; none when it may run on all.

        Args:
            number: The replica.
            cores: How many it may use. Parts of a core are rounded up.
        """
        if cores is None or math.ceil(cores) >= len(self._all) or not self._all:
            return ()
        load = Counter(cpu for each in self._taken.values() for cpu in each)
        chosen = sorted(self._order, key=lambda cpu: load[cpu])[: max(1, math.ceil(cores))]
        self._taken[number] = tuple(chosen)
        return self._taken[number]

    def give_back(self, number: int) -> None:
        """A replica has ended."""
        self._taken.pop(number, None)
