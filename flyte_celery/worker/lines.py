"""Waiting tasks of an environment whose replicas belong to runs: a line for each run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from .job import Job

if TYPE_CHECKING:
    from .groups import Group
    from .replicas import Replica, Replicas


class Lines:
    """First come, first served within a run, to replicas of that run; an unbound one takes the first of all tasks.

    So a task whose run has no replica blocks nobody. A task that must run alone waits at the head of its line until a
    replica of its run is empty.
    """

    def __init__(self) -> None:
        self._lines: dict[str, deque[Job]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        yield from sorted(chain.from_iterable(self._lines.values()), key=_arrival)

    def __contains__(self, job: Job) -> bool:
        return job in self._lines.get(job.run, ())

    def add(self, job: Job) -> None:
        """A task has come."""
        self._lines.setdefault(job.run, deque()).append(job)
        self._count += 1

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Tasks that a replica did not begin: they come before all others of their run, in their order."""
        for job in reversed(list(jobs)):
            self._lines.setdefault(job.run, deque()).appendleft(job)
            self._count += 1

    def remove(self, job: Job) -> None:
        """A task waits no longer."""
        self._lines[job.run].remove(job)
        self._shorter(job.run)

    def clear(self) -> list[Job]:
        """Nobody waits any longer; returns who did."""
        left = list(self)
        self._lines.clear()
        self._count = 0
        return left

    def next(self, replicas: Replicas, group: Group) -> tuple[Job, Replica] | None:
        """A task and the replica of the group that takes it; None when no task finds one."""
        if not self._lines:
            return None
        unbound = None
        for replica in replicas.of(group):
            if replica.run is None:
                if unbound is None and replicas.has_slot(replica):
                    unbound = replica
            elif (line := self._lines.get(replica.run)) and replicas.has_slot(replica, alone=line[0].alone):
                return self._take(replica.run), replica
        if unbound is None:
            return None
        return self._take(min(self._lines, key=lambda run: _arrival(self._lines[run][0]))), unbound

    def _take(self, run: str) -> Job:
        job = self._lines[run].popleft()
        self._shorter(run)
        return job

    def _shorter(self, run: str) -> None:
        self._count -= 1
        if not self._lines[run]:
            del self._lines[run]

    # -- By run ------------------------------------------------------------------------------------------------------

    def has(self, run: str | None) -> bool:
        """Whether tasks of a run wait."""
        return run in self._lines

    def counts(self) -> dict[str, int]:
        """How many tasks of each run wait."""
        return {run: len(line) for run, line in self._lines.items()}

    def heads(self) -> dict[str, int]:
        """The runs that wait, each with the number of its first task, in order of arrival."""
        return {run: line[0].number for run, line in self._lines.items()}

    def line(self, run: str) -> list[Job]:
        """The waiting tasks of a run."""
        return list(self._lines.get(run, ()))


def _arrival(job: Job) -> int:
    return job.number
