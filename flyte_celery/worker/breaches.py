"""Whose fault it is when a replica has used more than it may, and what its caller is told.

The fault is a task's own where it was the only one that ran in the replica, and the replica had not been left fuller by
earlier tasks than a fresh one is, or hardly. In every other case nobody can tell from outside, so every task that ran
is run again in a replica of its own, where nobody else can be at fault. None of them loses an attempt by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import OOMError, ResourceExhaustedError
from ..supervisor.lifecycle import StopReason
from ..supervisor.watchdog import Bound, Breach

if TYPE_CHECKING:
    from .job import Job
    from .replicas import Replica

#: The part of its limit that a replica may have been fuller than a fresh one when a task is held at fault for the rest.
LEFT_BEHIND = 0.1


def stop_reason(breach: Breach) -> StopReason:
    """Why a replica ends that has used more than it may."""
    return StopReason.TOO_MANY_PROCESSES if breach.bound is Bound.PROCESSES else StopReason.OUT_OF_MEMORY


def suspects(replica: Replica) -> list[Job]:
    """The tasks that ran in a replica: those that have begun and do not wait for their children."""
    return [
        job
        for number, job in replica.jobs.items()
        if job.accepted_at is not None and number not in replica.suspended and not job.terminated
    ]


def at_fault(replica: Replica, breach: Breach) -> Job | None:
    """The task whose fault it is that a replica has used more than it may; None when that cannot be told."""
    running = suspects(replica)
    if len(running) != 1:
        return None
    (job,) = running
    if breach.bound is not Bound.MEMORY or not replica.served or breach.limit is None:
        return job
    fresh = breach.before(replica.child.ready_at or 0.0)
    left_behind = breach.before(job.accepted_at or 0.0) - fresh
    return job if left_behind <= breach.limit * LEFT_BEHIND else None


def not_at_fault(replica: Replica) -> list[Job]:
    """The tasks that run again because a replica has used more than it may: all that had begun, but for the guilty one.

    None where it was lost for another reason.
    """
    if replica.breach is None:
        return []
    guilty = at_fault(replica, replica.breach)
    return [
        job for job in replica.jobs.values() if job.accepted_at is not None and job is not guilty and not job.terminated
    ]


def failure(job: Job, breach: Breach, hostname: str) -> Exception:
    """What the caller of the task at fault gets."""
    if breach.bound is Bound.PROCESSES:
        return ResourceExhaustedError(
            f"{job.words} ran {breach.used} processes on {hostname}, and may run {breach.limit}: start fewer at once, "
            "or raise max_processes of the worker."
        )
    advice = 'Give it more, as in task.override(reusable="off", resources=Resources(memory="...")), or let it use less.'
    peak = _amount(breach.used)
    if breach.bound is Bound.KERNEL:
        limit = "no limit of its own" if breach.limit is None else f"a limit of {_amount(breach.limit)}"
        return OOMError(
            "OOMKilled",
            f"{job.words} was killed by the kernel of {hostname}, which was out of memory: its replica held {peak} and "
            f"had {limit}. {advice}",
        )
    return OOMError(
        "OOMKilled",
        f"{job.words} used more memory than its limit of {_amount(breach.limit or 0)} on {hostname}: {peak} at its "
        f"peak. {advice}",
    )


def _amount(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
