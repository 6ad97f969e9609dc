"""Claims: the messages that a worker has taken from its queue and not yet finished, kept in Redis.

A message moves from the queue's lists into the worker's claims in one script, and leaves them when it is
acknowledged or handed back, so there is no instant at which only a process's memory has it. One lease per worker,
renewed by the worker and measured by the server's clock, says that its claims are alive; when it is over, anybody
may condemn the worker and hand its claims back (`reaper`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import redis
from redis.exceptions import NoScriptError

from .. import names
from . import reaper
from .handing_back import hand_back
from .messages import lost_once_more, passed_on, priority_of, task_id_of
from .scripts import script

#: Most messages that have waited too long to claim at once.
MOST_OVERDUE = 100

#: How many messages of a list are looked at for it in one go, and how many bytes at most: some milliseconds of the
#: server's time.
LOOKED_AT = 1000
LOOKED_AT_BYTES = 1024 * 1024

#: Milliseconds between two such looks through a whole queue, and to rest after the last one, for each 1000 messages: a
#: fifth of the server's time at most, in the long run.
OVERDUE_PAUSE = 3
OVERDUE_REST = 10

#: Seconds after which another worker looks at a queue's first messages for overdue ones. Longer than the time between
#: two looks of one worker, so that of a thousand workers one does it: in a full queue these are many bytes.
FIRST_ONES_TURN = 1.5


class LeaseLostError(Exception):
    """The worker's lease was over before it renewed it; its claims are somebody else's now."""


@dataclass(slots=True)
class Claim:
    """One claimed message."""

    id: int
    message: bytes
    #: Starts of it that were lost before this worker had it, and what the last one was lost to.
    attempts: int = 0
    lost_to: str = ""
    started: bool = False
    #: Whether the pool has it, or had it until it ended.
    taken: bool = False
    #: Whether it was claimed for a place that is here, however few of the queue's tasks this worker may have.
    placed: bool = False


@dataclass(slots=True)
class Claims:
    """One worker's claims on one queue.

    Args:
        client: Used for everything but claiming itself, which the transport sends on its own connection.
        queue: The queue.
        steps: Its priority steps, as kombu's transport option has them.
        worker: An id that no other worker has, nor an earlier life of this one.
        lease: Seconds.
    """

    client: redis.Redis
    queue: str
    steps: tuple[int, ...]
    worker: str
    lease: float
    #: What is claimed, by id, in the order of claiming.
    held: dict[int, Claim] = field(default_factory=dict)
    #: What tasks need that were passed on, as the last look for overdue messages has found, see `needs`.
    needs: list[str] = field(default_factory=list)
    _next: int = 1
    #: First id of the claim command whose reply is awaited.
    _asked: int | None = None
    _acks: list[int] = field(default_factory=list)
    _burials: list[tuple[int, str]] = field(default_factory=list)
    _sent: list[tuple[int, str]] = field(default_factory=list)

    def reborn(self, worker: str) -> Claims:
        """The claims of the same worker's next life: without any, and with ids that this one has not given."""
        return Claims(self.client, self.queue, self.steps, worker, self.lease, _next=self._next)

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
        args = [self._member, int(self.lease * 1000), how]
        if not script("lease").run(self.client, [names.workers_key()], args):
            raise LeaseLostError(f"The lease of {self.worker} on {self.queue!r} was over before it was renewed.")

    # -- Claiming ----------------------------------------------------------------------------------------------------

    def claim_command(self, most: int) -> tuple[Any, ...]:
        """The command that claims up to `most` messages; give its reply to `claimed`.

        Its ids are never given again: when the reply is lost with the connection, the claims exist all the same, and
        `reclaim` finds them.
        """
        self._asked = self._new_ids(most + 1)  # what BLMOVE has put aside comes besides
        keys = [names.workers_key(), self._claims, self._inbox, *self.lists]
        return script("claim").command(keys, [self._member, self._asked, most])

    def wait_command(self, seconds: float) -> tuple[Any, ...]:
        """The command that waits for a message of the default priority and puts it aside for the next claim."""
        return ("BLMOVE", self.lists[0], self._inbox, "RIGHT", "LEFT", seconds)

    def claimed(self, reply: Any) -> list[Claim]:
        """The claims that a reply to `claim_command` brings.

        Raises:
            LeaseLostError: The worker may not claim any more.
        """
        assert self._asked is not None, "nothing was asked for"
        first, self._asked = self._asked, None
        return self._hold(self._answer(reply), first)

    def claim_overdue(self, first_ones: bool = True, most: int | None = None) -> tuple[list[Claim], float | None]:
        """Claim messages that have waited in the queue for longer than they may, and see what was passed on (`needs`).

        Args:
            first_ones: Whether to look at the first messages of the queue, besides going on through the whole of it.
                Of several workers one does that, until it has not for `FIRST_ONES_TURN` seconds.
            most: How many to claim; None for `MOST_OVERDUE`.

        Returns:
            Those that are among the first ones, or that somebody has come across on the way through the queue. And the
            seconds after which to go on, None for when there is nothing to look for.

        Raises:
            LeaseLostError: The worker may not claim any more.
            redis.RedisError: Redis does not answer, or refuses; what it claimed all the same `reclaim` finds.
        """
        most = MOST_OVERDUE if most is None else most
        first = self._new_ids(most)
        ends, through = names.ends_key(self.queue), names.overdue_key(self.queue)
        turn = names.turn_key(f"first-ones:{self.queue}")
        keys = [names.workers_key(), self._claims, ends, through, names.needs_key(self.queue), turn, *self.lists]
        bounds = [most, LOOKED_AT, LOOKED_AT_BYTES, OVERDUE_PAUSE, OVERDUE_REST]
        held_for = int(FIRST_ONES_TURN * 1000) if first_ones else 0
        args = [self._member, first, *bounds, held_for, names.need_key(self.queue, "")]
        wait, messages, needs = self._answer(script("overdue").run(self.client, keys, args))
        self.needs = sorted(need.decode() for need in needs)
        return self._hold(messages, first), None if wait < 0 else wait / 1000

    def take(self, need: str, most: int) -> list[Claim]:
        """Claim messages that were passed on: the first ones with one need.

        Args:
            need: The need; empty for messages of any need that are over.
            most: How many.

        Raises:
            LeaseLostError: The worker may not claim any more.
            redis.RedisError: Redis does not answer, or refuses; what it claimed all the same `reclaim` finds.
        """
        first = self._new_ids(most)
        keys = [
            names.workers_key(),
            self._claims,
            names.passed_on_key(self.queue),
            names.passed_on_ends_key(self.queue),
        ]
        args = [self._member, first, most, names.need_key(self.queue, ""), need]
        messages = self._answer(script("take").run(self.client, keys, args))
        return self._hold(messages, first, placed=bool(need))

    def first_in_queue(self, most: int) -> list[bytes]:
        """The first messages of the queue, of each priority, which stay there.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        pipe: Any = self.client.pipeline(transaction=False)
        for each in self.lists:
            pipe.lrange(each, -most, -1)
        return [message for found in pipe.execute() for message in reversed(found)]

    def take_beside(self, most: int) -> list[Claim]:
        """Claim calls for replicas other than the environment's own, of those among the queue's first messages.

        Args:
            most: How many.

        Raises:
            LeaseLostError: The worker may not claim any more.
            redis.RedisError: Redis does not answer, or refuses; what it claimed all the same `reclaim` finds.
        """
        first = self._new_ids(most)
        keys = [names.workers_key(), self._claims, *self.lists]
        args = [self._member, first, most, LOOKED_AT, LOOKED_AT_BYTES]
        messages = self._answer(script("beside").run(self.client, keys, args))
        return self._hold(messages, first, placed=True)

    def _new_ids(self, count: int) -> int:
        """The first of so many ids, which are never given again."""
        first, self._next = self._next, self._next + count
        return first

    def _hold(self, messages: Iterable[bytes], first: int, placed: bool = False) -> list[Claim]:
        taken = [Claim(number, message, placed=placed) for number, message in enumerate(messages, first)]
        self.held.update((claim.id, claim) for claim in taken)
        return taken

    def _answer(self, reply: Any) -> Any:
        """What a script has answered that a worker without a lease gets -1 from."""
        if reply == -1:
            raise self._lost()
        return reply

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(f"The lease of {self.worker} on {self.queue!r} is over.")

    def pass_on(self, tasks: Iterable[tuple[int, str, float | None]]) -> None:
        """Pass claims on to workers that have what their tasks need.

        Args:
            tasks: Each claim's id with its need, and when it is over, in seconds since the epoch, None for never.

        Raises:
            LeaseLostError: The worker may not do so any more.
            redis.RedisError: It is unknown what was passed on. None of it is this worker's any more: what still is
                claimed goes back to the queue with the next `reclaim`.
        """
        args: list[Any] = [self._member, names.need_key(self.queue, "")]
        for number, need, end in tasks:
            if (claim := self.held.pop(number, None)) is None:
                continue
            message, at = passed_on(claim.message)
            place = names.priority_index(priority_of(message), self.steps) * 1e13 + at
            entry = task_id_of(message) or f"{self._member} {number}"
            args += [number, need, entry, place, "" if end is None else math.ceil(end * 1000), message]
        keys = [
            names.workers_key(),
            self._claims,
            self._started,
            names.needs_key(self.queue),
            names.passed_on_key(self.queue),
            names.passed_on_ends_key(self.queue),
        ]
        if len(args) > 2:
            self._answer(script("pass_on").run(self.client, keys, args))

    def reclaim(self, everything: bool = False) -> int:
        """Hand back claims that this worker never heard of: the replies that told of them were lost.

        Args:
            everything: Also what an answer that is on its way may tell of.

        Returns:
            How many there were.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        known = self.held.keys() | set(self._acks) | {number for number, _ in self._burials}
        end = self._next if everything or self._asked is None else self._asked
        found: Any = self.client.hkeys(self._claims)
        lost = [number for number in map(int, found) if number < end and number not in known]
        if not lost:
            return 0
        messages: Any = self.client.hmget(self._claims, [str(number) for number in lost])
        back = [Claim(number, message) for number, message in zip(lost, messages, strict=True) if message]
        return self.hand_back(back)

    # -- Finishing ---------------------------------------------------------------------------------------------------

    def sent(self, number: int, task_id: str) -> None:
        """Note that a claim is about to run, for who finds this worker dead or revokes the task; `flush` writes it."""
        if number in self.held:
            self._sent.append((number, task_id))

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
            LeaseLostError: The worker may not finish anything any more; whoever hands its claims back decides.
        """
        acks, burials = self._acks, self._burials
        sent = [noted for noted in self._sent if noted[0] in self.held]
        if not (acks or burials or sent):
            self._sent.clear()
            return
        keys = [names.workers_key(), self._claims, self._started]
        commands = [script("settle").command(keys, [self._member, len(sent), *chain.from_iterable(sent), *acks])]
        keys = [*keys, names.dead_key(self.queue)]
        commands += [script("bury").command(keys, [self._member, *burial]) for burial in burials]
        outcomes: list[Any] = []
        try:
            pipe: Any = self.client.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)
            outcomes = pipe.execute()
        except NoScriptError:  # the server was restarted since it was given the scripts
            for name in ("settle", "bury"):
                self.client.script_load(script(name).text)
            return self.flush()
        del acks[:], burials[:]
        self._sent.clear()
        if not outcomes[0]:
            raise self._lost()

    def owns(self, number: int) -> bool:
        """Ask Redis whether a claim still is this worker's: neither finished with its result, nor handed on.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        pipe: Any = self.client.pipeline(transaction=False)
        pipe.hexists(self._claims, str(number))
        pipe.zscore(names.workers_key(), self._member)
        held, lease = pipe.execute()
        return bool(held) and lease is not None and lease > 0

    def hand_back(self, claims: Iterable[Claim]) -> int:
        """Put claims back at the head of the queue, in the order in which they came.

        Returns:
            How many went back; the others were no longer this worker's.
        """
        back = list(claims)
        if not back:
            return 0
        messages = [
            (claim.id, lost_once_more(claim.message, claim.lost_to) if claim.started else claim.message)
            for claim in back
        ]
        went = hand_back(self.client, self.queue, self.worker, messages, self.steps)
        for claim in back:  # only now: what Redis did not take is still this worker's
            self.held.pop(claim.id, None)
        return went

    def park(self, later: Sequence[tuple[Claim, float]]) -> list[Claim]:
        """Put claims aside until they are due.

        Args:
            later: Each claim with the time when it is due, in seconds since the epoch.

        Returns:
            Those whose time has come by the server's clock: they are claimed as before.

        Raises:
            LeaseLostError: The worker may not do so any more.
            redis.RedisError: It is unknown what was put aside. None of it is this worker's any more: what still is
                claimed goes back to the queue with the next `reclaim`.
        """
        claims = [claim for claim, _ in later]
        args: list[Any] = [self._member, self.queue]
        for claim, due in later:
            number = names.priority_index(priority_of(claim.message), self.steps) + 1
            # Without an id of its own it gets one that nobody asks for.
            entry = task_id_of(claim.message) or f"{self._member} {claim.id}"
            args += [claim.id, math.ceil(due * 1000), entry, number, claim.message]
        keys = [
            names.workers_key(),
            self._claims,
            self._started,
            names.later_key(self.queue),
            names.later_messages_key(self.queue),
            names.later_queues_key(),
        ]
        for claim in claims:
            self.held.pop(claim.id, None)
        answers = self._answer(script("park").run(self.client, keys, args))
        due_now = [claim for claim, answer in zip(claims, answers, strict=True) if answer == 2]
        self.held.update((claim.id, claim) for claim in due_now)
        return due_now

    def fence(self, number: int) -> tuple[str, str]:
        """What a result of a claim is stored under: the worker and the claim."""
        return self._member, str(number)

    def leave(self) -> None:
        """Give up the lease. The entry stays for the reapers, who look once more into the inbox."""
        reaper.leave(self.client, self._member)

    def reap(self) -> list[reaper.Report]:
        """Renew the lease, condemn the workers of all queues whose lease is over, and hand back what they have claimed.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        return reaper.reap(self.client, (self._member, self.lease))

    @property
    def lists(self) -> tuple[str, ...]:
        """The queue's priority lists, most urgent first."""
        return names.priority_lists(self.queue, self.steps)

    @property
    def _member(self) -> str:
        return names.worker_member(self.queue, self.worker)

    @property
    def _claims(self) -> str:
        return names.claims_key(self.queue, self.worker)

    @property
    def _started(self) -> str:
        return names.started_key(self.queue, self.worker)

    @property
    def _inbox(self) -> str:
        return names.inbox_key(self.queue, self.worker)
