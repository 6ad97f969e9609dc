"""The replicas of one worker: performs what `supervisor.lifecycle` decides, on the worker's event loop."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from celery.utils.log import get_logger

from ..gpu.leases import Lease
from ..names import REPLICA_VARIABLE
from ..replica import wire
from ..supervisor.lifecycle import (
    Child,
    CountFailure,
    Drain,
    Event,
    Exited,
    Forget,
    HandBack,
    Kill,
    Load,
    Ready,
    StartupFailed,
    State,
    Stop,
    StopReason,
    describe_exit,
    step,
)
from ..supervisor.processes import (
    Broke,
    Ended,
    Enforces,
    Forked,
    Launcher,
    LauncherEnded,
    Preloaded,
    PreloadFailed,
    Start,
    Used,
    kill,
)
from ..supervisor.watchdog import Breach, Usage
from ..supervisor.wire import Line
from .breaches import stop_reason
from .groups import Group, devices_of
from .job import Job
from .outbox import Outbox
from .recycling import Life
from .serving import Serving

logger = get_logger("flyte_celery.worker")

#: Seconds after which a replica that is to be replaced goes when nobody has asked for another one.
REPLACEMENT_PATIENCE = 3.0


class Owner(Protocol):
    """Whom the replicas report to: the pool."""

    @property
    def groups(self) -> list[Group]:
        """All kinds of replicas that there are."""
        ...

    def accepted(self, replica: Replica, number: int, at: float) -> None:
        """A task has begun."""

    def done(self, replica: Replica, number: int, outcome: tuple[Any, ...]) -> None:
        """A task has ended."""

    def settled(self) -> None:
        """Tasks have ended, and all is read that their replica had to say."""

    def lost(self, replica: Replica, cause: str) -> None:
        """A replica has ended with tasks."""

    def slots_changed(self) -> None:
        """A task gives its slot away while it waits for its children, or asks for one."""

    def starts_changed(self) -> None:
        """A replica has become ready, or failed to."""

    def used(self, replica: Replica) -> None:
        """What a replica uses has changed."""


@dataclass(slots=True, eq=False)
class Replica:
    """One replica as the worker holds it."""

    child: Child
    line: Line
    group: Group
    #: When it is to be replaced.
    life: Life
    pid: int = 0
    #: When its process began (monotonic seconds); None before.
    began_at: float | None = None
    #: Its devices, None when it needs none.
    lease: Lease | None = None
    #: Tasks that it owns, sent or running.
    jobs: dict[int, Job] = field(default_factory=dict)
    #: Tasks that it has finished.
    served: int = 0
    #: It must end as soon as its process id is known.
    doomed: bool = False
    #: Of these, those that wait for their children and hold no slot.
    suspended: set[int] = field(default_factory=set)
    #: Of the suspended ones, those that ask for a slot, first come first.
    resuming: deque[int] = field(default_factory=deque)
    #: What it uses, as last told by the launcher.
    usage: Usage = field(default_factory=Usage)
    #: What it was killed for using.
    breach: Breach | None = None
    #: Since when (monotonic seconds) it is to end as soon as another one has taken its place; None: it is not.
    retiring: float | None = None
    #: The run that it belongs to, and since when (monotonic seconds); None: any, or none yet. See `runs`.
    run: str | None = None
    bound_at: float = 0.0

    @property
    def running(self) -> int:
        """Tasks that hold a slot."""
        return len(self.jobs) - len(self.suspended)

    @property
    def alone(self) -> bool:
        """Whether it runs a task that may share it with no other."""
        return self.running == 1 and any(job.alone for number, job in self.jobs.items() if number not in self.suspended)

    @property
    def resumes_alone(self) -> bool:
        """Whether the first task that asks for a slot again may share the replica with no other."""
        job = self.jobs.get(self.resuming[0]) if self.resuming else None
        return job is not None and job.alone

    @property
    def number(self) -> int:
        """Its number, unique in the worker's life, in order of age."""
        return self.child.number


class Replicas:
    """All replicas of one worker, in order of age."""

    def __init__(self, serving: Serving, owner: Owner) -> None:
        self._serving = serving
        self._owner = owner
        self._last_number = 0
        self._replicas: dict[int, Replica] = {}
        self._launcher: Launcher | None = None
        #: What the launcher was last told of, see `keep_until`.
        self._keep_until: float | None = None
        self._outbox = Outbox()
        #: The worker's event loop, None before it runs.
        self.hub: Any = None
        #: Seconds from asking for a replica to its readiness, the last ones; for status and figures.
        self.start_seconds: list[float] = []

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas.values())

    def get(self, number: int) -> Replica | None:
        """The replica with this number, while it exists."""
        return self._replicas.get(number)

    def __getitem__(self, number: int) -> Replica:
        return self._replicas[number]

    def of(self, group: Group) -> list[Replica]:
        """The replicas of a group, oldest first."""
        return [replica for replica in self if replica.group is group]

    def in_state(self, *states: State, group: Group | None = None) -> list[Replica]:
        """Replicas in one of these states, oldest first, of one group or all."""
        return [
            replica for replica in self if replica.child.state in states and (group is None or replica.group is group)
        ]

    def count(self, *states: State, group: Group | None = None) -> int:
        """How many are in one of these states."""
        return len(self.in_state(*states, group=group))

    def live(self, group: Group | None = None) -> int:
        """Replicas that take tasks and go on doing so, or will.

        Not those that take no more and only wait for children, nor those that go when another one has come.
        """
        return sum(self.lasts(replica) for replica in self.in_state(State.STARTING, State.READY, group=group))

    def seated(self, group: Group) -> int:
        """Replicas of a group that need a seat each: all that exist, those that start or drain included.

        Not those in whose place others come, whose seats these take: replicas that are being replaced, and used up
        ones that only wait for children.
        """
        return sum(self.lasts(replica) for replica in self.of(group))

    def lasts(self, replica: Replica) -> bool:
        """Whether no other one comes in its place: it is not being replaced, nor used up with parents that wait."""
        return replica.retiring is None and not self._parked(replica)

    def _parked(self, replica: Replica) -> bool:
        return bool(replica.suspended) and not replica.running and self.used_up(replica)

    def resume(self) -> None:
        """Give slots back to tasks that have waited for their children, before any other task gets one."""
        for replica in self:
            while replica.resuming and self._has_slot(replica):
                number = replica.resuming.popleft()
                replica.suspended.discard(number)
                self.send(replica, (wire.GO, number))

    def _has_slot(self, replica: Replica) -> bool:
        if self._parked(replica) and not self._has_seat(replica.group):
            return False
        job = replica.jobs.get(replica.resuming[0])
        if job is None or job.terminated or job.exceeded is not None:
            return True
        if job.alone or replica.alone:
            return not replica.running
        return replica.running < replica.group.limits.concurrency

    def _has_seat(self, group: Group) -> bool:
        """Whether one may go on that does not count while it waits; others without a task end for that.

        Those that have tasks will be without: what its parents wait for has ended, and is not among these.
        """
        for other in self.in_state(State.STARTING, State.READY, group=group):
            if self.live(group) < group.limits.highest:
                break
            if not other.jobs and self.lasts(other):
                self.step(other, Drain(StopReason.SURPLUS))
        return self.live(group) < group.limits.highest

    def with_free_slot(self, group: Group, besides: Replica | None = None) -> Replica | None:
        """The oldest ready replica of a group that can take a task beside those that it has.

        Args:
            group: The group.
            besides: One that is kept free.
        """
        limit = group.limits.concurrency
        for replica in self:
            if replica.group is not group or replica.alone or replica.resumes_alone or replica is besides:
                continue
            if limit > replica.running + len(replica.resuming) and self.takes(replica):
                return replica
        return None

    def has_slot(self, replica: Replica, alone: bool = False) -> bool:
        """Whether a replica can take a task beside those that it has; one that must be `alone` only beside none."""
        if replica.alone or replica.resumes_alone or not self.takes(replica):
            return False
        taken = replica.running + len(replica.resuming)
        return not taken if alone else taken < replica.group.limits.concurrency

    def takes(self, replica: Replica) -> bool:
        """Whether it takes tasks at all."""
        return replica.child.state is State.READY and not replica.doomed and not self.used_up(replica)

    def used_up(self, replica: Replica) -> bool:
        """Whether it may take no more tasks in its life."""
        most = replica.group.max_tasks
        return most is not None and replica.served + len(replica.jobs) >= most

    # -- Processes ---------------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start the launcher."""
        secret = self._serving.plan.secrets.environ  # these travel in the plan
        inherited = {name: value for name, value in os.environ.items() if name not in secret}
        plan = self._serving.plan
        self._launcher = Launcher(plan, {**inherited, **self._serving.environ}, imports=plan.preload)
        if self._keep_until is not None:
            self._launcher.keep_until(self._keep_until)
        if self.hub is not None:
            self.hub.add_reader(self._launcher.line.fileno(), self._on_launcher)

    def start(self, group: Group) -> bool:
        """Ask for one more replica. Returns False when the host has no free device for it."""
        if self._launcher is None:
            self.launch()
        assert self._launcher is not None
        number = self._last_number + 1
        variables: dict[str, str | None] = {**group.environ, REPLICA_VARIABLE: str(number)}
        lease = None
        if group.devices is not None:
            if (lease := group.devices.take(number)) is None:
                return False
            variables |= lease.variables
        self._last_number = number
        start = Start(number, variables, group.confinement, group.fresh, group.plan)
        line = self._launcher.start(start, lease.files if lease is not None else ())
        now = time.monotonic()
        life = Life.begun(self._serving.recycling, group.max_tasks, now)
        replica = Replica(Child(number, now, self._serving.patience), line, group, life, lease=lease)
        self._replicas[number] = replica
        if lease is not None:
            lease.close()  # from now on the replica has it, and nobody else
            logger.info("%s: replica %d has %s", self._serving.name, number, ", ".join(lease.labels))
        if self.hub is not None:
            self.hub.add_reader(line.fileno(), self._on_readable, replica)
        return True

    def blame_device(self, replica: Replica, error: str) -> None:
        """A replica has failed: when its device is the reason, let it finish and give the device to no other."""
        if replica.group.devices is not None and replica.lease is not None:
            replica.group.devices.blame(replica.lease, error)

    def watch_devices(self) -> None:
        """Take what is broken out of use, and let the replicas that have it go."""
        for each in devices_of(self._owner.groups):
            each.watch()
        for replica in self.in_state(State.READY):
            devices, lease = replica.group.devices, replica.lease
            if devices is not None and lease is not None and devices.has_broken(lease):
                self.step(replica, Drain(StopReason.DEVICE_BROKEN))

    def watch(self, hub: Any) -> None:
        """Register every socket with the (new) event loop."""
        self.hub = hub
        self._outbox.watch(hub)
        if self._launcher is not None:
            hub.add_reader(self._launcher.line.fileno(), self._on_launcher)
        for replica in self:
            if not replica.line.closed:
                hub.add_reader(replica.line.fileno(), self._on_readable, replica)

    def send(self, replica: Replica, message: Any) -> None:
        """Tell a replica something now."""
        self._outbox.send(replica.line, message)

    def give(self, replica: Replica, job: Job) -> None:
        """Have a replica run a task, which it hears with everything else of this turn of the event loop."""
        job.replica = replica.number
        replica.jobs[job.number] = job
        self.loaded(replica)
        self._outbox.keep(replica.line, job.frame)

    def kill(self, replica: Replica, reason: StopReason) -> None:
        """End a replica's process now, whatever it does."""
        if replica.child.reason is None:
            replica.child.reason = reason
        replica.doomed = True
        if replica.pid:
            kill(replica.pid)

    def keep_until(self, moment: float) -> None:
        """Have every replica ended at a moment (by `clock.always_on`) unless this is called again, by the launcher."""
        self._keep_until = moment
        if self._launcher is not None:
            self._launcher.keep_until(moment)

    @property
    def launcher_pid(self) -> int | None:
        """Process id of the launcher, None where there is none."""
        return None if self._launcher is None else self._launcher.pid

    def drain_all(self) -> None:
        """The worker stops: let every replica finish what it runs, then run its shutdown hooks and end."""
        for replica in self.in_state(State.STARTING, State.READY):
            self.step(replica, Drain(StopReason.WORKER_STOPPING))

    def close(self, deadline: float) -> None:
        """Wait until `deadline` (monotonic seconds) for the ends of all replicas, then kill what is left."""
        while self.hub is not None and self._replicas and time.monotonic() < deadline:
            self.hub.call_later(0.1, lambda: None)
            self.hub.run_once()
        for replica in list(self):
            self._unwatch(replica.line)
        if self._launcher is not None:
            self._unwatch(self._launcher.line)
            self._launcher.close()
            self._launcher = None
        self._replicas.clear()

    def _unwatch(self, line: Line) -> None:
        if self.hub is not None and not line.closed:
            self.hub.remove(line.fileno())
        line.close()

    # -- Events ------------------------------------------------------------------------------------------------------

    def step(self, replica: Replica, event: Event) -> None:
        """Tell a replica's life what happened, and do what it says."""
        for action in step(replica.child, event, time.monotonic()):
            match action:
                case Stop():
                    self.send(replica, (wire.STOP,))
                case Kill():
                    self.kill(replica, replica.child.reason or StopReason.CRASHED)
                case HandBack(cause):
                    logger.warning("%s: %s with %d task(s)", self._serving.name, cause, len(replica.jobs))
                    self._owner.lost(replica, cause)
                case CountFailure(error):
                    self._count_failure(replica, error)
                case Forget():
                    self._forget(replica)

    def retire_if_due(self, replica: Replica) -> bool:
        """Have a replica replaced that has lived long enough; returns whether that is news.

        It goes when a younger one of its group is ready, or when its group needs no other one any more.
        """
        if replica.child.state is not State.READY:
            return False
        now = time.monotonic()
        if replica.retiring is not None:
            coming = self.count(State.STARTING, group=replica.group) or replica.group.starts.failures
            if not coming and now - replica.retiring > REPLACEMENT_PATIENCE:
                self.step(replica, Drain(StopReason.RECYCLED))
            return False
        why = replica.life.over(replica.served, replica.usage, now)
        if why is not None:
            logger.info("%s: replica %d is to be replaced: %s", self._serving.name, replica.number, why)
            replica.retiring = now
        return why is not None

    def release(self, replica: Replica, number: int) -> None:
        """A task has left a replica."""
        if replica.jobs.pop(number, None) is None:
            return
        self._forget_wait(replica, number)
        replica.served += 1
        if self.used_up(replica):
            self.step(replica, Drain(StopReason.USED_UP))
        elif replica.life.tasks is not None:
            self.retire_if_due(replica)
        self.loaded(replica)

    def loaded(self, replica: Replica) -> None:
        """Tell a replica's life of its tasks, when they are its first ones or were its last."""
        if bool(replica.jobs) is not bool(replica.child.tasks):
            self.step(replica, Load(len(replica.jobs)))

    def _forget_wait(self, replica: Replica, number: int) -> None:
        replica.suspended.discard(number)
        if number in replica.resuming:
            replica.resuming.remove(number)

    def _on_readable(self, replica: Replica) -> None:
        messages, closed = replica.line.receive()
        ended = False
        for message in messages:
            match message:
                case (wire.ACCEPTED, number, at):
                    self._owner.accepted(replica, number, at)
                case (wire.DONE, number, outcome):
                    self._owner.done(replica, number, outcome)
                    ended = True
                case (wire.SUSPENDED, number):
                    self._forget_wait(replica, number)
                    if number in replica.jobs:
                        replica.jobs[number].waited = True
                        replica.suspended.add(number)
                        self._owner.slots_changed()
                case (wire.RESUME, number):
                    if number in replica.suspended:
                        replica.resuming.append(number)
                        self._owner.slots_changed()
                case (wire.READY, seconds):
                    self._ready(replica, seconds)
                case (wire.START_FAILED, error):
                    self.blame_device(replica, error)
                    self.step(replica, StartupFailed(error))
        if ended:
            self._owner.settled()
        if closed:
            # How it ended comes from the launcher, which reaps it; until then it takes nothing.
            self._unwatch(replica.line)
            replica.doomed = True

    def _ready(self, replica: Replica, hooks: float) -> None:
        self.step(replica, Ready())
        took = time.monotonic() - replica.child.started_at
        self.start_seconds = [*self.start_seconds[-99:], took]
        logger.info(
            "%s: replica %d is ready after %.0f ms, start-up hooks %.0f ms (pid %d)",
            self._serving.name,
            replica.number,
            took * 1000,
            hooks * 1000,
            replica.pid,
        )
        replica.group.starts.succeeded()
        others = self.in_state(State.READY, group=replica.group)
        if (old := next((each for each in others if each.retiring is not None), None)) is not None:
            self.step(old, Drain(StopReason.RECYCLED))
        self._owner.starts_changed()

    def _on_launcher(self) -> None:
        assert self._launcher is not None
        for event in self._launcher.receive():
            match event:
                case Forked(number, pid):
                    if (replica := self._replicas.get(number)) is not None:
                        replica.pid, replica.began_at = pid, time.monotonic()
                        if replica.doomed:
                            kill(pid)
                case Ended(number, status, _peak):
                    if (replica := self._replicas.get(number)) is not None:
                        self._drain_line(replica)
                        self._blame(replica, status)
                        self.step(replica, Exited(status))
                case Broke(number, breach):
                    if (replica := self.get(number)) is not None:
                        self._broke(replica, breach)
                case Used(number, used):
                    if (replica := self.get(number)) is not None:
                        replica.usage = used
                        self._owner.used(replica)
                case Enforces(how):
                    logger.info("%s: limits of replicas are enforced %s", self._serving.name, how)
                case Preloaded(seconds):
                    logger.info("%s: application preloaded in %.0f ms", self._serving.name, seconds * 1000)
                case PreloadFailed(error):
                    logger.error("%s: replicas cannot import the application:\n%s", self._serving.name, error)
                    self._give_up(error.strip().splitlines()[-1])
                    for replica in self.in_state(State.STARTING):
                        self.step(replica, StartupFailed(error.strip().splitlines()[-1]))
                case LauncherEnded(status):
                    self._launcher_ended(status)

    def _blame(self, replica: Replica, status: int | None) -> None:
        """The launcher ends replicas whose worker was away for too long; neither they nor their tasks did anything."""
        keeper = self._serving.keeper
        if replica.child.reason is None and status == -signal.SIGKILL and keeper is not None and keeper.in_doubt:
            replica.child.reason = StopReason.LEASE_LOST

    def _broke(self, replica: Replica, breach: Breach) -> None:
        """The launcher is killing it, and what it came to send of its tasks has been sent."""
        replica.breach = breach
        replica.doomed = True
        if replica.child.reason is None:
            replica.child.reason = stop_reason(breach)

    def _drain_line(self, replica: Replica) -> None:
        """Read what a replica wrote before it ended: results that were stored must not be run again."""
        if not replica.line.closed:
            self._on_readable(replica)

    def _give_up(self, error: str) -> None:
        # Starting again would fail the same way, so this counts as all the attempts at once.
        for starts in {id(group.starts): group.starts for group in self._owner.groups}.values():
            while not starts.failed:
                starts.failed_once(error, time.monotonic())

    def _launcher_ended(self, status: int | None) -> None:
        if self._launcher is not None:
            self._unwatch(self._launcher.line)
            self._launcher = None
        if self.live():
            logger.warning("%s: the launcher %s", self._serving.name, describe_exit(status))
        for replica in list(self):
            if replica.pid:
                kill(replica.pid)
            self._drain_line(replica)
            self.step(replica, Exited(None))
        self._owner.starts_changed()

    def _count_failure(self, replica: Replica, error: str) -> None:
        starts = replica.group.starts
        starts.failed_once(error, time.monotonic(), replica.child.started_at)
        logger.error(
            "%s: replica %d did not start (%d in a row): %s",
            self._serving.name,
            replica.number,
            starts.failures,
            error,
        )

    def _forget(self, replica: Replica) -> None:
        self._replicas.pop(replica.number, None)
        self._unwatch(replica.line)
        reason = replica.child.reason
        level = logger.warning if reason is StopReason.CRASHED else logger.info
        level("%s: replica %d has ended (%s), served %d", self._serving.name, replica.number, reason, replica.served)
        self._owner.starts_changed()
