"""How an attempt at a task ends: one script that checks who may say so, and does all that belongs to it in one step.

It stores the result, finishes the claim, tells who waits, and submits the next attempt where there is one. So there is
no instant at which an attempt that is retried could be delivered once more, and one that is not this worker's any
more submits nothing: a retry is in its queue exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from celery.exceptions import Reject

from .. import names

#: No fence: a result that may be stored by anybody.
UNFENCED = ("", "")

#: Where a running task's request has its fence: a field of its properties, which no message inherits.
FENCE_FIELD = "flyte_celery_fence"

#: Seconds within which every worker looks at its queue's future work. A message that is due sooner goes into the queue,
#: for the worker that takes it to wait.
SEEN_WITHIN = 2.0


class NotOwnedError(Reject):
    """An attempt is not this worker's any more, so how it ended is not recorded: others run the task, or it is done.

    Celery's tracer passes it on untouched: no error callback, chord or signal hears of the attempt. The message, which
    is somebody else's, stays where it is.

    Args:
        task_id: The task's id.
        requeue: Always true, as Celery's requests understand it.
    """

    def __init__(self, task_id: str, requeue: bool = True) -> None:
        super().__init__(task_id, requeue)

    def __str__(self) -> str:
        return f"{self.reason}: how it ended here is discarded, for the task is others' by now, or has its result."


class NextAttempt(NamedTuple):
    """The message of a task's next attempt."""

    queue: str
    """The queue."""

    key: str
    """The priority list that it belongs on."""

    number: int
    """The number of that list, from 1."""

    task_id: str
    """The task's id."""

    message: str
    """The message itself."""

    wait: float
    """Seconds until it is due, 0 for now."""

    due: float
    """When that is, in seconds since the epoch."""

    end: int
    """When its time ends, see `attempts.end_of`."""

    backend: Any
    """The result backend, which has the Redis for it."""


@dataclass(slots=True)
class Fence:
    """What a running task's results are stored under, and the next attempt that is submitted with the end of this one.

    Args:
        member: The worker among the leases; "" without a fence.
        claim: The claim's id; "" where the task's end says nothing of a claim.
    """

    member: str
    claim: str
    next_attempt: NextAttempt | None = None

    @classmethod
    def of(cls, request: Any) -> Fence | None:
        """That of a running task's request; None where it has none."""
        properties = getattr(request, "properties", None)
        fence = properties.get(FENCE_FIELD) if properties else None
        return fence if isinstance(fence, cls) else None

    @property
    def guards(self) -> bool:
        """Whether there is a lease to ask for: results are kept where the leases are."""
        return bool(self.member)

    @property
    def pair(self) -> tuple[str, str]:
        """The worker and the claim."""
        return self.member, self.claim

    def take_next(self) -> NextAttempt | None:
        """The next attempt, for the one who submits it."""
        following, self.next_attempt = self.next_attempt, None
        return following


class Store(NamedTuple):
    """One end of an attempt, with its result, as the script `store` is told of it."""

    #: The worker that has to own the task, as a member of the leases; "" for a result without a fence.
    member: str
    keys: list[str]
    args: list[Any]

    @property
    def payload(self) -> str | bytes:
        """The result in Celery's own form."""
        payload: str | bytes = self.args[0]
        return payload


def store(
    key: str, payload: str | bytes, expires: int, reply_to: str, fence: tuple[str, str], *, finished: bool
) -> Store:
    """What the script `store` is told of a result.

    Args:
        key: Where Celery looks for the result.
        payload: The result in Celery's own form, "" for none.
        expires: Seconds to keep it, 0 for ever.
        reply_to: The reply channel of the process that made the call, "" for none.
        fence: Member of the worker among the leases and id of the claim, see `Claims.fence`.
        finished: Whether nothing is left to do for the task, so that its claim goes in the same step.
    """
    member, claim = fence
    return Store(member, [key], [payload, expires, reply_to, claim, int(finished), ""])


def nothing(key: str, fence: tuple[str, str]) -> Store:
    """What the script `store` is told to learn whether a task is still this worker's; nothing is written.

    Args:
        key: Where Celery looks for the task's result.
        fence: As in `store`.
    """
    return store(key, "", 0, "", fence, finished=False)


def arguments(stores: Sequence[Store]) -> tuple[list[str], list[Any]]:
    """Keys and arguments of the script `store` for results of one worker, or of none."""
    member = stores[0].member
    queue, _, worker = member.partition("/")
    keys = [names.workers_key(), names.claims_key(queue, worker), names.started_key(queue, worker)]
    args: list[Any] = [member]
    for each in stores:
        keys += each.keys
        args += each.args
    return keys, args


def by_worker(stores: Sequence[Store]) -> list[list[int]]:
    """The places of the stores that one script can take together: a worker that lost its lease has another name."""
    places: dict[str, list[int]] = {}
    for place, each in enumerate(stores):
        places.setdefault(each.member, []).append(place)
    return list(places.values())


def followed(write: Store, following: NextAttempt) -> Store:
    """What the script is told where another attempt follows: the claim of this one goes in the same step."""
    payload, expires, reply_to, claim, *_ = write.args
    due = math.ceil(following.due * 1000) if following.wait > SEEN_WITHIN else 0
    queue = following.queue
    again = [following.message, due, following.task_id, following.number, queue, following.end]
    return write._replace(
        keys=[
            *write.keys,
            following.key,
            names.later_key(queue),
            names.later_messages_key(queue),
            names.later_queues_key(),
            names.ends_key(queue),
        ],
        args=[payload, expires, reply_to, claim, 1, "again", *again],
    )
