"""How many replicas an environment should have: a pure function of what is seen, what is remembered and the time.

```
demand = ready + running                      a suspended task asks for no slot, yet keeps the environment awake
wanted = ceil(demand / concurrency) + buffer  within [lowest, highest]

up      to `wanted`, at once, also from zero
down    to the largest `wanted` of the last `scaledown_ttl` seconds, no further
zero    everything, `lowest` included, after `idle_ttl` seconds without ready, running or suspended work
hold    whatever is there, when nothing could be seen
```
Nothing here reads a clock, a queue or a process: a driver looks every second, calls `decide`, performs the
difference, and hands `Decision.memory` and `Decision.target` back at its next look. `victims` says which replicas go.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from .window import Peaks, largest, push


@dataclass(frozen=True, slots=True)
class Limits:
    """What the policy of an environment allows; an ephemeral environment has `lowest=0` and `scaledown_ttl=0`.

    Raises:
        ValueError: If a bound or a time makes no sense.
    """

    lowest: int
    """Replicas kept while the environment is live; equal to `highest` for a fixed policy."""

    highest: int
    """Most replicas that may exist. 0 is accepted: nothing ever runs."""

    concurrency: int
    """Tasks that one replica runs at once."""

    scaledown_ttl: float
    """Seconds for which a replica must have been surplus before it goes. 0: at once."""

    idle_ttl: float
    """Seconds without work after which the whole environment rests at zero."""

    buffer: int = 0
    """Replicas kept ready beyond those that the demand needs, until the environment rests."""

    by_run: bool = False
    """Whether a replica belongs to one run and goes with it. What was wanted before keeps replicas then, but starts
    none in the place of those that are gone."""

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= self.highest:
            raise ValueError(
                f"Limits(lowest={self.lowest}, highest={self.highest}) are no bounds: "
                "give whole numbers with 0 <= lowest <= highest."
            )
        if self.concurrency < 1:
            raise ValueError(f"Limits(concurrency={self.concurrency}) runs nothing: give at least 1.")
        for name, seconds in (("scaledown_ttl", self.scaledown_ttl), ("idle_ttl", self.idle_ttl)):
            if not seconds >= 0:
                raise ValueError(f"Limits({name}={seconds}) is not a time: give seconds, 0 or more.")

    def clamp(self, replicas: int) -> int:
        """The nearest allowed number of replicas of a live environment."""
        return min(self.highest, max(self.lowest, replicas))

    def needed(self, seen: Observed) -> int:
        """Replicas that would give every ready or running task a slot, and the buffer, whatever the bounds say."""
        return -(-seen.demand // self.concurrency) + self.buffer


@dataclass(frozen=True, slots=True)
class Observed:
    """What one look at an environment found."""

    ready: int = 0
    """Tasks in the queue that no replica has, over all priorities."""

    running: int = 0
    """Tasks that hold a slot."""

    suspended: int = 0
    """Tasks that wait for their children and hold no slot."""

    starting: int = 0
    """Replicas that were asked for and take no task yet. They count as supply; here they only inform humans."""

    draining: int = 0
    """Replicas that finish what they run and take no more. They are not part of any target."""

    live: int = 0
    """Replicas that take tasks, or will; looked at for those that belong to runs alone."""

    @property
    def demand(self) -> int:
        """Slots that are asked for."""
        return self.ready + self.running

    @property
    def idle(self) -> bool:
        """Whether nothing at all is going on."""
        return not (self.ready or self.running or self.suspended)


class Reason(enum.StrEnum):
    """Why a decision is what it is."""

    #: Nothing could be seen (Redis is away): hold, never scale on ignorance.
    NO_DATA = "no-data"
    #: What exists is right, or surplus for less than `scaledown_ttl`.
    STEADY = "steady"
    #: Up: more tasks are ready or running than the replicas have slots.
    DEMAND = "demand"
    #: Into the policy's bounds: the minimum at start, or bounds that have changed since.
    BOUNDS = "bounds"
    #: Up: an operator wants replicas ahead of the work.
    PREWARMED = "prewarmed"
    #: Down: the surplus is older than `scaledown_ttl`.
    DRAINING = "draining"
    #: Down to zero: no ready, running or suspended work for `idle_ttl`.
    IDLE = "idle"
    #: At zero, with nothing to do.
    ASLEEP = "asleep"
    #: Up, but the host has no place for another replica: it is asked for again and again.
    BLOCKED = "blocked"
    #: The policy allows no replica at all (`highest` is 0).
    CLOSED = "closed"
    #: An operator wants none here: the environment, or this host, is drained.
    DRAINED = "drained"
    #: Workers with a newer definition of the environment have taken over.
    SUPERSEDED = "superseded"
    #: This worker's definition of the environment is the newest, and takes over when a replica of it has been ready.
    PROVING = "proving"
    #: Down: the others went with their runs.
    RUN_OVER = "run-over"
    #: One replica in place of another: that of a run that has its turn, see `worker.runs`. The target stays.
    MADE_WAY = "made-way"


@dataclass(frozen=True, slots=True)
class Memory:
    """What a decision needs to know of earlier looks. At most `highest + 2` small entries."""

    busy_at: float
    """When work was last seen, in monotonic seconds."""

    peaks: Peaks = ()
    """How many replicas were wanted during the last `scaledown_ttl` seconds."""

    @classmethod
    def fresh(cls, now: float) -> Memory:
        """The memory of a worker that starts, as if work had been seen just now.

        So the minimum comes up at start and is let go after `idle_ttl`, and replicas that exist already (the fleet's)
        are kept for `scaledown_ttl` before they count as surplus.
        """
        return cls(busy_at=now)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer of `decide`."""

    target: int
    """Replicas that should exist, those that start included and those that drain not."""

    reason: Reason
    """Why; `explain` makes a sentence of it."""

    memory: Memory
    """Hand it back at the next look."""


def decide(limits: Limits, seen: Observed | None, memory: Memory, now: float, target: int) -> Decision:
    """Say how many replicas an environment should have.

    Args:
        limits: What the policy allows.
        seen: What this look found, None when it could not find out.
        memory: `Memory.fresh(now)` at first, then that of the last decision.
        now: Monotonic seconds, not smaller than at earlier looks.
        target: The last decision's target; at first the replicas that exist.

    Returns:
        The new target, its reason and what to remember.
    """
    if seen is None:  # counts as a moment that needed what is there: surplus must have been *seen* for scaledown_ttl
        peaks = push(memory.peaks, now, target, limits.scaledown_ttl)
        return Decision(target, Reason.NO_DATA, Memory(memory.busy_at, peaks))
    busy_at = memory.busy_at if seen.idle else now
    if limits.highest == 0:
        return Decision(0, Reason.CLOSED, Memory(busy_at))
    if seen.idle and now - busy_at >= limits.idle_ttl:
        # Peaks are forgotten: who wakes up with one task must not get the replicas of yesterday's burst.
        return Decision(0, Reason.IDLE if target else Reason.ASLEEP, Memory(busy_at))
    found = memory.peaks or ((now, target),)
    peaks = push(found, now, limits.clamp(limits.needed(seen)), limits.scaledown_ttl)
    kept = goal = limits.clamp(largest(peaks))
    if limits.by_run:
        goal = limits.clamp(max(limits.needed(seen), min(kept, seen.live)))
    return Decision(goal, _reason(limits, seen, target, goal, kept), Memory(busy_at, peaks))


def _reason(limits: Limits, seen: Observed, target: int, goal: int, kept: int) -> Reason:
    if goal == target:
        return Reason.STEADY if target else Reason.ASLEEP
    if goal > target:
        return Reason.DEMAND if goal > limits.lowest or seen.demand else Reason.BOUNDS
    if target > limits.highest:
        return Reason.BOUNDS
    return Reason.RUN_OVER if goal < kept else Reason.DRAINING


def explain(decision: Decision, seen: Observed | None, limits: Limits) -> str:
    """Put a decision into one sentence for humans.

    Args:
        decision: What `decide` returned.
        seen: What it was given.
        limits: What it was given.
    """
    if seen is None:
        return f"Holds {_replicas(decision.target)}: the queue could not be read, and ignorance decides nothing."
    work = f"{seen.ready} ready, {seen.running} running and {seen.suspended} suspended tasks"
    needed = limits.needed(seen)
    rounded = ", rounded up for each run," if limits.by_run else ""
    need = f"{work}{rounded} need {_replicas(needed)} of {limits.concurrency}"
    if limits.buffer:
        need += f", {limits.buffer} of them as a buffer"
    if needed > limits.highest:
        need += f", and the policy allows {limits.highest}"
    match decision.reason:
        case Reason.STEADY if decision.target > limits.clamp(needed):
            recent = f"but more were wanted in the last {limits.scaledown_ttl:g} s"
            why = f"Keeps {_replicas(decision.target)}: {need}, {recent}"
        case Reason.STEADY:
            why = f"Keeps {_replicas(decision.target)}: {need}"
            if needed < limits.lowest:
                why += f", and the policy keeps {limits.lowest}"
        case Reason.DEMAND:
            why = f"Goes up to {_replicas(decision.target)}: {need}"
        case Reason.PREWARMED:
            why = f"Goes up to {_replicas(decision.target)}: an operator wants them ahead of the work"
        case Reason.BOUNDS:
            why = f"Goes to {_replicas(decision.target)}: the policy asks for {limits.lowest} to {limits.highest}"
        case Reason.DRAINING:
            why = f"Goes down to {_replicas(decision.target)}: more were not wanted for {limits.scaledown_ttl:g} s"
        case Reason.RUN_OVER:
            why = f"Goes down to {_replicas(decision.target)}: the others went with their runs"
        case Reason.IDLE:
            why = f"Lets every replica go: no ready, running or suspended task for {limits.idle_ttl:g} s"
        case Reason.CLOSED:
            why = f"Stays at zero with {work}: the policy allows no replica"
        case Reason.DRAINED:
            why = f"Lets every replica go with {work}: an operator has drained the environment or this host"
        case Reason.SUPERSEDED:
            why = f"Lets every replica go with {work}: workers with a newer definition have taken over"
        case Reason.PROVING:
            why = "Takes over when a replica with the new definition is ready, older workers serve until then"
        case _:
            why = f"Stays at zero: {work}"
    moving = [f"{n} {word}" for n, word in ((seen.starting, "starting"), (seen.draining, "draining")) if n]
    return f"{why} ({', '.join(moving)})." if moving else f"{why}."


def _replicas(number: int) -> str:
    return "1 replica" if number == 1 else f"{number} replicas"


class ReplicaState(enum.StrEnum):
    """Where a replica is, as far as choosing victims is concerned."""

    #: Its start-up failed; it will never take a task.
    FAILED = "failed"
    #: It runs its start-up and takes no task yet.
    STARTING = "starting"
    #: It takes tasks.
    READY = "ready"
    #: It was told to go: it finishes what it runs, or runs its shutdown.
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """What choosing victims has to know of one replica."""

    number: int
    """Its number in the worker."""

    state: ReplicaState

    running: int = 0
    """Tasks that hold one of its slots."""

    suspended: int = 0
    """Tasks in it that wait for their children."""

    idle_since: float = 0.0
    """Monotonic seconds of when it finished its last task, or became ready. Means nothing while it has tasks."""

    started_at: float = 0.0
    """Monotonic seconds of when it was asked for."""

    bound: bool = False
    """Whether it belongs to a run, so that no other run's task may have it."""


def victims(replicas: Iterable[ReplicaView], n: int) -> list[ReplicaView]:
    """Choose which replicas to drain. To drain is never to kill: a busy one finishes its tasks and takes no more.

    The cheapest loss first: failed and starting ones, newest first; then idle ones, longest idle first, those of runs
    before those that any run may have; and only when that is not enough busy ones, those with the fewest running tasks
    first, so that they are gone soon.

    Args:
        replicas: All replicas of the worker. Those that drain already are on their way out and never chosen.
        n: How many to choose.

    Returns:
        At most `n` replicas, in the order in which to drain them.
    """
    candidates = [replica for replica in replicas if replica.state is not ReplicaState.DRAINING]
    return sorted(candidates, key=_loss)[: max(0, n)]


def _loss(replica: ReplicaView) -> tuple[float, ...]:
    """Smaller is let go sooner; the number settles ties, newest first."""
    match replica.state:
        case ReplicaState.FAILED:
            return (0, -replica.started_at, -replica.number)
        case ReplicaState.STARTING:
            return (1, -replica.started_at, -replica.number)
    if not (replica.running or replica.suspended):
        return (2, not replica.bound, replica.idle_since, -replica.number)
    return (3, replica.running, replica.suspended, -replica.started_at, -replica.number)
