"""How a task's result is stored: one script that checks who may, stores, finishes the claim and tells who waits."""

from __future__ import annotations

from typing import Any

from .. import names

#: Keys and arguments of the script `store`.
Store = tuple[list[str], list[Any]]

#: No fence: a result that may be stored by anybody.
UNFENCED = ("", "")


def store(
    key: str, payload: str | bytes, expires: int, reply_to: str, fence: tuple[str, str], *, finished: bool
) -> Store:
    """What the script `store` is called with.

    Args:
        key: Where Celery looks for the result.
        payload: The result in Celery's own form.
        expires: Seconds to keep it, 0 for ever.
        reply_to: The reply channel of the process that made the call, "" for none.
        fence: Member of the worker among the leases and id of the claim, see `Claims.fence`.
        finished: Whether nothing is left to do for the task, so that its claim goes in the same step.
    """
    member, claim = fence
    queue, _, worker = member.partition("/")
    keys = [key, names.workers_key(), names.claims_key(queue, worker), names.started_key(queue, worker)]
    return keys, [payload, expires, reply_to, member, claim, int(finished)]
