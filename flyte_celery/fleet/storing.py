"""How results are stored: one script that checks who may, stores, finishes the claims and tells who waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import names

#: No fence: a result that may be stored by anybody.
UNFENCED = ("", "")


class Store(NamedTuple):
    """One result as the script `store` is told of it."""

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
        payload: The result in Celery's own form.
        expires: Seconds to keep it, 0 for ever.
        reply_to: The reply channel of the process that made the call, "" for none.
        fence: Member of the worker among the leases and id of the claim, see `Claims.fence`.
        finished: Whether nothing is left to do for the task, so that its claim goes in the same step.
    """
    member, claim = fence
    return Store(member, [key], [payload, expires, reply_to, claim, int(finished), 0])


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
