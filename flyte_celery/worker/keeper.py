"""Keeps a worker's claims in order: writes acknowledgements, renews the lease, hands back, reaps the dead."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import redis
from celery.utils.log import get_logger

from .. import names
from ..clock import always_on
from ..fleet.claims import MOST_OVERDUE, Claim, Claims, LeaseLostError
from ..fleet.connection import does_not_run
from ..fleet.dead import DeadLetters, dead_letter
from ..fleet.later import Later, move_all_due
from ..fleet.needs import Needs
from ..fleet.offers import offers
from ..fleet.orders import is_held_back
from ..fleet.reaper import Report
from ..fleet.seats import Place, Seats
from ..fleet.waits import Waits
from .probe import Probe

logger = get_logger("flyte_celery.worker")

T = TypeVar("T")

#: Seconds between two looks for tasks that have waited in the queue for longer than they may.
OVERDUE_INTERVAL = 1.0

#: Seconds before the end of its lease at which the replicas of a worker that is cut off are ended, at most, and as a
#: part of the lease: enough for all of them to be gone when others start replicas in their place.
MARGIN, MARGIN_SHARE = 1.0, 0.2


class Keeper:
    """The one owner of a worker's claims; connections come and go, it stays.

    Args:
        client: A Redis client of its own, with time-outs.
        queue: The environment's queue.
        steps: The queue's priority steps.
        hostname: The worker's node name.
        lease: Seconds.
    """

    def __init__(self, client: redis.Redis, queue: str, steps: tuple[int, ...], hostname: str, lease: float) -> None:
        self._client = client
        self.hostname = hostname
        self.claims = Claims(client, queue, steps, self._new_name(), lease)
        #: The worker's event loop, None before it runs.
        self.hub: Any = None
        #: Called on the event loop when the lease may be over; the pool sets it.
        self.on_lease_lost: Callable[[], Any] = lambda: None
        #: Hands claims to Celery; the transport sets it, None without a connection.
        self.deliver: Callable[[list[Claim]], None] | None = None
        #: Called when what was claimed together is with Celery; the pool sets it.
        self.on_delivered: Callable[[], None] = lambda: None
        #: Whether claims are being handed to Celery, and more of them follow.
        self.delivering = False
        #: How many claims are tasks waiting for their children, in whose place others may be claimed; the pool sets it.
        self.count_suspended: Callable[[], int] = lambda: 0
        #: Called with the moment (by `clock.always_on`) until when nobody else may have this worker's seats.
        self.on_proof: Callable[[float], Any] = lambda _: None
        #: Until when that is.
        self.safe_until = 0.0
        #: Whether that was over before it was proven again: others may have had the seats, and replicas were ended.
        self.forfeited = False
        #: Most claims that may be held; None for as many as the pool's capacity. The autoscaler sets it.
        self.most_claims: int | None = None
        #: Whether an operator, or a newer definition, keeps this worker from taking any task. The autoscaler sets it.
        self.rests = True
        #: Called once per look for overdue tasks with what tasks need that were passed on; the pool sets it.
        self.on_needs: Callable[[list[str]], Any] = lambda _: None
        #: The worker's seats, None where each worker has bounds of its own.
        self.seats: Seats | None = None
        self._held_back = False
        self._flush_asked = False
        #: Redis did not answer lately: what is noted waits for the next renewal, and nobody waits for a time-out.
        self._away = False
        self._probe = Probe(client)
        #: Claims that are to go back with the next renewal: Redis did not take them, or did not answer lately.
        self._owed: dict[int, None] = {}
        #: When it will look for overdue messages by itself, in monotonic seconds; never, where that was long ago.
        self._look_at = 0.0
        #: Dead letters of claims that are being given up.
        self._letters: dict[int, str] = {}

        #: What of the queue is to run later.
        self.later = Later(client, queue, steps)
        #: What of the queue was passed on.
        self.needs = Needs(client, queue)
        #: Which tasks wait for which results, where these are kept on the same server.
        self.waits = Waits(client)

    def _new_name(self) -> str:
        # Node names are given again after a restart; claims of an earlier life must not look like this one's.
        return f"{self.hostname}:{uuid.uuid4().hex[:12]}"

    def give_seats(self, place: Place) -> None:
        """Let the worker share its environment's bounds with all others."""
        claims = self.claims
        self.seats = Seats(self._client, claims.queue, claims.steps, lambda: self.claims.worker, claims.lease, place)

    def begin(self) -> None:
        """Take the lease; while Redis does not answer the next renewal finds none, and takes one."""
        sent_at = always_on()
        with contextlib.suppress(redis.RedisError):
            self.claims.take_lease()
            self.proven(sent_at)

    def lease_lost(self) -> None:
        """Somebody was told that the lease is over: see to it now, not at the next renewal."""
        if self.hub is not None:
            self.hub.call_soon(self.on_lease_lost)

    @property
    def away(self) -> bool:
        """Whether Redis did not answer lately; the next renewal finds out again."""
        return self._away

    def answers(self) -> bool:
        """Whether Redis does now."""
        return self._ask(lambda: bool(self._client.ping()), False)

    @property
    def in_doubt(self) -> bool:
        """Whether replicas may be gone and it does not know yet: it was away for so long that they were ended."""
        return (self.forfeited and self.seats is not None) or always_on() > self.safe_until > 0

    @property
    def is_safe(self) -> bool:
        """Whether nobody else may have this worker's seats now."""
        return always_on() < self.safe_until

    def proven(self, sent_at: float) -> None:
        """The lease was renewed by a command that was sent at this moment (by `clock.always_on`)."""
        lease, now = self.claims.lease, always_on()
        self.forfeited = self.forfeited or now > self.safe_until > 0
        until = sent_at + lease - min(MARGIN, lease * MARGIN_SHARE)
        if until - self.safe_until >= lease / 10 or self.safe_until < now:
            self.safe_until = until
            self.on_proof(until)

    def refused(self, exc: redis.RedisError) -> None:
        """Redis did not answer. Where its port, or socket, says that it does not run, nobody else has the seats."""
        self._away = True
        self._probe.ask()
        if does_not_run(self._client, exc):
            self.proven(always_on())

    def _ask(self, command: Callable[[], T], otherwise: T, trouble: str = "") -> T:
        """Ask Redis.

        Args:
            command: What to ask. It is left out while Redis is away: nobody waits for one time-out after the other.
            otherwise: What to return then, and when Redis refuses.
            trouble: What to log when it refuses, with the reason; nothing where it is empty.
        """
        if self._away:
            return otherwise
        try:
            return command()
        except LeaseLostError:
            self.lease_lost()
        except redis.RedisError as exc:
            if isinstance(exc, redis.ConnectionError | redis.TimeoutError):
                self.refused(exc)
            if trouble:
                logger.warning("%s: %s", trouble, exc)
        return otherwise

    def renew(self) -> bool:
        """Renew the lease. While Redis is away this takes no time: a thread finds out when it is back.

        Returns:
            False when it was lost: every claim is somebody else's now, and this worker has begun a new life.
        """
        sent_at = always_on()
        try:
            if self._away and not self._probe.answers():
                return True
            self.claims.renew_lease()
        except redis.RedisError as exc:
            if not self._away:
                logger.warning("The lease could not be renewed: %s", exc)
            self.refused(exc)
            return True
        except LeaseLostError as exc:
            logger.error("%s Its tasks are run by others; what still runs here is ended.", exc)
            self._away = False
            self.claims = self.claims.reborn(self._new_name())
            self._owed.clear()
            self._letters.clear()
            self.begin()
            return False
        self._away = False
        self.proven(sent_at)
        self.flush()
        owed, self._owed = self._owed, {}
        self.hand_back(owed)
        self._reclaim()
        return True

    def _reclaim(self, everything: bool = False) -> None:
        count = self._ask(lambda: self.claims.reclaim(everything), 0, "Claims cannot be looked through now")
        if count:
            logger.warning("%d claim(s) that a lost connection has not told of are back in the queue.", count)

    def dead_letters(self) -> int | None:
        """How many tasks of the environment were given up; None while Redis does not answer."""
        return self._ask(DeadLetters(self._client, self.claims.queue).count, None)

    def future_work(self) -> tuple[int, float | None] | None:
        """How many messages of the queue wait for their time, and when the next is due, in seconds since the epoch.

        None while Redis does not answer.
        """
        return self._ask(lambda: (self.later.count(), self.later.next_due()), None)

    def bring_forward(self, task_ids: Iterable[str]) -> None:
        """Let tasks be taken that wait for their time or a host: they were revoked, and their callers are to know."""
        wanted = list(task_ids)
        trouble = "Revoked tasks cannot be looked for, they end when they are due or taken"
        self._ask(lambda: self.later.bring_forward(wanted), 0, trouble)
        self._ask(lambda: self.needs.end(wanted), None, trouble)

    def order(self, order: Callable[[redis.Redis, str], object]) -> None:
        """Write down what an operator orders of the environment.

        Raises:
            redis.RedisError: It could not be.
        """
        order(self._client, self.claims.queue)

    def is_held_back(self) -> bool:
        """Whether an operator wants this worker to take nothing; what was last known while Redis does not answer."""
        host = self.hostname.partition("@")[2]
        self._held_back = self._ask(lambda: is_held_back(self._client, self.claims.queue, host), self._held_back)
        return self._held_back

    def reap(self) -> None:
        """Hand back the claims of workers that are dead, and what is due of future work, of any environment.

        Called once per second; while Redis is away it finds out instead whether it is back.
        """
        if self._away:
            self.on_lease_lost()
            return
        nobody: list[Report] = []
        for report in self._ask(self.claims.reap, nobody, "Dead workers cannot be looked for"):
            logger.warning("%s", report)
        self._ask(lambda: move_all_due(self._client), None, "Due work cannot be looked for")

    def park(self, early: Sequence[tuple[Claim, float]]) -> list[int]:
        """Put claims aside until they are due, each with the time when it is.

        Returns:
            Ids of those whose time has come; the others are this worker's no more.
        """
        trouble = f"{len(early)} claim(s) for later cannot be put aside, they go back to the queue"
        due = self._ask(lambda: [claim.id for claim in self.claims.park(early)], None, trouble)
        if due is None:
            self.hand_back(claim.id for claim, _ in early)
        return due or []

    def look_for_overdue(self) -> None:
        """Take what has waited in the queue for longer than it may, though there may be no replica for it.

        Called once per `OVERDUE_INTERVAL`; where that is not enough it goes on by itself.
        """
        if time.monotonic() >= self._look_at + OVERDUE_INTERVAL:
            self._look_for_overdue(first_ones=True)

    def _look_for_overdue(self, first_ones: bool) -> None:
        trouble = "What has waited too long cannot be looked for"
        if (deliver := self.deliver) is None:
            return
        found = self._ask(lambda: self.claims.claim_overdue(first_ones), None, trouble)
        if found is None:
            return
        taken, again = found
        if taken:
            deliver(taken)
        if self.claims.needs:
            self._take(lambda: self.claims.take("", MOST_OVERDUE))
        if again is not None and again < OVERDUE_INTERVAL and self.hub is not None:
            self._look_at = time.monotonic() + again
            self.hub.call_later(again, self._look_for_overdue, not again)
        self.on_needs(self.claims.needs)

    def pass_on(self, tasks: Sequence[tuple[int, str, float | None]]) -> None:
        """Pass claims on to workers that have what their tasks need, see `Claims.pass_on`."""
        trouble = f"{len(tasks)} claim(s) cannot be passed on, they go back to the queue"
        self._ask(lambda: self.claims.pass_on(tasks), None, trouble)

    def take(self, need: str, most: int) -> int:
        """Take tasks that were passed on, for which there is a place here. Returns how many were taken."""
        return self._take(lambda: self.claims.take(need, most))

    def take_beside(self, most: int) -> int:
        """Take calls for replicas other than the environment's own, see `Claims.take_beside`. Returns how many."""
        return self._take(lambda: self.claims.take_beside(most))

    def _take(self, take: Callable[[], list[Claim]]) -> int:
        if (deliver := self.deliver) is None:
            return 0
        none: list[Claim] = []
        if taken := self._ask(take, none, "Tasks for which there is a place here cannot be taken"):
            deliver(taken)
        return len(taken)

    def keeps_turn(self, what: str, seconds: float) -> bool:
        """Whether this worker is the one of its queue that does something now: who has done it goes on doing it.

        Args:
            what: Names it.
            seconds: How long the others wait for a sign of life.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        key, mine = names.turn_key(f"{what}:{self.claims.queue}"), self.claims.worker
        if self._client.set(key, mine, nx=True, px=int(seconds * 1000)):
            return True
        holder: Any = self._client.get(key)
        return holder == mine.encode() and bool(self._client.pexpire(key, int(seconds * 1000)))

    def passed_on(self) -> dict[str, int] | None:
        """How many tasks were passed on, by their need; None while Redis does not answer."""
        return self._ask(self.needs.counts, None)

    def offers(self) -> list[dict[str, Any]] | None:
        """What the hosts of live workers offer; None while Redis does not answer."""
        return self._ask(lambda: offers(self._client), None)

    def sent(self, number: int, task_id: str) -> None:
        """A replica gets a claim: should this worker die now, that start counts as lost."""
        self.claims.sent(number, task_id)
        self.flush_soon()

    def begun(self, number: int) -> None:
        """A claim has begun to run: should its replica die now, that start counts as lost."""
        if (claim := self.claims.held.get(number)) is not None:
            claim.started = True

    def forgive(self, number: int) -> None:
        """The start of a claim was lost by this worker's own doing, and does not count."""
        if (claim := self.claims.held.get(number)) is not None:
            claim.started = False

    def ack(self, number: int) -> None:
        """A claim is finished and its result stored; one that was given up is kept among the dead letters."""
        self.claims.ack(number, self._letters.pop(number, ""))
        self.flush_soon()

    def give_up(self, number: int, attempts: int, cause: str) -> None:
        """A claim fails because its starts were lost; its acknowledgement will bury it."""
        if (claim := self.claims.held.get(number)) is not None:
            self._letters[number] = dead_letter(claim.message, attempts, cause, self.hostname).encoded()

    def owns(self, number: int) -> bool:
        """Whether a claim still is this worker's, so that it may say how it ended; believed while Redis is silent."""
        if number not in self.claims.held:
            return False
        return self._ask(lambda: self.claims.owns(number), True, "The claim of a lost task cannot be looked up")

    def hand_back(self, numbers: Iterable[int], interrupted: bool = False) -> None:
        """Put claims back at the head of the queue; while Redis is away, with the next renewal.

        Args:
            numbers: Their ids.
            interrupted: Whether they were ended by this worker's own stop, which is no failed attempt.
        """
        held = self.claims.held
        back: list[Claim] = [held[number] for number in numbers if number in held and number not in self._owed]
        for claim in back:
            claim.started = claim.started and not interrupted
            self._letters.pop(claim.id, None)
        trouble = f"{len(back)} claim(s) cannot be handed back now, they will be"
        if back and self._ask(lambda: self.claims.hand_back(back), None, trouble) is None:
            self._owed.update((claim.id, None) for claim in back)

    @contextlib.contextmanager
    def delivery(self) -> Iterator[None]:
        """Around handing claims to Celery that have come together."""
        self.delivering = True
        try:
            yield
        finally:
            self.delivering = False
            self.on_delivered()

    def taken(self, number: int) -> Claim | None:
        """The pool has a claim now; it stays until it is acknowledged or handed back by name."""
        if (claim := self.claims.held.get(number)) is not None:
            claim.taken = True
        return claim

    def hand_back_now(self, numbers: Iterable[int | None] = ()) -> None:
        """Put back, all at once, what no replica has begun.

        Args:
            numbers: Claims of the pool. What the pool never had goes with them: what Celery has scheduled for later, or
                limited.
        """
        begun = {number for number, claim in self.claims.held.items() if claim.taken}.difference(numbers)
        self.hand_back([number for number in self.claims.held if number not in begun])

    def release(self) -> None:
        """The worker stops: hand everything back that is still held, and give up the lease.

        Redis gets one more chance to answer; without it the lease runs out, and others hand back what is held.
        """
        self._away = False
        self._owed.clear()
        self.flush()
        self.hand_back(list(self.claims.held), interrupted=True)
        if self._away:
            logger.warning("Redis does not answer: what is held goes back when the lease has run out.")
            return
        self._reclaim(everything=True)
        self._ask(self._leave, None, "The lease cannot be given up, it runs out by itself")

    def _leave(self) -> None:
        if self.seats is not None:
            self.seats.leave()
        self.claims.leave()

    def flush_soon(self) -> None:
        """Write what was noted at the end of this turn of the event loop."""
        if self._flush_asked or self._away:
            return
        # Not kombu's `get_event_loop`: after a lost connection it knows none, though the same one goes on.
        if self.hub is None:
            self.flush()
            return
        self._flush_asked = True
        self.hub.call_soon(self.flush)

    def flush(self) -> None:
        """Write what was noted now; while Redis does not answer it stays noted."""
        self._flush_asked = False
        if self._away:
            return
        try:
            self.claims.flush()
        except LeaseLostError:
            self.lease_lost()
        except redis.RedisError as exc:
            self.refused(exc)
            logger.warning("Acknowledgements wait for Redis: %s", exc)
