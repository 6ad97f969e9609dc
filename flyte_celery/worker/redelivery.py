"""What a worker remembers of its messages where no claims in Redis do: lost attempts, and messages that will come back.

Both are this process's memory alone: another worker, and the next life of this one, know nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .job import Job

#: Most tasks that are remembered; the oldest are forgotten first.
REMEMBERED = 10_000

#: Times that a quorum queue takes a message back before it is given up, when its task does not even leave a worker
#: that could count. From version 4 on, RabbitMQ itself drops the message after as many, and tells nobody.
MOST_RETURNS = 20


class Attempts:
    """How often each task took its replica down with it. A retry counts as another task, as it is another message."""

    def __init__(self) -> None:
        self._lost: dict[tuple[str, int], int] = {}

    def lost(self, job: Job) -> int:
        """How many there were."""
        return self._lost.get(job.key, 0)

    def count_lost(self, job: Job) -> int:
        """Count one more, and say how many there were."""
        attempts = self._lost[job.key] = self._lost.pop(job.key, 0) + 1
        _forget_the_oldest(self._lost)
        return attempts

    def ended(self, job: Job) -> None:
        """The task has ended; nothing of it needs to be remembered."""
        self._lost.pop(job.key, None)


class Redelivery:
    """Tasks whose messages went back to the broker with a lost connection, while replicas go on running them.

    A broker delivers such a message again as soon as it can. When it comes to the same worker, it takes the place of
    the lost one and is acknowledged when the task ends, so the task does not run a second time. When it comes to
    another worker, the task runs there too.
    """

    def __init__(self) -> None:
        self._expected: dict[tuple[str, int], Job] = {}

    def expect(self, jobs: Iterable[Job]) -> None:
        """The connection was lost while replicas had these."""
        self._expected.update({job.key: job for job in jobs})
        _forget_the_oldest(self._expected)

    def ended(self, job: Job, outcome: tuple[Any, ...]) -> None:
        """A task has ended; if its message is still to come, it will end the same way."""
        if self._expected.get(job.key) is job:
            job.outcome = outcome

    def forget(self, job: Job) -> None:
        """A task did not end here, so its message is to be run when it comes."""
        if self._expected.get(job.key) is job:
            del self._expected[job.key]

    def claim(self, job: Job, request: Mapping[str, Any]) -> Job | None:
        """The task that a message is the second delivery of, if there is one.

        Args:
            job: The message's.
            request: Celery's request of the message.
        """
        return self._expected.pop(job.key, None) if _redelivered(request) else None


def returns(request: Mapping[str, Any]) -> int:
    """How often a quorum queue has taken the message back; 0 where nobody counts that."""
    # Celery hands unknown headers on to retries, so on a first delivery the number may be that of another message.
    return int(request.get("x-delivery-count") or 0) if _redelivered(request) else 0


def _redelivered(request: Mapping[str, Any]) -> bool:
    return bool((request.get("delivery_info") or {}).get("redelivered"))


def _forget_the_oldest(remembered: dict[Any, Any]) -> None:
    while len(remembered) > REMEMBERED:
        del remembered[next(iter(remembered))]
