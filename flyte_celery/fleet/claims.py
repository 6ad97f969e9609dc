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
from redis.exceptions import NoScriptError

from .. import names
from .messages import lost_once_more
from .scripts import script


class LeaseLostError(Exception):
    """The worker's lease was over before it renewed it; its claims are somebody else's now."""


@dataclass(slots=True)
class Claim:
    """One claimed message."""

    id: int
    message: bytes
    #: Index of the priority list that it came from, and goes back to.
    list: int
    #: Starts of it that were lost before this worker had it, and what the last one was lost to.
    attempts: int = 0
    lost_to: str = ""
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
    _burials: list[tuple[int, str]] = field(default_factory=list)
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
        claim = self.held[self._next] = Claim(self._next, message, 0)
        self._next += 1
        return claim

    # -- Finishing ---------------------------------------------------------------------------------------------------

    def begun(self, number: int) -> None:
        """Note that a claim has begun to run; `flush` writes it."""
        claim = self.held.get(number)
        if claim is not None:
            claim.started = True
            self._begun.append(number)

    def ack(self, number: int, letter: str = "") -> None:
        """Note that a claim is finished and its result stored; `flush` writes it.

        Args:
            number: The claim.
            letter: The dead letter to keep when the message was given up.
        """
        if self.held.pop(number, None) is None:
            return
        if letter:
            self._burials.append((number, letter))
        else:
            self._acks.append(number)

    def flush(self) -> None:
        """Write what was noted, all in one round trip. What cannot be written stays noted.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        acks, burials = self._acks, self._burials
        begun = [number for number in self._begun if number in self.held]
        if not (acks or burials or begun):
            self._begun.clear()
            return
        adopt = self._in_inbox
        try:
            with self.client.pipeline(transaction=False) as pipe:
                self._write(pipe, adopt, begun)
                pipe.execute()
        except NoScriptError:  # the server was restarted since it was given the scripts
            for name in ("claim", "bury"):
                self.client.script_load(script(name).text)
            return self.flush()
        if adopt is not None:
            self._in_inbox = None
        del acks[:], burials[:]
        self._begun.clear()

    def _write(self, pipe: Any, adopt: int | None, begun: list[int]) -> None:
        if adopt is not None:  # an acknowledged claim must not stay behind in the inbox
            pipe.execute_command(*self.claim_command(0))
        if begun:
            pipe.hset(self._started, mapping=dict.fromkeys(map(str, begun), 1))
        if self._acks:
            pipe.hdel(self._claims, *map(str, self._acks))
            pipe.hdel(self._started, *map(str, self._acks))
        for number, letter in self._burials:
            keys = [self._claims, self._started, names.dead_key(self.queue)]
            pipe.execute_command(*script("bury").command(keys, [number, letter]))

    def owns(self, number: int) -> bool:
        """Ask Redis whether a claim still is this worker's: neither finished with its result, nor handed on.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        self._adopt()
        pipe: Any = self.client.pipeline(transaction=False)
        pipe.hexists(self._claims, str(number))
        pipe.zscore(names.workers_key(), names.worker_member(self.queue, self.worker))
        held, lease = pipe.execute()
        return bool(held) and lease is not None and lease > 0

    def hand_back(self, claims: Iterable[Claim]) -> int:
        """Put claims back at the head of the queue, in the order in which they came.

        Returns:
            How many went back; the others were no longer this worker's.
        """
        back = sorted(claims, key=lambda claim: claim.id, reverse=True)
        if not back:
            return 0
        self._adopt()
        args: list[Any] = []
        for claim in back:
            message = lost_once_more(claim.message, claim.lost_to) if claim.started else claim.message
            args += [claim.id, claim.list + 1, message]
        went = script("hand_back").run(self.client, [self._claims, self._started, *self.lists], args)
        for claim in back:  # only now: what Redis did not take is still this worker's
            self.held.pop(claim.id, None)
        return int(sum(went))

    def fence(self, number: int) -> tuple[str, str]:
        """What a result of a claim is stored under: the worker, and the claim where Redis has it among the claims."""
        return names.worker_member(self.queue, self.worker), "" if number == self._in_inbox else str(number)

    def _adopt(self) -> None:
        """Let the message in the inbox be a claim like all others."""
        if self._in_inbox is not None:
            script("claim").run(self.client, *self._claim_arguments(0))
            self._in_inbox = None

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
