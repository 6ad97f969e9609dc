"""Submits tasks without pause: half of them at once, the others one by one, so that queues are full and then empty."""

from __future__ import annotations

import random
import threading
import uuid
from typing import Any

import redis

from tests.chaos.fleet import WORK, Fleet
from tests.chaos.verdict import Submitted

#: Environment, seconds from and to, and the share of its tasks that take longer than a lease.
KINDS = (("snc", 0.0, 0.05, 0.002), ("aio", 0.0, 0.2, 0.01))

#: Seconds between two tasks that come one by one: a little less than the fleet can do.
PACE = 0.01


class Load:
    """The tasks of one case.

    Args:
        fleet: Where they go.
        chance: Decides how long each takes.
        tasks: How many, at least; while a fault lasts, more come.
    """

    def __init__(self, fleet: Fleet, chance: random.Random, tasks: int) -> None:
        self._fleet = fleet
        self._chance = chance
        self._tasks = tasks
        self.submitted: list[Submitted] = []
        self._enough = threading.Event()
        self._trickle = threading.Thread(target=self._run, name="load", daemon=True)

    def begin(self) -> None:
        """Submit the first half, and let the others follow."""
        for _ in range(self._tasks // 2):
            self.submit_any()
        self._trickle.start()

    def end(self) -> None:
        """The faults are over: submit what is missing and let go."""
        self._enough.set()
        self._trickle.join()

    def submit_any(self) -> None:
        """Submit a task of the usual kind: most are short, a few outlive a lease, too few to take all slots."""
        environment, shortest, longest, outliving = self._chance.choices(KINDS, (1, 2))[0]
        seconds = self._chance.uniform(shortest, longest)
        if self._chance.random() < outliving:
            seconds = self._fleet.lease * 1.2
        self.submit(WORK[environment], seconds)

    def submit(self, name: str, *args: Any, ends: str = "SUCCESS", starts: int | None = None) -> str:
        """Submit one task and return its id.

        Args:
            name: The task.
            args: What follows its id among its arguments.
            ends: The state in which it has to end.
            starts: How often it has to be started, where that is promised.
        """
        task = uuid.uuid4().hex
        try:
            self._fleet.submit(name, *args, task=task)
            certain = True
        except redis.RedisError:  # whether Redis has it is unknown; submitting it again might make two of it
            certain = False
        self.submitted.append(Submitted(task, ends, certain, starts))
        return task

    def _run(self) -> None:
        while not self._enough.wait(PACE):
            self.submit_any()
        while sum(task.certain for task in self.submitted) < self._tasks:
            self.submit_any()
