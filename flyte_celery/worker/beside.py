"""Groups of replicas beside the environment's own: for calls whose override asks for other replicas.

`reusable="off"` gives a call an ephemeral replica, `reusable=ReusePolicy(...)` a pool with that policy's bounds in this
worker, which calls with the same policy share. How many ephemeral replicas exist at once is bounded by what the machine
has left beside the others, in the order in which their tasks came; one may always run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from ..autoscaler.decide import Limits, Observed, Reason, ReplicaView
from ..autoscaler.driver import Autoscaler
from ..clock import SystemClock
from ..secret import secrets_of
from ..secret_sources import Secrets
from ..supervisor.lifecycle import State, StopReason
from ..variables import as_environ
from .bounds import Machine, confinement, share, thread_variables
from .groups import Group, starts_of

if TYPE_CHECKING:
    from ..task import TaskTemplate
    from .replicas import Replicas
    from .serving import Serving

    AnyTask = TaskTemplate[Any, Any]

#: Tasks beside the environment's own replicas in whose place a worker claims others, at most.
MOST_CLAIMED_BESIDE = 1000

#: Cores that an ephemeral replica takes when its resources do not say.
ONE_CORE = 1.0


class Mover(Protocol):
    """What moves replicas: the pool, as far as this module needs it."""

    def start_in(self, group: Group, n: int) -> int:
        """Start up to `n` replicas of a group; returns how many were started."""
        ...

    def observed_in(self, group: Group) -> Observed:
        """The demand for a group's replicas, and the replicas."""
        ...

    def views_of(self, group: Group) -> list[ReplicaView]:
        """A group's replicas as the autoscaler wants to see them."""
        ...

    def drain(self, numbers: Iterable[int], reason: StopReason) -> None:
        """Let these replicas finish what they run and end."""
        ...

    def make_way(self, group: Group, full: bool, tell: Callable[[Reason, str], None]) -> None:
        """Let replicas of a group go for runs that have none."""
        ...


class Beside:
    """The groups beside the environment's own.

    Args:
        serving: What the worker serves.
        main: The environment's own group.
        replicas: All replicas of the worker.
        mover: Starts and drains replicas of a group, and shows them.
    """

    def __init__(self, serving: Serving, main: Group, replicas: Replicas, mover: Mover) -> None:
        self._serving = serving
        self._main = main
        self._replicas = replicas
        self._mover = mover
        self._groups: dict[str, Group] = {}
        self._scalers: dict[str, Autoscaler] = {}
        self._machine = Machine.here(serving.settings)
        #: Whether somebody waits for room in this round.
        self._full = False

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def group_for(self, task: AnyTask | None, options: str | None) -> Group:
        """The replicas that may take a call.

        Args:
            task: The task as its caller had it.
            options: What its override asks of a replica, see `overrides.replica_options`.

        Raises:
            CannotProvide: A secret that the override asks for cannot be had.
        """
        if task is None or options is None or self._is_as_the_environment(task):
            return self._main
        if (group := self._groups.get(options)) is None:
            group = self._add(options, self._made(task, options))
        return group

    def alone(self, group: Group) -> Group:
        """Ephemeral replicas that are otherwise as a group's: there a task shows what it uses by itself."""
        if group.ephemeral:
            return group
        key = f"alone: {group.name}"
        if (found := self._groups.get(key)) is None:
            limits = Limits(0, self._most(), 1, 0.0, 0.0)
            found = self._add(key, replace(group, name=key, limits=limits, max_tasks=1))
        return found

    def _is_as_the_environment(self, task: AnyTask) -> bool:
        own = self._serving.environment
        return (task.reusable, task.resources, as_environ(task.env_vars), secrets_of(task.secrets)) == (
            own.reusable,
            own.resources,
            as_environ(own.env_vars),
            secrets_of(own.secrets),
        )

    def _made(self, task: AnyTask, options: str) -> Group:
        policy = task.reusable
        secrets = self._secrets(task)
        environ = self._environ(task, secrets)
        if policy is None:
            limits = Limits(0, self._most(), 1, scaledown_ttl=0.0, idle_ttl=0.0)
        else:
            limits = self._serving.limits_of(policy)
        return Group(
            name=options,
            limits=limits,
            starts=starts_of(self._serving.settings),
            max_tasks=1 if policy is None else None if self._main.ephemeral else self._main.max_tasks,
            confinement=confinement(task.resources, self._serving.settings),
            share=share(task.resources, ONE_CORE if policy is None else 0.0),
            environ=environ,
            plan=replace(self._serving.plan, secrets=secrets),
            fresh=bool(environ) or secrets != self._serving.plan.secrets or _on_device(task),
        )

    def _secrets(self, task: AnyTask) -> Secrets:
        """The secrets of a call."""
        if secrets_of(task.secrets) == secrets_of(self._serving.environment.secrets):
            return self._serving.plan.secrets
        return self._serving.find_secrets(task.secrets)

    def _environ(self, task: AnyTask, secrets: Secrets) -> dict[str, str | None]:
        """What differs from the launcher's variables. Secrets travel apart from them."""
        own = self._serving.environ | dict(self._serving.plan.secrets.environ)
        wanted = as_environ(task.env_vars) | dict(secrets.environ)
        wanted |= thread_variables(task.resources, {**self._serving.inherited, **wanted})
        before = {name: self._serving.inherited.get(name) for name in self._serving.environ}
        removed = {name: before.get(name) for name in own.keys() - wanted.keys()}
        changed = {name: value for name, value in wanted.items() if own.get(name) != value}
        return removed | {name: value for name, value in changed.items() if name not in secrets.environ}

    def _most(self) -> int:
        return self._serving.settings.max_ephemeral or MOST_CLAIMED_BESIDE

    def _add(self, key: str, group: Group) -> Group:
        self._groups[key] = group
        self._scalers[key] = Autoscaler(
            _GroupPool(group, self), group.limits, lambda: self._mover.observed_in(group), SystemClock()
        )
        return group

    # -- Scaling -----------------------------------------------------------------------------------------------------

    @property
    def claimed(self) -> int:
        """Tasks beside the environment's own replicas, in whose place others may be claimed."""
        tasks = sum(
            len(group.waiting) + sum(len(replica.jobs) - len(replica.suspended) for replica in self._replicas.of(group))
            for group in self
        )
        return min(tasks, MOST_CLAIMED_BESIDE)

    def consider(self) -> None:
        """Have the replicas that the groups' tasks need, in the order in which they came; forget groups without any."""
        self._full = False
        for key, group in sorted(self._groups.items(), key=lambda item: _first(item[1])):
            self._scalers[key].consider()
            if group.by_run:
                full = self._replicas.seated(group) >= group.limits.highest
                self._mover.make_way(group, full, self._scalers[key].tell)
            if not group.waiting and not self._replicas.of(group):
                del self._groups[key], self._scalers[key]

    def start(self, group: Group, n: int) -> int:
        """Start up to `n` replicas of a group, as many as there is room for."""
        for started in range(n):
            if group.ephemeral and (self._full or not self._has_room(group)):
                self._full = True  # nobody overtakes the first one that waits for room
                return started
            if not self._mover.start_in(group, 1):
                return started
        return n

    def _has_room(self, group: Group) -> bool:
        others = self._replicas.in_state(State.STARTING, State.READY, State.DRAINING)
        ephemeral = sum(replica.group.ephemeral and replica.group is not self._main for replica in others)
        if (most := self._serving.settings.max_ephemeral) is not None:
            return ephemeral < most
        return not ephemeral or self._machine.fits(group.share, [replica.group.share for replica in others])

    def views(self, group: Group) -> list[ReplicaView]:
        """The replicas of a group."""
        return self._mover.views_of(group)

    def live(self, group: Group) -> int:
        """How many replicas of a group take tasks, or will."""
        return self._replicas.live(group)

    def drain(self, numbers: Iterable[int], reason: StopReason) -> None:
        """Let these replicas go."""
        self._mover.drain(numbers, reason)


class _GroupPool:
    """One group as an autoscaler moves it."""

    def __init__(self, group: Group, beside: Beside) -> None:
        self._group = group
        self._beside = beside

    def views(self) -> list[ReplicaView]:
        return self._beside.views(self._group)

    def start_replicas(self, n: int) -> int:
        return self._beside.start(self._group, n)

    def drain(self, numbers: Iterable[int], reason: StopReason) -> None:
        self._beside.drain(numbers, reason)

    @property
    def live(self) -> int:
        return self._beside.live(self._group)

    @property
    def obstacle(self) -> None:
        return None


def _first(group: Group) -> float:
    """When the first task came that waits in a group."""
    return min((job.arrived_at for job in group.waiting), default=math.inf)


def _on_device(task: AnyTask) -> bool:
    """Whether a call needs an accelerator, whose driver does not survive a fork."""
    return task.resources is not None and task.resources.get_device() is not None
