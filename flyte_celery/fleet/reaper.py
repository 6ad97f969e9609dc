"""Hands back the claims of dead workers, of every queue, whoever calls it and however often.

A worker whose lease is over is condemned first, which takes from it the right to claim and renew, and buried when
nothing of it is left. A burial waits until no command that the worker may have left pending on the server can put
another message into its inbox.
"""

from __future__ import annotations

from dataclasses import dataclass

import redis

from .. import names
from .catalogue import priority_steps
from .handing_back import hand_back
from .messages import lost_once_more
from .scripts import script

#: Milliseconds after which no command of a condemned worker can still be pending; the longest waits one second.
BURIAL_AFTER = 3000


@dataclass(frozen=True, slots=True)
class Report:
    """What was handed back of one dead worker."""

    queue: str
    worker: str
    claims: int

    def __str__(self) -> str:
        return f"{self.queue}: the worker {self.worker} is dead; {self.claims} claim(s) are back in the queue."


def reap(client: redis.Redis) -> list[Report]:
    """Condemn every worker whose lease is over and hand back what it has claimed.

    Returns:
        A report for each worker that had claims.
    """
    condemned = script("condemn").run(client, [names.workers_key()], [])
    reports = []
    for member, age in zip(condemned[::2], condemned[1::2], strict=True):
        queue, _, worker = member.decode().partition("/")
        count = _hand_back(client, queue, worker)
        if count:
            reports.append(Report(queue, worker, count))
        if int(age) >= BURIAL_AFTER:
            _bury(client, queue, worker)
    return reports


def _hand_back(client: redis.Redis, queue: str, worker: str) -> int:
    while client.lmove(names.inbox_key(queue, worker), queue, "RIGHT", "RIGHT"):
        pass
    held: dict[bytes, bytes] = client.hgetall(names.claims_key(queue, worker))  # type: ignore[assignment]
    started: set[bytes] = set(client.hkeys(names.started_key(queue, worker)))  # type: ignore[arg-type]
    if not held:
        return 0
    cause = f"The worker {worker.partition(':')[0]} was lost"
    messages = [
        (int(number), lost_once_more(message, cause) if number in started else message)
        for number, message in held.items()
    ]
    return hand_back(client, queue, worker, messages, priority_steps(client, queue))


def _bury(client: redis.Redis, queue: str, worker: str) -> None:
    if not client.exists(names.claims_key(queue, worker), names.inbox_key(queue, worker)):
        client.delete(names.started_key(queue, worker))
        client.zrem(names.workers_key(), names.worker_member(queue, worker))
