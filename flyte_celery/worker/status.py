"""What an operator may see of an environment's worker: plain data, made fresh for each question."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from ..autoscaler.decide import Reason
from ..autoscaler.driver import Autoscaler
from ..autoscaler.shared import SharedAutoscaler
from ..fleet.needs import Unmet
from ..supervisor.lifecycle import State
from .groups import broken_devices
from .pool import ReplicaPool
from .serving import MOST_ROOM


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica."""

    number: int
    pid: int
    state: str
    #: Tasks that it owns now.
    running: int
    #: Tasks that it has finished.
    served: int
    #: Seconds since it was asked for.
    age: float
    #: Seconds since its last task ended, None while it has tasks or starts.
    idle: float | None
    #: Bytes of memory that it and its processes held lately.
    memory: int
    #: What it was made for, where that is not the environment: an override.
    beside: str | None
    #: The run that it belongs to, None for none.
    run: str | None
    #: Its devices, in words.
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker of an environment."""

    environment: str
    hostname: str
    minimum: int
    maximum: int
    #: Replicas that this host has room for, where what they ask of it bounds that.
    room: int | None
    concurrency: int
    replicas: tuple[ReplicaStatus, ...]
    #: Tasks that the worker has claimed and no replica has.
    waiting: int
    #: Tasks that replicas have.
    running: int
    #: Tasks that wait for their children and hold no slot.
    suspended: int
    #: Tasks in the queue that nobody has claimed; None when the broker did not say.
    ready: int | None
    #: Of those that wait, here or in the queue, the calls with overrides that want replicas of their own: for the
    #: environment's they are no demand. None where only what the worker has claimed is known.
    beside: int | None
    #: Tasks that were given up; None where nobody counts them.
    dead: int | None
    #: Tasks whose time has not come, in Redis; None where the broker keeps none, or did not say.
    later: int | None
    #: When the next of those is due, in seconds since the epoch.
    next_due: float | None
    #: Tasks of the queue that were passed on and wait for a host that has what they need.
    elsewhere: tuple[Unmet, ...]
    target: int
    reason: str | None
    decision: str | None
    #: Why the environment cannot start replicas, None when it can.
    failure: str | None
    #: Why the host has no place for another replica that is wanted, None when nothing is in the way.
    obstacle: str | None
    #: Devices of this host that no replica is given, with the reason.
    broken: dict[str, str]
    #: Seconds from asking for a replica to its readiness, the last ones.
    start_seconds: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-native form, as it travels in a control reply."""
        return asdict(self)


def status_of(pool: ReplicaPool, autoscaler: Autoscaler, hostname: str, ready: int | None) -> WorkerStatus:
    """Describe a worker as it is now."""
    now = time.monotonic()
    replicas = tuple(
        ReplicaStatus(
            number=replica.number,
            pid=replica.pid,
            state=str(replica.child.state),
            running=len(replica.jobs),
            served=replica.served,
            age=round(now - replica.child.started_at, 3),
            idle=round(now - replica.child.idle_since, 3)
            if replica.child.state is State.READY and not replica.jobs
            else None,
            memory=replica.usage.memory,
            beside=None if replica.group is pool.group else replica.group.name,
            run=replica.run,
            devices=() if replica.lease is None else tuple(replica.lease.labels),
        )
        for replica in pool.replicas
    )
    last = autoscaler.last
    keeper = pool.serving.keeper
    later, next_due = (None if keeper is None else keeper.future_work()) or (None, None)
    return WorkerStatus(
        environment=pool.serving.name,
        hostname=hostname,
        minimum=autoscaler.limits.lowest,
        maximum=autoscaler.limits.highest,
        room=pool.serving.room if pool.serving.room < MOST_ROOM else None,
        concurrency=autoscaler.limits.concurrency,
        replicas=replicas,
        waiting=pool.waiting,
        running=len(pool.jobs) - pool.waiting - pool.suspended,
        suspended=pool.suspended,
        ready=ready,
        beside=_beside(pool, autoscaler, ready),
        dead=None if keeper is None else keeper.dead_letters(),
        later=later,
        next_due=next_due,
        elsewhere=tuple(pool.elsewhere.unmet()),
        target=autoscaler.target,
        reason=str(last.reason) if last else None,
        decision=last.text if last else None,
        failure=pool.group.starts.error if pool.group.starts.failed else None,
        obstacle="; ".join(_obstacles(pool, blocked=last is not None and last.reason is Reason.BLOCKED)) or None,
        broken=broken_devices(pool.groups),
        start_seconds=tuple(round(seconds, 4) for seconds in pool.replicas.start_seconds),
    )


def _beside(pool: ReplicaPool, autoscaler: Autoscaler, ready: int | None) -> int | None:
    view = autoscaler.view if isinstance(autoscaler, SharedAutoscaler) else None
    if view is None or ready is None:
        return None
    return sum(len(group.waiting) for group in pool.beside) + min(view.beside, ready)


def _obstacles(pool: ReplicaPool, *, blocked: bool) -> list[str]:
    """What is in the way of the environment's replicas, if anything, and of those for calls with overrides."""
    own = [pool.scaling.obstacle] if blocked and pool.scaling.obstacle is not None else []
    return list(dict.fromkeys([*own, *pool.beside.obstacles]))
