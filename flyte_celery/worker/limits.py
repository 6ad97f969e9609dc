"""Ending one task before it has ended: time limits, and revocation."""

from __future__ import annotations

from ..replica import wire
from ..supervisor.lifecycle import StopReason
from .job import Job
from .replicas import Replica, Replicas


class TimeLimits:
    """Time limits of the tasks in a worker's replicas.

    Args:
        replicas: The replicas.
        patience: Seconds that a cancelled coroutine has to end before its replica is killed for it.
    """

    def __init__(self, replicas: Replicas, patience: float) -> None:
        self._replicas = replicas
        self.patience = patience

    def begin(self, job: Job) -> None:
        """A task has begun: its limits count from now."""
        hub = self._replicas.hub
        if hub is None:
            return
        if job.soft_limit:
            job.timers.append(hub.call_later(job.soft_limit, self._over_soft_limit, job))
        if job.hard_limit:
            job.timers.append(hub.call_later(job.hard_limit, self._over_hard_limit, job))

    def terminate(self, job: Job) -> None:
        """End a task that runs or waits for its children: alone where that is possible, else with its replica."""
        replica = self.owner(job)
        if replica is None or job.terminated:
            return
        job.terminated = True
        if not job.on_loop and job.number not in replica.suspended:
            self._replicas.kill(replica, StopReason.TERMINATED)
            return
        self._replicas.send(replica, (wire.CANCEL, job.number, None))
        hub = self._replicas.hub
        if hub is not None:
            job.timers.append(hub.call_later(self.patience, self._replicas.kill, replica, StopReason.TERMINATED))

    def _over_soft_limit(self, job: Job) -> None:
        if (replica := self.owner(job)) is not None and job.soft_limit:
            job.on_timeout(True, job.soft_limit)
            self._replicas.send(replica, (wire.CANCEL, job.number, job.soft_limit))

    def _over_hard_limit(self, job: Job) -> None:
        if self.owner(job) is not None and job.hard_limit:
            job.time_out(job.hard_limit)
            self.terminate(job)

    def owner(self, job: Job) -> Replica | None:
        """The replica that has a task; None while it waits."""
        return None if job.replica is None else self._replicas.get(job.replica)
