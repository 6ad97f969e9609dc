"""Tasks that wait in a worker for a replica, and which replica gets which."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..supervisor.lifecycle import State
from .job import Job

if TYPE_CHECKING:
    from .groups import Group
    from .replicas import Replica, Replicas


class Waiting:
    """First come, first served, to the oldest replica with a free slot, so that surplus replicas fall idle and can go.

    Tasks that must run alone have a queue of their own; for the first of them a replica is kept free of others until
    it is empty.
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._alone: deque[Job] = deque()
        self._kept_free: Replica | None = None

    def __len__(self) -> int:
        return len(self._jobs) + len(self._alone)

    def __iter__(self) -> Iterator[Job]:
        yield from self._alone
        yield from self._jobs

    def __contains__(self, job: Job) -> bool:
        return job in self._jobs or job in self._alone

    def add(self, job: Job) -> None:
        """A task has come."""
        (self._alone if job.alone else self._jobs).append(job)

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Tasks that a replica did not begin: they come before all others, in their order."""
        for job in reversed(list(jobs)):
            (self._alone if job.alone else self._jobs).appendleft(job)

    def remove(self, job: Job) -> None:
        """A task waits no longer."""
        (self._alone if job.alone else self._jobs).remove(job)

    def clear(self) -> list[Job]:
        """Nobody waits any longer; returns who did."""
        left = list(self)
        self._jobs.clear()
        self._alone.clear()
        return left

    def next(self, replicas: Replicas, group: Group) -> tuple[Job, Replica] | None:
        """A task and the replica of the group that takes it; None when there is no task, or no slot for it."""
        if self._alone and (replica := self._free_for_one(replicas, group)) is not None:
            self._kept_free = None
            return self._alone.popleft(), replica
        if self._jobs and (replica := replicas.with_free_slot(group, besides=self._kept_free)) is not None:
            return self._jobs.popleft(), replica
        return None

    def _free_for_one(self, replicas: Replicas, group: Group) -> Replica | None:
        ready = [replica for replica in replicas.in_state(State.READY, group=group) if replicas.takes(replica)]
        empty = next((replica for replica in ready if not replica.running and not replica.resuming), None)
        if empty is None and self._kept_free not in ready:
            shared = [replica for replica in ready if not replica.alone]
            self._kept_free = min(shared, key=lambda replica: replica.running, default=None)
        return empty
