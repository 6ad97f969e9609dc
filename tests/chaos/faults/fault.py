"""What a fault is, and what it is given."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from flyte_celery import names
from flyte_celery.fleet import orders
from tests.chaos.fleet import Fleet, Member
from tests.chaos.load import Load
from tests.chaos.verdict import Impact

#: Replicas by which there may be more, so that a worker gets some where others have all that the policy allows.
_MORE = 4

#: Seconds beyond a lease in which the tasks of a dead worker have to run again.
RECOVERY = 2.0


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a fault strikes."""

    fleet: Fleet
    load: Load
    chance: random.Random

    def victims(self) -> list[Member]:
        """One worker of each environment of the load, each of which has something to lose."""
        return [self._victim(environment) for environment in self.fleet.wanted]

    def _victim(self, environment: str) -> Member:
        def busy() -> list[Member]:
            self._refill(environment)
            return [member for member in self._staying(environment) if self.fleet.running(member)]

        return self.chance.choice(self.fleet.wait(busy, 30, f"a running task in a worker of {environment}"))

    def busy_replica(self, environment: str) -> tuple[Member, int]:
        """A replica of the environment that runs tasks just now, and its worker."""

        def busy() -> list[tuple[Member, int]]:
            self._refill(environment)
            pairs = [(member, pid) for member in self._staying(environment) for pid in member.replicas()]
            return [(member, pid) for member, pid in pairs if self.fleet.running(member, pid)]

        return self.chance.choice(self.fleet.wait(busy, 30, f"a busy replica of {environment}"))

    def occupy(self, member: Member, since: float = 0.0) -> None:
        """Submit tasks until a worker begins some of them after a moment.

        Others with ready replicas come first, and may have all that there may be: so there may be a few more meanwhile.
        """
        environment = member.environment

        def busy() -> bool:
            if not self.fleet.project.depth(environment):
                if not member.replicas():
                    self._make_room(environment)
                self.keep_busy(environment)
            running, marks = self.fleet.running(member), self.fleet.marks()
            return any(mark.task in running and mark.worker == member.name and mark.at > since for mark in marks)

        try:
            self.fleet.wait(busy, 30, f"a running task in {member.name}")
        finally:
            orders.reset(self.fleet.client, environment)

    def _make_room(self, environment: str) -> None:
        client = self.fleet.client
        more = int(client.hget(names.fleet_key(environment, "sums"), "seats") or 0) + _MORE
        orders.scale(client, environment, 0, more)
        orders.prewarm(client, environment, more)  # by the work alone those may be enough that the others have

    def _staying(self, environment: str) -> list[Member]:
        return [member for member in self.fleet.serving(environment) if not member.leaving]

    def _refill(self, environment: str) -> None:
        if not self.fleet.project.depth(environment):
            self.keep_busy(environment)

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
