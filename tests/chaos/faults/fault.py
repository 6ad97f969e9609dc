"""What a fault is, and what it is given."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.fleet import Fleet, Member
from tests.chaos.load import Load
from tests.chaos.verdict import Impact

#: Seconds beyond a lease in which the tasks of a dead worker have to run again.
RECOVERY = 2.0


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a fault strikes."""

    fleet: Fleet
    load: Load
    chance: random.Random

    def victim(self, environment: str) -> Member:
        """One of the environment's workers."""
        return self.chance.choice([member for member in self.fleet.serving(environment) if not member.leaving])

    def victims(self) -> list[Member]:
        """One worker of each environment of the load, when each of them has something to lose."""
        found = [self.victim(environment) for environment in self.fleet.wanted]
        for member in found:
            # A few more tasks, should the queue be empty just now.
            self.keep_busy(member.environment)
            self.fleet.wait(lambda member=member: self.fleet.running(member), 30, f"a running task in {member.name}")  # type: ignore[misc]
        return found

    def keep_busy(self, environment: str) -> None:
        """Submit tasks that take a while, one for each slot of the environment."""
        from tests.chaos.fleet import WORK

        for _ in range(40 if environment == "aio" else 16):
            self.load.submit(WORK[environment], self.chance.uniform(0.3, 0.6))


@dataclass(frozen=True, slots=True)
class Fault:
    """Something terrible."""

    name: str
    strike: Callable[[Scene], list[Impact]]
    #: How often it happens in a case of its own.
    times: int = 2
    #: Whether a mixed run may have it.
    mixes: bool = True
