"""Performs the rules of `runs` on a worker's replicas: binds them, says what is needed, lets them go with runs."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from celery.utils.log import get_logger

from ..replica import wire
from ..supervisor.lifecycle import Drain, Revive, State, StopReason
from .lines import Lines
from .runs import Held, homeless, is_stuck, makes_way, next_spare_at, replicas_needed

if TYPE_CHECKING:
    from .groups import Group
    from .job import Job
    from .replicas import Replica, Replicas

logger = get_logger("flyte_celery.worker")

#: Seconds that a replica is idle before it goes with its run: the next step of a chain comes after the root's end.
LINGERS = 1.0

#: Seconds after which a replica makes way though the maximum is not reached: the host has no place for another one.
PATIENCE = 3.0

#: Seconds between two looks for a replica that has been idle for long enough to make way, at least.
SHORTEST_MOMENT = 0.005

#: Most tasks of other runs that a worker claims while it looks for the children of parents that wait in its replicas.
MOST_FOR_CHILDREN = 10_000

#: The same while it looks for other tasks of runs whose replicas have free slots.
MOST_FOR_OTHERS = 100

#: Characters of a run's id that are shown.
SHOWN = 8


class Roots(Protocol):
    """Tells whether runs are over."""

    def ended(self, runs: Collection[str]) -> set[str] | None:
        """Those whose root task has ended; None when nobody can tell."""
        ...


class RunScope:
    """The replicas of one worker that belong to runs; does nothing for groups whose replicas do not.

    Args:
        replicas: All replicas of the worker.
        roots: Tells whether runs are over; None: nobody can tell.
    """

    def __init__(self, replicas: Replicas, roots: Roots | None) -> None:
        self._replicas = replicas
        self._roots = roots
        #: Runs that have replicas here and whose root has ended here.
        self._over: set[str] = set()

    def bind(self, replica: Replica, job: Job) -> None:
        """A replica gets a task; the first one says whose it is from now on."""
        if replica.run is None:
            replica.run, replica.bound_at = job.run, time.monotonic()

    def ended(self, job: Job, outcome: tuple[Any, ...]) -> None:
        """A task has ended; after a root's success its run is over. A failure may be tried again."""
        if job.task_id == job.run and outcome[0] == wire.OK and not outcome[1]:
            self._over.add(job.run)

    def ready(self, group: Group) -> int:
        """The group's tasks that ask for slots beside those that run, rounded up to whole replicas for each run."""
        limits, held = group.limits, self._held(group)
        needed = replicas_needed(_lines(group).counts(), held, limits.concurrency, limits.buffer)
        running = sum(each.running for each in held if each.state is State.READY)
        return max(len(group.waiting), needed * limits.concurrency - running)

    def set_aside(self, group: Group) -> int:
        """Claims in whose place others may be claimed: what a replica with a free slot may take may be behind them.

        Twice as many as there are, so that a long queue is soon looked through.
        """
        waiting = len(group.waiting)
        if not waiting:
            return 0
        replicas = self._replicas.of(group)
        useful = [each for each in replicas if each.run is not None and self._replicas.has_slot(each)]
        useful += [each for each in replicas if each.suspended and each.child.state is State.DRAINING]
        if not useful:
            return 0
        most = MOST_FOR_CHILDREN if any(each.suspended for each in useful) else MOST_FOR_OTHERS
        return min(2 * waiting, max(waiting, most))

    def revivable(self, replica: Replica) -> bool:
        """Whether a draining replica is of use to what waits."""
        if replica.child.reason is StopReason.MADE_WAY:
            return False
        return replica.run is None or _lines(replica.group).has(replica.run)

    def keep_parents(self, groups: Iterable[Group]) -> None:
        """Take back replicas that were to make way and have parents that wait now: children can run nowhere else."""
        for group in groups:
            if group.by_run:
                for replica in self._replicas.in_state(State.DRAINING, group=group):
                    if replica.suspended and replica.child.reason is StopReason.MADE_WAY:
                        self._replicas.step(replica, Revive())

    # -- Going -------------------------------------------------------------------------------------------------------

    def let_go(self, groups: Iterable[Group]) -> None:
        """Drain idle replicas whose runs are over; once per interval."""
        now = time.monotonic()
        idle = {
            replica: replica.run
            for group in groups
            if group.by_run
            for replica in self._replicas.in_state(State.READY, group=group)
            if replica.run is not None and not replica.jobs and not _lines(group).has(replica.run)
            if now - replica.child.idle_since >= LINGERS
        }
        if idle:
            unknown = set(idle.values()) - self._over
            ended = self._ended(unknown) if unknown else set()
            for replica, run in idle.items():
                if run in self._over or (ended is not None and run in ended):
                    self._replicas.step(replica, Drain(StopReason.RUN_OVER))
                elif ended is None and now - replica.child.idle_since >= replica.group.limits.scaledown_ttl:
                    self._replicas.step(replica, Drain(StopReason.SURPLUS))
        if self._over:
            self._over &= {replica.run for replica in self._replicas if replica.run is not None}

    def make_way(self, group: Group, full: bool) -> list[str]:
        """Let replicas go for runs that have none. Returns what was done, in sentences.

        Args:
            group: The replicas.
            full: Whether there may be no more of them.
        """
        told: list[str] = []
        if not group.waiting or group.starts.failures:
            return told
        heads = _lines(group).heads()
        while (going := makes_way(heads, held := self._held(group), now := time.monotonic())) is not None:
            run = self._first(heads, homeless(heads, held))
            if not full and now - _lines(group).line(run)[0].arrived_at < PATIENCE:
                break
            self._replicas.step(self._replicas[going.number], Drain(StopReason.MADE_WAY))
            does = f"it finishes {going.running} task(s) and takes no more" if going.running else "it has no task"
            told.append(f"Replica {going.number} of run {short(going.run)} makes way for run {short(run)}: {does}.")
        return told

    def moment(self, group: Group) -> float | None:
        """Seconds until the next look whether a replica makes way is worth it; None when nothing but events matters."""
        if not group.waiting:
            return None
        spare_at = next_spare_at(_lines(group).heads(), self._held(group))
        return None if spare_at is None else max(SHORTEST_MOMENT, spare_at - time.monotonic())

    def strays(self, group: Group, patience: float) -> list[Job]:
        """Tasks that have waited here for so many seconds and must go on waiting, which another worker may run."""
        if not group.by_run or not group.waiting:
            return []
        lines, heads, held = _lines(group), _lines(group).heads(), self._held(group)
        if not is_stuck(heads, held):
            return []
        since = time.monotonic() - patience
        return [job for run in homeless(heads, held) for job in lines.line(run) if job.arrived_at < since]

    def _ended(self, runs: Collection[str]) -> set[str] | None:
        return None if self._roots is None else self._roots.ended(runs)

    def _first(self, heads: Mapping[str, int], runs: Collection[str]) -> str:
        return min(runs, key=heads.__getitem__)

    def _held(self, group: Group) -> list[Held]:
        return [
            Held(
                number=replica.number,
                run=replica.run,
                state=State.STOPPING if replica.doomed else replica.child.state,
                running=replica.running,
                suspended=len(replica.suspended),
                lasting=self._replicas.lasts(replica),
                idle_since=replica.child.idle_since,
                bound_at=replica.bound_at,
                start_took=_start_took(replica),
                over=replica.run in self._over,
            )
            for replica in self._replicas.of(group)
        ]


def _start_took(replica: Replica) -> float:
    # Not from when it was asked for: the first ones wait until the launcher has imported the application.
    ready_at, began_at = replica.child.ready_at, replica.began_at
    return 0.0 if ready_at is None or began_at is None else ready_at - began_at


def short(run: str | None) -> str:
    """A run's id as it is shown."""
    return (run or "")[:SHOWN]


def run_of(request: Mapping[str, Any], task_id: str) -> str:
    """The run that a task belongs to; a root's is its own."""
    return str(request.get("root_id") or task_id)


def _lines(group: Group) -> Lines:
    assert isinstance(group.waiting, Lines)
    return group.waiting
