"""A task's `timeout` in its worker: how long it may wait for a replica, run, and take over all its attempts.

The first two are per attempt and leave the task its retries; the deadline ends it. A body that is interrupted fails in
its replica, as any other failure. One that goes on after `cancel_patience` seconds loses its replica, and then the
worker records the failure itself, or submits the retry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger

from ..attempts import Times
from ..errors import DeadlineExceededError, MaxQueuedTimeExceededError, MaxRuntimeExceededError, TaskTimeoutError
from ..replica import wire
from ..supervisor.lifecycle import StopReason
from ..timeout import Timeout
from .failing import fail_or_retry
from .job import Job
from .limits import TimeLimits
from .replicas import Replicas

if TYPE_CHECKING:
    from ..task import TaskTemplate

    AnyTask = TaskTemplate[Any, Any]

logger = get_logger("flyte_celery.worker")


class Timeouts:
    """The timeouts of the tasks that a worker has.

    Args:
        replicas: The replicas.
        limits: Celery's own limits, which say where a task runs and how long a cancelled one is waited for.
        withdraw: Takes a task that waits for a replica from the pool.
    """

    def __init__(self, replicas: Replicas, limits: TimeLimits, withdraw: Callable[[Job], None]) -> None:
        self._replicas = replicas
        self._limits = limits
        self._withdraw = withdraw

    def came(self, job: Job, request: Mapping[str, Any]) -> bool:
        """A task has come; says whether it still may wait. One that may not has its outcome when this returns."""
        for end, error in ends_of_waiting(job.task, request, job.words):
            self._at(end - time.time(), job, error)
        return job.exceeded is None

    def begun(self, job: Job) -> None:
        """A task's body begins."""
        limits = _limits_of(job.task)
        if limits is not None and (seconds := limits.max_runtime_seconds) is not None:
            error = MaxRuntimeExceededError(f"{job.words} ran for more than {seconds:g} s, its max_runtime.")
            self._at(seconds, job, error)

    def _at(self, seconds: float, job: Job, error: TaskTimeoutError) -> None:
        hub = self._replicas.hub
        if seconds <= 0 or hub is None:
            self._exceeded(job, error)
        else:
            job.timers.append(hub.call_later(seconds, self._exceeded, job, error))

    def _exceeded(self, job: Job, error: TaskTimeoutError) -> None:
        if job.exceeded is not None or job.terminated:
            return
        replica = self._limits.owner(job)
        if replica is None:
            job.exceeded = error
            self._withdraw(job)
            fail_or_retry(job, error)
        elif not isinstance(error, MaxQueuedTimeExceededError):
            job.exceeded = error
            logger.warning("%s", error)
            self._replicas.send(replica, (wire.EXCEEDED, job.number, error.code, str(error)))
            if (hub := self._replicas.hub) is not None:
                job.timers.append(hub.call_later(self._limits.patience, self._goes_on, job, error))

    def _goes_on(self, job: Job, error: TaskTimeoutError) -> None:
        """It was interrupted and has not ended: its replica is replaced, and what else ran there runs again."""
        replica = self._limits.owner(job)
        if replica is None or job.terminated:
            return
        job.terminated = True
        self._replicas.kill(replica, StopReason.TERMINATED)  # before another attempt can begin
        patience = self._limits.patience
        fail_or_retry(job, type(error)(f"{error} It did not end within {patience:g} s after it was interrupted."))


def ends_of_waiting(
    task: AnyTask | None, request: Mapping[str, Any], words: str
) -> Iterator[tuple[float, TaskTimeoutError]]:
    """Until when an attempt may wait, in seconds since the epoch, each with the error that it ends with then.

    Args:
        task: The task as its caller had it, None for one of no environment.
        request: Celery's request of its message.
        words: The task for people.
    """
    if (limits := _limits_of(task)) is None:
        return
    times = Times.of(request)
    if (seconds := limits.deadline_seconds) is not None:
        text = f"{words} was not done {seconds:g} s after its submission, which is its deadline."
        yield times.submitted + seconds, DeadlineExceededError(text)
    if (seconds := limits.max_queued_seconds) is not None:
        text = f"{words} waited for a replica for more than {seconds:g} s, its max_queued_time."
        yield times.queued + seconds, MaxQueuedTimeExceededError(text)


def _limits_of(task: AnyTask | None) -> Timeout | None:
    if task is None or not task.timeout:
        return None
    try:
        return Timeout.of(task.timeout)
    except ValueError:  # who submits by the task itself is told
        return None
