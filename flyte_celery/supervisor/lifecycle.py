"""The life of one replica, as a pure function: `step(child, event, now)` changes the child and says what to do.

```
            Ready                 Drain                    no task left
 STARTING ─────────▶ READY ─────────────────▶ DRAINING ─────────────────▶ STOPPING ──Exited──▶ GONE
    │                  ▲                          │                           │
    │ StartupFailed    └──────── Revive ──────────┘                           │ too slow
    └──────────────────────────────────────────────────────────────────────▶ Kill
```
Time is an argument; the drivers (`processes`, `worker.pool`) only perform the actions.
"""

from __future__ import annotations

import enum
import math
import signal
from dataclasses import dataclass, field


class State(enum.StrEnum):
    """Where a replica is in its life."""

    #: Its process was asked for, or runs its start-up hooks; it takes no task yet.
    STARTING = "starting"
    #: It takes tasks up to its concurrency.
    READY = "ready"
    #: It finishes what it runs and takes no more; until then it can be revived.
    DRAINING = "draining"
    #: It was told to end: shutdown hooks run, then the process exits.
    STOPPING = "stopping"
    #: Its process has ended.
    GONE = "gone"


class StopReason(enum.StrEnum):
    """Why a replica ended, or is about to."""

    #: The autoscaler no longer needs it.
    SURPLUS = "surplus"
    #: The whole environment was idle for `idle_ttl`.
    IDLE = "idle"
    #: It ran the one task that an ephemeral replica runs, or the most that it may run.
    USED_UP = "used-up"
    #: Another one has taken its place: it is old, or holds much memory or many open files.
    RECYCLED = "recycled"
    #: It used more memory than it may, or than there was.
    OUT_OF_MEMORY = "out-of-memory"
    #: Its tasks started more processes than they may.
    TOO_MANY_PROCESSES = "too-many-processes"
    #: The worker is stopping.
    WORKER_STOPPING = "worker-stopping"
    #: A start-up hook, or an import, raised.
    STARTUP_FAILED = "startup-failed"
    #: It did not become ready within the start-up timeout.
    STARTUP_TIMEOUT = "startup-timeout"
    #: It was told to stop and did not within the time for that.
    STOP_TIMEOUT = "stop-timeout"
    #: A task that it ran was terminated, or ran over its hard time limit.
    TERMINATED = "terminated"
    #: Its worker has lost its lease, so that its tasks are run by others.
    LEASE_LOST = "lease-lost"
    #: The run that it belonged to is over.
    RUN_OVER = "run-over"
    #: It belonged to a run, and another one has its turn.
    MADE_WAY = "made-way"
    #: A device that it has is broken.
    DEVICE_BROKEN = "device-broken"
    #: Its process ended without being asked.
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class Ready:
    """The replica finished its start-up."""


@dataclass(frozen=True, slots=True)
class StartupFailed:
    """The replica could not start; `error` says why, for humans."""

    error: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Nobody needs this replica any more."""

    reason: StopReason


@dataclass(frozen=True, slots=True)
class Revive:
    """A draining replica is needed again."""


@dataclass(frozen=True, slots=True)
class Load:
    """The number of tasks that the replica owns has changed."""

    tasks: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The process has ended; `status` is its exit code, or minus the signal that killed it, None if unknown."""

    status: int | None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Ready | StartupFailed | Drain | Revive | Load | Exited | Tick


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the replica to run its shutdown hooks and exit."""


@dataclass(frozen=True, slots=True)
class Kill:
    """End the process now."""


@dataclass(frozen=True, slots=True)
class HandBack:
    """The replica's tasks will not finish there: give each back to the queue, or fail it, with this cause."""

    cause: str


@dataclass(frozen=True, slots=True)
class CountFailure:
    """It never became ready, for this reason: count a failed start, before anybody starts the next one."""

    error: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The replica is gone: drop it."""


Action = Stop | Kill | HandBack | CountFailure | Forget


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a replica may take for what it is asked, in seconds."""

    startup: float
    stop: float


@dataclass(slots=True)
class Child:
    """What the worker knows of one replica."""

    number: int
    started_at: float
    patience: Patience
    state: State = State.STARTING
    ready_at: float | None = None
    #: When it last became idle; meaningless while it owns tasks.
    idle_since: float = 0.0
    tasks: int = 0
    reason: StopReason | None = None
    #: When patience ends in the present state.
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline = self.started_at + self.patience.startup


def step(child: Child, event: Event, now: float) -> list[Action]:
    """Apply one event to a child.

    Args:
        child: The replica; changed in place.
        event: What happened.
        now: Monotonic seconds.

    Returns:
        What the driver has to do, in order.
    """
    match event:
        case Ready() if child.state is State.STARTING:
            child.state, child.ready_at, child.idle_since = State.READY, now, now
        case StartupFailed(error) if child.state is State.STARTING:
            child.reason = StopReason.STARTUP_FAILED
            return [CountFailure(error), *_kill(child, now)]
        case Drain(reason):
            return _drain(child, reason, now)
        case Revive() if child.state is State.DRAINING:
            child.state, child.reason = State.READY, None
        case Load(tasks):
            return _load(child, tasks, now)
        case Exited(status):
            return _gone(child, status)
        case Tick() if now >= child.deadline and child.state in (State.STARTING, State.STOPPING):
            if child.state is State.STOPPING:
                child.reason = StopReason.STOP_TIMEOUT
                return _kill(child, now)
            child.reason = StopReason.STARTUP_TIMEOUT
            error = f"not ready within the start-up timeout of {child.patience.startup:g} s"
            return [CountFailure(error), *_kill(child, now)]
    return []


def _drain(child: Child, reason: StopReason, now: float) -> list[Action]:
    if child.state is State.STARTING:  # it has nothing to finish and nothing to shut down
        child.reason = reason
        return _kill(child, now)
    if child.state is not State.READY:
        return []
    child.state, child.reason = State.DRAINING, reason
    return _stop(child, now) if not child.tasks else []


def _load(child: Child, tasks: int, now: float) -> list[Action]:
    if child.tasks and not tasks:
        child.idle_since = now
    child.tasks = tasks
    if child.state is State.DRAINING and not tasks:
        return _stop(child, now)
    return []


def _stop(child: Child, now: float) -> list[Action]:
    child.state, child.deadline = State.STOPPING, now + child.patience.stop
    return [Stop()]


def _kill(child: Child, now: float) -> list[Action]:
    child.state, child.deadline = State.STOPPING, now + child.patience.stop
    return [Kill()]


def _gone(child: Child, status: int | None) -> list[Action]:
    if child.state is State.GONE:
        return []
    starting = child.state is State.STARTING
    child.state = State.GONE
    if child.reason is None:
        child.reason = StopReason.CRASHED
        cause = f"replica {child.number} {describe_exit(status)}"
    else:
        cause = f"replica {child.number} was ended ({child.reason})"
    actions: list[Action] = [HandBack(cause)] if child.tasks else []
    if starting and child.reason is not StopReason.LEASE_LOST:
        actions.append(CountFailure(f"{describe_exit(status)} during start-up"))
    return [*actions, Forget()]


def describe_exit(status: int | None) -> str:
    """An exit status in words, with what it usually means.

    Args:
        status: The exit code, minus the signal number, or None when nobody could tell.
    """
    if status is None:
        return "ended, nobody could tell how"
    if status >= 0:
        return f"exited with code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of memory?)" if -status == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


@dataclass(slots=True)
class Starts:
    """Whether new replicas may be started: backs off after failures, and gives up loudly.

    After `limit` failures in a row the environment is *failed*: its callers are told `error` at once instead of
    waiting. One attempt per back-off goes on; the first success clears everything.
    """

    limit: int
    base: float
    cap: float
    failures: int = 0
    not_before: float = 0.0
    failed_at: float = -math.inf
    error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the environment has failed to start often enough to say so."""
        return self.failures >= self.limit

    def allowed(self, now: float, starting: int) -> bool:
        """Whether one more replica may be started, while `starting` are on their way.

        After a failure replicas are tried one at a time, so that a broken start-up hook costs one process.
        """
        return now >= self.not_before and not (self.failures and starting)

    def succeeded(self) -> None:
        """A replica became ready."""
        self.failures, self.not_before, self.error = 0, 0.0, None

    def failed_once(self, error: str, now: float, began: float = math.inf) -> None:
        """A replica failed to become ready.

        Args:
            error: Why, for humans.
            now: Monotonic seconds.
            began: When it was asked for. Replicas that were on their way already when another one failed are the
                same attempt: a burst that starts eight of them is not eight failures in a row.
        """
        if began <= self.failed_at:
            return
        self.failed_at = now
        self.error = error
        self.failures += 1
        self.not_before = now + min(self.cap, self.base * 2 ** (self.failures - 1))
