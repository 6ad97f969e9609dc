"""What becomes of a task whose replica or worker was lost while it ran: it runs again, or is given up.

A start that was lost is an attempt. A task on its last attempt after lost ones runs alone in its replica: what dies
with it then dies by its own fault, and a neighbour is never given up for it.
"""

from __future__ import annotations

from celery.exceptions import Ignore, WorkerLostError

from ..environment import TaskEnvironment
from .job import Job
from .keeper import Keeper


class _GivenUp(Exception):
    """Recorded as Celery's `WorkerLostError`, which any client re-creates; raised here, that would requeue the task."""


_GivenUp.__name__ = _GivenUp.__qualname__ = WorkerLostError.__qualname__
_GivenUp.__module__ = WorkerLostError.__module__


def most_attempts(environment: TaskEnvironment, job: Job) -> int:
    """How often a task may be started."""
    return environment.max_attempts if job.task is None else job.task.max_attempts


def last_chance(attempts: int, most: int) -> bool:
    """Whether a task runs alone: starts of it were lost, and with one more it is given up."""
    return 0 < attempts == most - 1


def given_up(job: Job, most: int, keeper: Keeper) -> Exception | None:
    """The failure of a task that comes with all its starts lost already, by workers that died with it."""
    claim = None if job.claim is None else keeper.claims.held.get(job.claim)
    if claim is None or claim.attempts < most:
        return None
    failure = _given_up_after(f"{claim.lost_to} while it ran {job.words}", claim.attempts, most)
    keeper.give_up(claim.id, claim.attempts, str(failure))
    return failure


def after_loss(job: Job, cause: str, most: int, keeper: Keeper) -> Exception:
    """How a task ends whose replica was lost: what Celery's request is told.

    Returns:
        Celery's `WorkerLostError`, which gives the message back to the queue; for a task that is given up what callers
        get as such an error; `Ignore` for one that is not this worker's any more, or whose result was stored.
    """
    claim = None if job.claim is None else keeper.claims.held.get(job.claim)
    if claim is None or not keeper.owns(claim.id):
        ended: Exception = Ignore()
        return ended
    claim.lost_to = f"{cause} on {keeper.hostname}"
    attempts = claim.attempts + 1
    failure = after_uncounted_loss(job, cause, attempts, most, keeper.hostname)
    if attempts >= most:
        keeper.give_up(claim.id, attempts, str(failure))
    return failure


def after_uncounted_loss(job: Job, cause: str, attempts: int, most: int, hostname: str) -> Exception:
    """The same where only this worker knows how many attempts there were."""
    what = f"{cause} while it ran {job.words}"
    if attempts >= most:
        return _given_up_after(f"{what} on {hostname}", attempts, most)
    lost: Exception = WorkerLostError(f"{what}, attempt {attempts} of {most}")
    return lost


def returned_too_often(job: Job, times: int) -> Exception:
    """The failure of a task whose queue has taken it back so often that it must end its workers."""
    return _GivenUp(
        f"{job.words} was delivered {times + 1} times and never ended, as if it ended its worker each time: it is "
        "given up."
    )


def _given_up_after(what: str, attempts: int, most: int) -> Exception:
    return _GivenUp(f"{what}, attempt {attempts} of {most}: it is given up.")
