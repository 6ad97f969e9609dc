"""What the measures ask of a task queue."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Literal

#: The functions that every app has: return the number, sleep for the seconds, return the text.
TaskName = Literal["noop", "nap", "echo"]

#: Submits a call per argument and returns the results when all are there.
Way = Callable[[TaskName, Sequence[Any]], list[Any]]

#: Processes that run tasks.
PROCESSES = 2

#: Sleeping tasks at once in one process, where a process can run more than one.
SLEEPS_PER_PROCESS = 100


class Contender(ABC):
    """One task queue: how its workers are started and its tasks called.

    An instance lives in the client's process; the workers import the module of the subclass for its app.
    """

    #: Distributions whose versions the table names.
    distributions: tuple[str, ...]

    #: Sleeping tasks at once in all processes; what the ideal of the sleep rows is reckoned from.
    sleep_slots = PROCESSES * SLEEPS_PER_PROCESS

    @abstractmethod
    def workers(self, sleepers: bool) -> list[list[str]]:
        """The command lines of the workers: one each, or one for each process where nothing starts several.

        Args:
            sleepers: Whether the worker is for the sleep rows, where prefork processes would do 2 at a time.
        """

    @abstractmethod
    def ways(self) -> dict[str, Way]:
        """The ways to run many calls and collect their results, the fastest first, by the name in the table."""

    @abstractmethod
    def publishers(self) -> dict[str, Callable[[int], object]]:
        """The ways to submit a number of no-ops and look at no result, by the name in the table."""

    def one(self, number: int) -> Any:
        """One no-op call and its result."""
        return next(reversed(self.ways().values()))("noop", [number])

    def family(self, children: int) -> None:
        """One parent task that calls this many no-ops and waits for them, or the nearest that there is."""
        raise NotImplementedError

    def versions(self) -> str:
        """Names and versions for the table's foot."""
        return ", ".join(f"{name} {version(name)}" for name in self.distributions)

    @property
    def same_workers(self) -> bool:
        """Whether one worker serves all rows."""
        return self.workers(sleepers=False) == self.workers(sleepers=True)


def module(name: str, *arguments: object) -> list[str]:
    """`python -m name arguments...` with this interpreter."""
    return [sys.executable, "-m", name, *map(str, arguments)]
