"""Hands back the claims of dead workers, of every queue, whoever calls it and however often.

A worker whose lease is over is condemned first, which takes from it the right to claim and renew, and buried when
nothing of it is left. A burial waits until no command that the worker may have left pending on the server can put
another message into its inbox. One that hangs in a network, which delivers it when it is whole again, can do so later:
graves are looked at now and then, for longer than that can take.

After an outage of the server nobody is condemned for some seconds: who comes back finds what he had.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import redis

from .. import names
from .catalogue import priority_steps
from .handing_back import hand_back
from .messages import lost_once_more
from .scripts import script

#: Milliseconds after which no command of a condemned worker can still be pending; the longest waits one second.
BURIAL_AFTER = 3000

#: Seconds between two looks at the graves, by whoever looks first, and for how long each is looked at: TCP sends again
#: what was not received for half an hour at most.
GRAVES_INTERVAL = 10
GRAVES_KEPT = 1800

#: Seconds between two looks of somebody who waits until leases may be taken.
LOOK_EVERY = 0.5


@dataclass(frozen=True, slots=True)
class Report:
    """What was handed back of one dead worker."""

    queue: str
    worker: str
    claims: int

    def __str__(self) -> str:
        return f"{self.queue}: the worker {self.worker} is dead; {self.claims} claim(s) are back in the queue."


def reap(client: redis.Redis, looks: tuple[str, float] | None = None) -> list[Report]:
    """Condemn every worker whose lease is over and hand back what it has claimed.

    Args:
        client: The Redis server of all queues.
        looks: The worker that looks, as a member of all workers, and the seconds of its lease, which is renewed, unless
            it was lost. None for a client that is none.

    Returns:
        A report for each worker that had claims.
    """
    member, lease = looks or ("", 0.0)
    return _look(client, member, lease)[0]


def reap_patiently(client: redis.Redis) -> list[Report]:
    """The same, for somebody who looks once: after an outage it waits until everybody could come back, some seconds."""
    reports = []
    while True:
        found, wait = _look(client)
        reports += found
        if not wait:
            return reports
        time.sleep(min(wait, LOOK_EVERY))


def _look(client: redis.Redis, member: str = "", lease: float = 0.0) -> tuple[list[Report], float]:
    condemned, graves, wait = _condemn(client, "look", member, int(lease * 1000))
    reports = []
    for each, age in zip(condemned[::2], condemned[1::2], strict=True):
        queue, worker = _names_of(each)
        count = _hand_back(client, queue, worker)
        if count:
            reports.append(Report(queue, worker, count))
        if int(age) >= BURIAL_AFTER:
            _bury(client, queue, worker)
    for grave in graves:
        _empty_inbox(client, *_names_of(grave))
    return reports, wait / 1000


def leave(client: redis.Redis, member: str) -> None:
    """Take the lease from a worker that needs it no more; reapers look once more into its inbox."""
    _condemn(client, "leave", member, 0)


def _condemn(client: redis.Redis, mode: str, member: str, lease: int) -> Any:
    keys = [names.workers_key(), names.pulse_key(), names.graves_key(), names.graves_seen_key()]
    return script("condemn").run(client, keys, [mode, member, lease, GRAVES_INTERVAL])


def _names_of(member: bytes) -> tuple[str, str]:
    queue, _, worker = member.decode().partition("/")
    return queue, worker


def _hand_back(client: redis.Redis, queue: str, worker: str) -> int:
    _empty_inbox(client, queue, worker)
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


def _empty_inbox(client: redis.Redis, queue: str, worker: str) -> None:
    while client.lmove(names.inbox_key(queue, worker), queue, "RIGHT", "RIGHT"):
        pass


def _bury(client: redis.Redis, queue: str, worker: str) -> None:
    if not client.exists(names.claims_key(queue, worker), names.inbox_key(queue, worker)):
        member = names.worker_member(queue, worker)
        seconds, _ = client.time()
        client.delete(names.started_key(queue, worker))
        client.zadd(names.graves_key(), {member: (seconds + GRAVES_KEPT) * 1000})
        client.expire(names.graves_key(), 2 * GRAVES_KEPT)
        client.zrem(names.workers_key(), member)
