"""The autoscaler of a worker that shares its environment's bounds with others: it looks at the fleet, and has seats.

Every worker decides for the whole fleet, with the same pure `decide` over the sums of all, and tells what it finds
right; the script behind `fleet.seats` takes the largest of these, and says which worker starts or drains how many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import redis

from ..clock import Clock, always_on
from ..fleet.claims import LeaseLostError
from ..fleet.seats import Report, Seats, View
from ..supervisor.lifecycle import StopReason
from .decide import Decision, Limits, Memory, Observed, Reason, decide, explain, victims
from .driver import Autoscaler, Explained, Pool, bounded
from .window import push

#: Looks in a row in which a worker that has changed its mind says so at once.
_MOST_LOOKS = 3

#: Seconds between two looks that a worker takes because its slots are full, or its tasks have no seat.
_HURRY = 0.1


class SharingPool(Pool, Protocol):
    """What the driver moves, and what the fleet is told of it."""

    def start_replicas(self, n: int, new: int | None = None) -> int:
        """Take draining replicas back, then start new ones: `n` in all, `new` of them new ones at most."""
        ...

    def report(self) -> Report:
        """What there is; its `target` is not the pool's to say."""
        ...

    def give_back_waiting(self) -> None:
        """Put what waits back into the queue, for other workers."""

    def end_all(self) -> None:
        """Kill every replica that has a seat."""

    @property
    def start_failure(self) -> str | None:
        """Why the last replica failed to start, None when it did not."""
        ...


class Lease(Protocol):
    """What the driver needs to know of the worker's lease."""

    forfeited: bool
    """Whether others may have had them since the last look."""

    @property
    def away(self) -> bool:
        """Whether Redis did not answer lately."""
        ...

    @property
    def is_safe(self) -> bool:
        """Whether nobody else may have this worker's seats now."""
        ...

    def proven(self, sent_at: float) -> None:
        """The lease was renewed by a command of this moment (by `clock.always_on`)."""

    def refused(self, exc: redis.RedisError) -> None:
        """Redis did not answer."""

    def lease_lost(self) -> None:
        """The lease is over."""


class SharedAutoscaler(Autoscaler):
    """Keeps one worker's part of its fleet where the policy wants the fleet.

    Args:
        pool: What it moves.
        limits: The policy's bounds, of the whole fleet.
        seats: The worker's seats.
        lease: The worker's lease.
        clock: Where the time comes from.
        decided: Called with each decision that changes the fleet's target.
        heard: Called after each look, which `view` then has.
    """

    _pool: SharingPool

    def __init__(
        self,
        pool: SharingPool,
        limits: Limits,
        seats: Seats,
        lease: Lease,
        clock: Clock,
        decided: Callable[[Explained], None] = lambda _: None,
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(pool, limits, lambda: None, clock, decided)
        self._policy = limits
        self._seats = seats
        self._lease = lease
        self._heard = heard
        #: What the last look found; None before the first, and while Redis is away.
        self.view: View | None = None
        #: Replicas that this worker is to have: its part of the target.
        self.share = 0
        #: Whether the last look found tasks here for which there is no seat, so that they went back.
        self.refused = False
        self._told = Report()
        #: Replicas that may exist here.
        self._allowed = 0
        self._seen: Observed | None = None
        self._looked_at = float("-inf")
        self._prewarmed: int | None = None
        #: Why a replica with a new definition has failed to start, as far as it was told.
        self._failure: str | None = None
        #: Replicas that this look finds ordered ahead of the work.
        self._ahead = 0

    def consider(self) -> Decision:
        """See to what has changed here; ask the fleet only when more is needed than it was last asked for."""
        own = self._pool.report()
        now = self._clock.monotonic()
        seen = Observed(own.waiting, own.running, own.suspended, own.starting, own.exist - own.live)
        decision = Decision(self.target, Reason.STEADY, self._memory)
        if not seen.idle and self._serves:
            decision = decide(self.limits, seen, self._memory, now, self.target)
            self._memory = decision.memory
        if self._asks(own, decision.target, now):
            return self.look(decision.target)
        if self.limits.by_run and not self._proves:
            # What went with its run since the last look is replaced only where work waits.
            self.share = min(self.share, max(own.live, -(-seen.demand // self.limits.concurrency)))
        self._move()
        return decision

    @property
    def _serves(self) -> bool:
        return self.view is not None and self.view.serves

    @property
    def _proves(self) -> bool:
        return self.view is not None and self.view.proves

    def _asks(self, own: Report, target: int, now: float) -> bool:
        view = self.view
        if self._lease.away:
            return False
        if view is None:
            return self._looked_at == float("-inf")
        if not view.serves:
            return view.proves and own.ready > self._told.ready  # it is to serve from now on
        if target > self._told.target:
            return True
        if own.waiting and not self.share and own.exist < self._told.exist:
            return True  # a seat has become free, which may be for what waits
        hurries = (own.waiting and not self.share) or (
            view.workers > 1
            and own.live > 0
            and own.running >= own.live * self.limits.concurrency
            and view.all_live < self.limits.highest
        )
        if self.limits.by_run and own.waiting + own.running > own.live * self.limits.concurrency:
            # Its numbers are whole replicas: some run has too few, though others' may have free slots.
            if own.exist < self._told.exist and own.live >= self.share:
                return True
            hurries = hurries or view.all_seats < self.limits.highest
        return bool(hurries) and now - self._looked_at >= _HURRY

    def look(self, target: int | None = None) -> Decision:
        """Tell the fleet, hear of it, decide and perform. Call it once per interval.

        Args:
            target: What is found right so far, where that is not the last decision's.
        """
        decision = Decision(self.target if target is None else target, Reason.STEADY, self._memory)
        self._ahead = 0
        for _ in range(_MOST_LOOKS):
            told = decision.target
            view = None if self._lease.away or self._forfeits() else self._ask(told)
            if view is None:
                self.view = None
                decision = self._decide(None)
                self._note(decision)
                break
            self.view = view
            decision = self._decide(view)
            self._note(decision)
            if decision.target == told or not view.serves:
                break
        if self.limits.by_run and self.view is not None and self.view.serves:
            # Others may not have noticed yet that replicas have gone with their runs, and want as many as before.
            missing = max(0, decision.target - _live_before(self.view))
            if self.view.given > missing:
                self.view = self._ask(decision.target, most=missing)
        self._move()
        if self.last is not None:
            self._tell_obstacle(_missing(decision, self.view), self.last)
        waiting = self._told.waiting if self.view is not None and not self.share else 0
        self.refused = bool(waiting) and (self._must_give_back(self.view))
        if self.refused:
            self._pool.give_back_waiting()
        self._heard()
        return decision

    def _must_give_back(self, view: View | None) -> bool:
        # Alone, a worker waits for its own replicas to be gone: it would only claim the same tasks again.
        return view is not None and (view.workers > 1 or not view.serves)

    def _forfeits(self) -> bool:
        """Whether replicas are left whose seats others may have; they are ended, and nothing is said until they are."""
        if self._lease.forfeited:
            self.share = self._allowed = 0
            self._pool.end_all()
            self._lease.forfeited = self._pool.report().exist > 0
        return self._lease.forfeited

    def _ask(self, target: int, most: int | None = None) -> View | None:
        own = replace(self._pool.report(), target=target)
        if most is not None:  # seats that this worker would take
            revivable = min(own.revivable, most)
            own = replace(own, room=min(own.room, most - revivable), revivable=revivable)
        self._looked_at, sent_at = self._clock.monotonic(), always_on()
        try:
            view = self._seats.report(own, self._policy.highest, self._policy.concurrency)
        except LeaseLostError:
            self.share = 0
            self._lease.lease_lost()
            return None
        except redis.RedisError as exc:
            self._lease.refused(exc)
            return None
        self._lease.proven(sent_at)
        self._told = own
        self.share = own.live + view.given - view.to_drain
        self._allowed = view.seats
        lowest = self._policy.lowest if view.lowest is None else view.lowest
        highest = self._policy.highest if view.highest is None else view.highest
        self.limits = replace(self._policy, lowest=min(lowest, highest), highest=highest)
        return view

    def _decide(self, view: View | None) -> Decision:
        now = self._clock.monotonic()
        self._seen = self._observed(view)
        if view is not None and not view.serves:
            if not view.drained and view.generation == view.trial:
                return Decision(1, Reason.PROVING, Memory(now))
            return Decision(0, Reason.DRAINED if view.drained else Reason.SUPERSEDED, Memory(now))
        prewarms = view is not None and view.prewarm and view.prewarm_id != self._prewarmed
        if view is not None and prewarms:
            self._prewarmed = view.prewarm_id
            peaks = push(self._memory.peaks, now, self.limits.clamp(view.prewarm), self.limits.scaledown_ttl)
            self._memory = Memory(now, peaks)
            self._ahead = peaks[-1][1]
            self._seen = self._observed(view)
        decision = decide(self.limits, self._seen, self._memory, now, self.target)
        self._memory = decision.memory
        return replace(decision, reason=Reason.PREWARMED) if prewarms and decision.target > self.target else decision

    def _observed(self, view: View | None) -> Observed | None:
        if view is None:
            return None
        return Observed(
            ready=view.all_waiting + (0 if view.paused else view.ready - view.beside),
            running=view.all_running,
            suspended=view.all_suspended,
            starting=view.all_starting,
            draining=view.all_seats - view.all_live - view.proving,
            live=max(self._ahead, _live_before(view)),
        )

    def _note(self, decision: Decision) -> None:
        self._memory = decision.memory
        text = explain(decision, self._seen, self.limits)
        proven = self.last is not None and self.last.reason is Reason.PROVING is not decision.reason
        news = proven or decision.target != self.target
        failure = self._pool.start_failure if decision.reason is Reason.PROVING else None
        if failure is not None:
            text = f"{text} The last attempt to start one failed: {failure.rstrip('.')}."
            news = news or failure != self._failure
        self._failure = failure
        explained = Explained(self._clock.time(), decision.target, decision.reason, text)
        self.last = explained
        if news:
            self.target = decision.target
            self.history.append(explained)
            self._decided(explained)

    def _move(self) -> None:
        live = self._pool.live
        if self._lease.forfeited:
            return  # the share is of a time before others may have had the seats; the next look sees to it
        if live < self.share and self._lease.is_safe:
            exist = self._pool.report().exist
            self._pool.start_replicas(self.share - live, max(0, self._allowed - exist))
        elif live > self.share:
            idle = self.last is not None and self.last.reason in (Reason.IDLE, Reason.ASLEEP)
            gone = [view.number for view in victims(self._pool.views(), live - self.share)]
            self._pool.drain(gone, StopReason.IDLE if idle else StopReason.SURPLUS)

    def update(self, max: int | None = None, min: int | None = None) -> tuple[int, int]:
        """Set new bounds, which this worker finds right for the whole fleet until it ends.

        Raises:
            ValueError: The bounds are no bounds.
        """
        self.limits = self._policy = bounded(self._policy, max, min)
        self.look()
        return self._policy.highest, self._policy.lowest


def _missing(decision: Decision, view: View | None) -> int:
    """Replicas that the fleet lacks, as far as it is for this worker to have them."""
    if view is None:
        return 0
    if view.serves:
        return decision.target - view.all_live
    return decision.target - view.proving if decision.reason is Reason.PROVING else 0


def _live_before(view: View) -> int:
    """Replicas that took tasks, or would, before the look that has found this gave and took some."""
    return view.all_live - view.given + view.to_drain
