"""Performs what `decide` decides: looks at the pool and its queue, asks for replicas, drains surplus ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from ..clock import Clock
from ..supervisor.lifecycle import StopReason
from .decide import Decision, Limits, Memory, Observed, Reason, ReplicaView, decide, explain, victims

#: Decisions that changed something and are kept for `env explain`.
KEPT_DECISIONS = 50


class Pool(Protocol):
    """What the driver moves."""

    def views(self) -> list[ReplicaView]:
        """The replicas as `victims` wants to see them."""
        ...

    def start_replicas(self, n: int) -> int:
        """Add up to `n` replicas and say how many came."""
        ...

    def drain(self, numbers: Iterable[int], reason: StopReason) -> None:
        """Let these replicas finish and end."""

    @property
    def live(self) -> int:
        """Replicas that take tasks, or will."""
        ...

    @property
    def obstacle(self) -> str | None:
        """Why the host has no place for another replica now."""
        ...


@dataclass(frozen=True, slots=True)
class Explained:
    """One decision with its moment and its reason in words."""

    at: float
    """Wall-clock seconds."""

    target: int
    reason: Reason
    text: str


class Autoscaler:
    """Keeps one worker's replicas where the policy wants them.

    Args:
        pool: What it moves.
        limits: The policy's bounds; `update` changes them.
        look: What can be seen now, None when the queue cannot be read.
        clock: Where the time comes from.
        decided: Called with each decision that changes the target.
    """

    def __init__(
        self,
        pool: Pool,
        limits: Limits,
        look: Callable[[], Observed | None],
        clock: Clock,
        decided: Callable[[Explained], None] = lambda _: None,
    ) -> None:
        self._pool = pool
        self._look = look
        self._clock = clock
        self._decided = decided
        self.limits = limits
        self._memory = Memory.fresh(clock.monotonic())
        self.target = 0
        #: What was in the way of another replica at the last look.
        self._obstacle: str | None = None
        self.last: Explained | None = None
        self.history: deque[Explained] = deque(maxlen=KEPT_DECISIONS)

    def consider(self) -> Decision:
        """Look, decide, perform. Call it once per interval, and whenever work has arrived that finds no slot."""
        seen = self._look()
        decision = decide(self.limits, seen, self._memory, self._clock.monotonic(), self.target)
        self._memory = decision.memory
        explained = Explained(
            self._clock.time(), decision.target, decision.reason, explain(decision, seen, self.limits)
        )
        self.last = explained
        if decision.target != self.target:
            self.target = decision.target
            self.history.append(explained)
            self._decided(explained)
        self._perform(decision)
        self._tell_obstacle(decision.target - self._pool.live, explained)
        return decision

    def tell(self, reason: Reason, text: str) -> None:
        """Write down what was done besides deciding; of several in a row for one reason the last is kept."""
        if self.history and self.history[-1].reason is reason:
            self.history.pop()
        told = Explained(self._clock.time(), self.target, reason, text)
        self.history.append(told)
        self._decided(told)

    def _tell_obstacle(self, missing: int, explained: Explained) -> None:
        """Say why there are fewer replicas than decided, once for each reason."""
        obstacle = self._pool.obstacle if missing > 0 else None
        if obstacle is None:
            self._obstacle = None
            return
        text = f"{explained.text} Waits for {missing} of them: {obstacle}."
        self.last = blocked = replace(explained, reason=Reason.BLOCKED, text=text)
        if obstacle != self._obstacle:
            self._obstacle = obstacle
            self.history.append(blocked)
            self._decided(blocked)

    def _perform(self, decision: Decision) -> None:
        surplus = self._pool.live - decision.target
        if surplus < 0:
            self._pool.start_replicas(-surplus)
        elif surplus > 0:
            reason = StopReason.IDLE if decision.reason in (Reason.IDLE, Reason.ASLEEP) else StopReason.SURPLUS
            self._pool.drain([view.number for view in victims(self._pool.views(), surplus)], reason)

    # -- Celery's autoscaler interface, for `celery control autoscale` and Flower's buttons ---------------------------

    def update(self, max: int | None = None, min: int | None = None) -> tuple[int, int]:
        """Set new bounds.

        Raises:
            ValueError: The bounds are no bounds.
        """
        self.limits = bounded(self.limits, max, min)
        self.consider()
        return self.limits.highest, self.limits.lowest

    def info(self) -> dict[str, object]:
        """What `celery inspect stats` shows."""
        return {
            "max": self.limits.highest,
            "min": self.limits.lowest,
            "current": self._pool.live,
            "target": self.target,
            "reason": self.last.text if self.last else None,
        }


def bounded(limits: Limits, max: int | None, min: int | None) -> Limits:
    """Limits with new bounds; a new maximum below the minimum takes it along.

    Raises:
        ValueError: The bounds are no bounds.
    """
    highest = limits.highest if max is None else int(max)
    lowest = limits.lowest if min is None else int(min)
    if max is not None and min is None and lowest > highest:
        lowest = highest
    return replace(limits, lowest=lowest, highest=highest)
