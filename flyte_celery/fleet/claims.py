"""Claims: the messages that a worker has taken from its queue and not yet finished, kept in Redis.

A message moves from the queue's lists into the worker's claims in one script, and leaves them when it is
acknowledged or handed back, so there is no instant at which only a process's memory has it. One lease per worker,
renewed by the worker and measured by the server's clock, says that its claims are alive; when it is over, anybody
may condemn the worker and hand its claims back (`reaper`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import redis

from .. import names
from .scripts import script

#: Seconds for which lost starts are remembered after the last one of their queue.
ATTEMPTS_KEPT = 7 * 24 * 3600


class LeaseLostError(Exception):
    """The worker's lease was over before it renewed it; its claims are somebody else's now."""


@dataclass(slots=True)
class Claim:
    """One claimed message."""

    id: int
    message: bytes
    #: Index of the priority list that it came from, and goes back to.
    list: int
    tag: str
    started: bool = False
    #: Whether the pool has it, or had it until it ended.
    taken: bool = False


@dataclass(slots=True)
class Claims:
    """One worker's claims on one queue.

    Args:
        client: Used for everything but claiming itself, which the transport sends on its own connection.
        queue: The queue.
        lists: Its priority lists, most urgent first.
        worker: An id that no other worker has, nor an earlier life of this one.
        lease: Seconds.
    """

    client: redis.Redis
    queue: str
    lists: tuple[str, ...]
    worker: str
    lease: float
    #: What is claimed, by id, in the order of claiming.
    held: dict[int, Claim] = field(default_factory=dict)
    _next: int = 1
    #: The claim whose message still is in the inbox.
    _in_inbox: int | None = None
    _acks: list[int] = field(default_factory=list)
    _begun: list[int] = field(default_factory=list)

    # -- Lease -------------------------------------------------------------------------------------------------------

    def take_lease(self) -> None:
        """Begin to live."""
        self._lease("take")

    def renew_lease(self) -> None:
        """Prove to be alive.

        Raises:
            LeaseLostError: Too late.
        """
        self._lease("renew")

    def _lease(self, how: str) -> None:
        args = [names.worker_member(self.queue, self.worker), int(self.lease * 1000), how]
        if not script("lease").run(self.client, [names.workers_key()], args):
            raise LeaseLostError(f"The lease of {self.worker} on {self.queue!r} was over before it was renewed.")

    # -- Claiming ----------------------------------------------------------------------------------------------------

    def claim_command(self, most: int) -> tuple[Any, ...]:
        """The command that claims up to `most` messages; give its reply to `claimed`."""
        return script("claim").command(*self._claim_arguments(most))

    def _claim_arguments(self, most: int) -> tuple[list[str], list[Any]]:
        keys = [names.workers_key(), self._claims, self._inbox, *self.lists]
        inbox = "" if self._in_inbox is None else self._in_inbox
        return keys, [names.worker_member(self.queue, self.worker), inbox, self._next, most]

    def claimed(self, reply: Any) -> list[Claim]:
        """The claims that a reply to `claim_command` brings.

        Raises:
            LeaseLostError: The worker may not claim any more.
        """
        if reply == -1:
            raise LeaseLostError(f"The lease of {self.worker} on {self.queue!r} is over.")
        self._in_inbox = None
        return [self._hold(message) for message in reply]

    def wait_command(self, seconds: float) -> tuple[Any, ...]:
        """The command that waits for a message of the default priority; give its reply to `arrived`."""
        return ("BLMOVE", self.lists[0], self._inbox, "RIGHT", "LEFT", seconds)

    def arrived(self, reply: bytes | None) -> list[Claim]:
        """The claim that a reply to `wait_command` brings; its message stays in the inbox until the next claim."""
        if reply is None:
            return []
        claim = self._hold(reply)
        self._in_inbox = claim.id
        return [claim]

    def _hold(self, message: bytes) -> Claim:
        claim = self.held[self._next] = Claim(self._next, message, 0, "")
        self._next += 1
        return claim

    # -- Finishing ---------------------------------------------------------------------------------------------------

    def begun(self, number: int) -> None:
        """Note that a claim has begun to run; `flush` writes it."""
        claim = self.held.get(number)
        if claim is not None:
            claim.started = True
            self._begun.append(number)

    def ack(self, number: int) -> None:
        """Note that a claim is finished and its result stored; `flush` writes it."""
        if self.held.pop(number, None) is not None:
            self._acks.append(number)

    def flush(self) -> None:
        """Write what was noted, all in one round trip. What cannot be written stays noted.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        acks, begun = self._acks, [number for number in self._begun if number in self.held]
        if not acks and not begun:
            self._begun.clear()
            return
        adopt = self._in_inbox
        pipe: Any = self.client.pipeline(transaction=False)
        with pipe:
            if adopt is not None:  # an acknowledged claim must not stay behind in the inbox
                pipe.execute_command(*self.claim_command(0))
            if begun:
                pipe.hset(self._started, mapping=dict.fromkeys(map(str, begun), 1))
            if acks:
                pipe.hdel(self._claims, *map(str, acks))
                pipe.hdel(self._started, *map(str, acks))
            pipe.execute()
        if adopt is not None:
            self._in_inbox = None
        del self._acks[: len(acks)]
        self._begun.clear()

    def hand_back(self, claims: Iterable[Claim]) -> list[int]:
        """Put claims back at the head of the queue, in the order in which they came.

        Returns:
            For each, newest first, how often a start of it was lost; -1 for one that was no longer held.
        """
        back = sorted(claims, key=lambda claim: claim.id, reverse=True)
        if not back:
            return []
        if self._in_inbox is not None:
            script("claim").run(self.client, *self._claim_arguments(0))
            self._in_inbox = None
        args: list[Any] = []
        for claim in back:
            args += [claim.id, claim.list + 1, claim.message, claim.tag, int(claim.started)]
        keys = [self._claims, self._started, names.attempts_key(self.queue), *self.lists]
        counts: list[int] = script("hand_back").run(self.client, keys, args)
        for claim in back:  # only now: what Redis did not take is still this worker's
            self.held.pop(claim.id, None)
        return counts

    def count_lost(self, claim: Claim) -> int:
        """Count one more lost start of a message and say how many there were."""
        key = names.attempts_key(self.queue)
        pipe: Any = self.client.pipeline(transaction=False)
        pipe.hincrby(key, claim.tag, 1)
        pipe.expire(key, ATTEMPTS_KEPT)
        return int(pipe.execute()[0])

    def leave(self) -> None:
        """Give up the lease. The entry stays for the reapers, who look once more into the inbox."""
        script("condemn").run(self.client, [names.workers_key()], [names.worker_member(self.queue, self.worker)])

    @property
    def _claims(self) -> str:
        return names.claims_key(self.queue, self.worker)

    @property
    def _started(self) -> str:
        return names.started_key(self.queue, self.worker)

    @property
    def _inbox(self) -> str:
        return names.inbox_key(self.queue, self.worker)
