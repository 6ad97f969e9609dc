"""A worker's replicas as autoscalers see and move them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from ..autoscaler.decide import Observed, Reason, ReplicaState, ReplicaView
from ..fleet.seats import Report
from ..supervisor.lifecycle import Drain, Revive, State, StopReason
from .groups import Group
from .job import Job
from .replicas import Replica, Replicas
from .run_scope import RunScope
from .serving import Serving

if TYPE_CHECKING:
    from .stopping import Stopping

_VIEWED = {
    State.STARTING: ReplicaState.STARTING,
    State.READY: ReplicaState.READY,
    State.DRAINING: ReplicaState.DRAINING,
    State.STOPPING: ReplicaState.DRAINING,
    State.GONE: ReplicaState.FAILED,
}


#: Why a replica drains that is not to take tasks again, however many come.
_FOR_GOOD = frozenset({StopReason.RECYCLED, StopReason.DEVICE_BROKEN})


class Owner(Protocol):
    """Who has the tasks."""

    stopping: Stopping

    def dispatch(self) -> None:
        """Give waiting tasks to replicas with free slots."""

    def hand_back(self, *jobs: Job) -> None:
        """Put tasks back into the queue."""


class Scaling:
    """The environment's own replicas for its autoscaler, and any group's for those beside it.

    Args:
        serving: What the worker serves.
        group: The environment's own replicas.
        replicas: All replicas of the worker.
        run_scope: Which of them belong to runs.
        owner: Who has the tasks.
    """

    def __init__(self, serving: Serving, group: Group, replicas: Replicas, run_scope: RunScope, owner: Owner) -> None:
        self._serving = serving
        self._group = group
        self._replicas = replicas
        self._run_scope = run_scope
        self._owner = owner
        #: Whether a look is due for a replica that may make way.
        self._looks_again = False

    def start_replicas(self, n: int, new: int | None = None) -> int:
        """Revive draining replicas of the environment, then start new ones, up to `n`. Returns how many were had."""
        if had := self.start_in(self._group, n, new):
            self._owner.dispatch()
        return had

    def start_in(self, group: Group, n: int, new: int | None = None) -> int:
        """The same for a group; `new` is how many may be new ones at most."""
        if self._owner.stopping.begun:
            return 0
        if group.by_run and new is None:  # what drains has its place until it is gone
            new = max(0, group.limits.highest - self._replicas.seated(group))
        had = 0
        for replica in self._revivable(group)[:n]:
            self._replicas.step(replica, Revive())
            had += 1
        most = n if new is None else min(n, had + new)
        while had < most and group.starts.allowed(time.monotonic(), self._replicas.count(State.STARTING, group=group)):
            if not self._replicas.start(group):
                break
            had += 1
        return had

    def _revivable(self, group: Group) -> list[Replica]:
        return [
            replica
            for replica in self._replicas.in_state(State.DRAINING, group=group)
            if not self._replicas.used_up(replica) and replica.child.reason not in _FOR_GOOD
            if not group.by_run or self._run_scope.revivable(replica)
        ]

    @property
    def live(self) -> int:
        """Replicas of the environment that take tasks, or will."""
        return self._replicas.live(self._group)

    @property
    def obstacle(self) -> str | None:
        """Why this host has no place for another replica now, None when nothing is in the way."""
        devices = self._group.devices
        return None if devices is None else devices.obstacle

    @property
    def start_failure(self) -> str | None:
        """Why the last replica failed to start, None when it did not."""
        return self._group.starts.error

    def report(self) -> Report:
        """What a worker tells its fleet, but for its target."""
        seen, exist, ending = self.observed(), self._replicas.seated(self._group), self._owner.stopping.begun
        return Report(
            exist=exist,
            live=0 if ending else self.live,
            revivable=0 if ending else len(self._revivable(self._group)),
            waiting=seen.ready,
            running=seen.running,
            suspended=seen.suspended,
            starting=seen.starting,
            room=0 if ending else self._room(exist),
            ready=self._replicas.count(State.READY, group=self._group),
            may_start=not ending and self._group.starts.allowed(time.monotonic(), starting=0),
        )

    def _room(self, exist: int) -> int:
        """Replicas that this host has room for besides those that exist."""
        room = max(0, self._serving.room - exist)
        devices = self._group.devices
        return room if devices is None else min(room, devices.free())

    def end_all(self) -> None:
        """Kill every replica of the environment: others may have their seats."""
        for replica in self._replicas.of(self._group):
            self._replicas.kill(replica, StopReason.LEASE_LOST)

    def give_back_waiting(self) -> None:
        """Put what waits for the environment's replicas back into the queue: other workers have the seats."""
        self._owner.hand_back(*self._group.waiting)

    def observed(self) -> Observed:
        """The demand for the environment's replicas that this worker has claimed, and the replicas."""
        return self.observed_in(self._group)

    def observed_in(self, group: Group) -> Observed:
        """The same for a group."""
        replicas = self._replicas.of(group)
        return Observed(
            ready=self._run_scope.ready(group) if group.by_run else len(group.waiting),
            running=sum(replica.running for replica in replicas),
            suspended=sum(len(replica.suspended) for replica in replicas),
            starting=self._replicas.count(State.STARTING, group=group),
            draining=self._replicas.count(State.DRAINING, group=group),
            live=self._replicas.live(group) if group.by_run else 0,
        )

    def views(self) -> list[ReplicaView]:
        """The environment's replicas as the autoscaler wants to see them."""
        return self.views_of(self._group)

    def views_of(self, group: Group) -> list[ReplicaView]:
        """The same for a group; not those that go anyway as soon as others have come."""
        return [
            ReplicaView(
                number=replica.number,
                state=_VIEWED[replica.child.state],
                running=replica.running,
                suspended=len(replica.suspended),
                idle_since=replica.child.idle_since,
                started_at=replica.child.started_at,
                bound=replica.run is not None,
            )
            for replica in self._replicas.of(group)
            if replica.retiring is None
        ]

    def drain(self, numbers: Iterable[int], reason: StopReason) -> None:
        """Let these replicas finish what they run and end."""
        for number in numbers:
            if (replica := self._replicas.get(number)) is not None:
                self._replicas.step(replica, Drain(reason))

    def make_way(self, group: Group, full: bool, tell: Callable[[Reason, str], None]) -> None:
        """Let replicas of a group go for runs that have none.

        Args:
            group: The replicas.
            full: Whether there may be no more of them.
            tell: Is told what was done.
        """
        if group.by_run and not self._owner.stopping.begun:
            for text in self._run_scope.make_way(group, full):
                tell(Reason.MADE_WAY, text)
            hub, seconds = self._replicas.hub, self._run_scope.moment(group)
            if hub is not None and seconds is not None and not self._looks_again:
                self._looks_again = True
                hub.call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._looks_again = False
        self._owner.dispatch()
