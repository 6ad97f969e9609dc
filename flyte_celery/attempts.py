"""When a call was made, how long it may take, and whether and when a failed attempt is followed by another.

A call of a task with a `max_queued_time` or a `deadline` carries in one header (`names.TIMES_HEADER`) when it was
submitted and when its current attempt was, in seconds since the epoch by the clocks of those who did: they outlive
every worker that the call comes to, as Celery's `eta` and `expires` do. A message without them, from a client that does
not know the task, counts from its arrival at a worker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .errors import DeadlineExceededError, NonRecoverableError
from .names import TIMES_HEADER
from .timeout import Timeout

if TYPE_CHECKING:
    from .task import TaskTemplate

    AnyTask = TaskTemplate[Any, Any]


#: How precisely it is known when a message has waited too long, as a part of its limit: 9 s for a day.
_GRAIN = 1e-4


@dataclass(frozen=True, slots=True)
class Times:
    """When a call and its current attempt were submitted, in seconds since the epoch."""

    submitted: float
    queued: float

    @classmethod
    def of(cls, headers: Mapping[str, Any] | None) -> Times:
        """What a message's headers tell; now, where they tell nothing that can be read."""
        now = time.time()
        match (headers or {}).get(TIMES_HEADER):
            case {"submitted": int() | float() as submitted, "queued": int() | float() as queued}:
                return cls(float(submitted), float(queued))
        return cls(now, now)


def stamped(task: AnyTask, headers: Mapping[str, Any] | None, due: float = 0.0) -> dict[str, Any]:
    """The headers that a call of a task gets when it is submitted, or submitted again for a retry.

    Besides the times they tell until when the attempt must have begun, which workers look for in their queue.

    Args:
        task: The task with its overrides.
        headers: What the call has already; a retry has those of the attempt before it.
        due: When it may begin, where that is not now, in seconds since the epoch.

    Raises:
        ValueError: The task's `timeout` is none.
    """
    if not task.timeout:
        return {}
    limits = Timeout.of(task.timeout)
    if limits.max_queued_time is None and limits.deadline is None:
        return {}
    now = time.time()
    submitted = Times.of(headers).submitted if headers and TIMES_HEADER in headers else now
    queued = max(now, due)
    ends = [queued + (limits.max_queued_seconds or math.inf), submitted + (limits.deadline_seconds or math.inf)]
    return {TIMES_HEADER: {"submitted": submitted, "queued": queued, "until": min(ends)}}


def end_of(headers: Mapping[str, Any] | None) -> int:
    """The second, since the epoch, from which on a message has waited too long, or a little later; 0 for never.

    Workers look for it then. Messages of long limits share theirs with others, so that there are not too many.
    """
    match (headers or {}).get(TIMES_HEADER):
        case {"queued": int() | float() as queued, "until": int() | float() as until} if math.isfinite(until):
            grain = max(1, math.ceil((until - queued) * _GRAIN))
            return (math.floor(until / grain) + 1) * grain
    return 0


def next_attempt(
    task: AnyTask, exc: BaseException, done: int, headers: Mapping[str, Any] | None
) -> timedelta | DeadlineExceededError | None:
    """What follows a failed attempt.

    A user's failure uses up the retries, and so does an attempt that ran or waited too long. What the platform lost
    does not come here: it is counted against `max_attempts`.

    Args:
        task: The task with its overrides.
        exc: What the attempt failed with.
        done: Retries that were made.
        headers: The call's.

    Returns:
        How long to wait before the next attempt; the error that the call ends with where that would begin after its
        deadline; None where there is no other attempt.
    """
    strategy = task.retries
    if strategy is None or done >= strategy.count or isinstance(exc, NonRecoverableError | DeadlineExceededError):
        return None
    delay = strategy.backoff.compute_delay(done) if strategy.backoff else timedelta(0)
    deadline = Timeout.of(task.timeout).deadline_seconds if task.timeout else None
    if deadline is not None and time.time() + delay.total_seconds() >= Times.of(headers).submitted + deadline:
        return DeadlineExceededError(
            f"{task.name} failed ({type(exc).__name__}: {exc}), and its next attempt would begin after its deadline of "
            f"{deadline:g} s: raise the deadline, or shorten the back-off."
        )
    return delay
