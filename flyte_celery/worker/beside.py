"""Groups of replicas beside the environment's own: for calls whose override asks for other replicas.

`reusable="off"` gives a call an ephemeral replica, `reusable=ReusePolicy(...)` a pool with that policy's bounds in this
worker, which calls with the same policy share. How many ephemeral replicas exist at once is bounded by what the machine
has left beside the others, in the order in which their tasks came; one may always run. A group whose override asks for
devices leases them as the environment's own replicas do; what this host has not is not served here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger

from ..autoscaler.decide import Limits, Reason, ReplicaView
from ..autoscaler.driver import Autoscaler, Explained
from ..clock import SystemClock
from ..devices import Device
from ..fleet.needs import need_of
from ..gpu.host import Need, device_of, lacking
from ..gpu.leases import Leases, default_directory
from ..gpu.visibility import variables
from ..overrides import is_as_of
from ..resources import Resources
from ..secret import secrets_of
from ..secret_sources import Secrets
from ..supervisor.lifecycle import State, StopReason
from ..variables import as_environ
from .bounds import Machine, confinement, share, thread_variables
from .devices import ReplicaDevices
from .groups import Group, starts_of

if TYPE_CHECKING:
    from ..task import TaskTemplate
    from .replicas import Replicas
    from .scaling import Scaling
    from .serving import Serving

    AnyTask = TaskTemplate[Any, Any]

logger = get_logger("flyte_celery.worker")

#: Tasks beside the environment's own replicas in whose place a worker claims others, at most.
MOST_CLAIMED_BESIDE = 1000

#: Cores that an ephemeral replica takes when its resources do not say.
ONE_CORE = 1.0


class CannotGive(Exception):
    """This host has not what a call needs, however idle it is; the text says what, and what it has instead.

    Args:
        need: What is needed, see `fleet.needs`.
        lacks: What of it is not here.
    """

    def __init__(self, need: str, lacks: list[Need]) -> None:
        super().__init__(", and ".join(map(str, lacks)))
        self.need = need


class Beside:
    """The groups beside the environment's own.

    Args:
        serving: What the worker serves.
        main: The environment's own group.
        replicas: All replicas of the worker.
        scaling: Starts and drains replicas of a group, and shows them.
    """

    def __init__(self, serving: Serving, main: Group, replicas: Replicas, scaling: Scaling) -> None:
        self._serving = serving
        self._main = main
        self._replicas = replicas
        self._scaling = scaling
        self._groups: dict[str, Group] = {}
        self._scalers: dict[str, Autoscaler] = {}
        self._machine = Machine.here(serving.settings)
        #: What gives replicas devices, for each request that there was.
        self._devices: dict[Device, ReplicaDevices] = {}
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
            CannotGive: This host has not what the override's resources ask for.
        """
        if task is None or options is None or is_as_of(task, self._serving.environment):
            return self._main
        if (group := self._groups.get(options)) is None:
            if task.resources is not None and (lacks := lacking(task.resources, self._serving.host)):
                raise CannotGive(need_of(task.resources, options), lacks)
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

    def _made(self, task: AnyTask, options: str) -> Group:
        policy = task.reusable
        secrets = self._secrets(task)
        environ = self._environ(task, secrets)
        fresh = bool(environ) or secrets != self._serving.plan.secrets
        devices = self.devices_for(task.resources)
        if devices is None and (own := device_of(self._serving.environment)) is not None:
            environ |= variables(own.device_class, ())  # what the environment's replicas have is none of its
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
            fresh=fresh or devices is not None,  # the driver of an accelerator does not survive a fork
            devices=devices,
            need=None if task.resources is None else need_of(task.resources, options),
        )

    def devices_for(self, resources: Resources | None) -> ReplicaDevices | None:
        """What gives replicas of these resources their devices on this host; None when they need none."""
        if resources is None or (wanted := resources.get_device()) is None:
            return None
        if (devices := self._devices.get(wanted)) is None:
            directory = self._serving.settings.device_locks or default_directory()
            leases = Leases(directory, wanted, self._serving.host.accelerators)
            devices = self._devices[wanted] = ReplicaDevices(leases, self._serving.plan.hostname)
        return devices

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
            _GroupPool(group, self),
            group.limits,
            lambda: self._scaling.observed_in(group),
            SystemClock(),
            lambda explained: self._decided(group, explained),
        )
        return group

    def _decided(self, group: Group, explained: Explained) -> None:
        if explained.reason is Reason.BLOCKED:
            logger.info("%s: calls with the override %s: %s", self._serving.name, group.name, explained.text)

    # -- Scaling -----------------------------------------------------------------------------------------------------

    @property
    def claimed(self) -> int:
        """Tasks beside the environment's own replicas, in whose place others may be claimed."""
        tasks = sum(
            len(group.waiting) + sum(len(replica.jobs) - len(replica.suspended) for replica in self._replicas.of(group))
            for group in self
        )
        return min(tasks, MOST_CLAIMED_BESIDE)

    @property
    def spare(self) -> int:
        """How many more calls could begin here now, about: one for each core that no replica has asked for."""
        others = self._replicas.in_state(State.STARTING, State.READY, State.DRAINING)
        ephemeral = sum(replica.group.ephemeral for replica in others)
        if (most := self._serving.settings.max_ephemeral) is None:
            most = math.floor(self._machine.cores - sum(replica.group.share.cores for replica in others)) + ephemeral
        return min(max(1, most), MOST_CLAIMED_BESIDE) - ephemeral - sum(len(group.waiting) for group in self)

    def consider(self) -> None:
        """Have the replicas that the groups' tasks need, in the order in which they came; forget groups without any."""
        self._full = False
        for key, group in sorted(self._groups.items(), key=lambda item: _first(item[1])):
            self._scalers[key].consider()
            if group.by_run:
                full = self._replicas.seated(group) >= group.limits.highest
                self._scaling.make_way(group, full, self._scalers[key].tell)
            if not group.waiting and not self._replicas.of(group):
                del self._groups[key], self._scalers[key]

    def start(self, group: Group, n: int) -> int:
        """Start up to `n` replicas of a group, as many as there is room for."""
        for started in range(n):
            if group.ephemeral and (self._full or not self._has_room(group)):
                self._full = True  # nobody overtakes the first one that waits for room
                return started
            if not self._scaling.start_in(group, 1):
                return started
        return n

    def _has_room(self, group: Group) -> bool:
        others = self._replicas.in_state(State.STARTING, State.READY, State.DRAINING)
        ephemeral = sum(replica.group.ephemeral and replica.group is not self._main for replica in others)
        if (most := self._serving.settings.max_ephemeral) is not None:
            return ephemeral < most
        return not ephemeral or self._machine.fits(group.share, [replica.group.share for replica in others])

    def room_for(self, need: str, resources: Resources) -> int:
        """How many more tasks with a need this worker can begin now, besides those that wait here already."""
        groups = [group for group in self if group.need == need]
        slots = sum(self._replicas.live(group) * group.limits.concurrency - len(group.waiting) for group in groups)
        replicas = [replica for group in groups for replica in self._replicas.of(group)]
        slots -= sum(replica.running for replica in replicas if replica.child.state is not State.DRAINING)
        places = self._machine.holds(share(resources, ONE_CORE)) - len(replicas)
        if (devices := self.devices_for(resources)) is not None:
            rivals = [group for group in self if group.need != need and _shares(group, devices)]
            places = min(places, devices.free() - sum(map(self._coming, rivals)))
        return slots + max(0, places)

    def _coming(self, group: Group) -> int:
        """How many replicas of a group are still to be started for the tasks that wait here."""
        live = self._replicas.live(group)
        running = sum(replica.running for replica in self._replicas.of(group))
        wanted = math.ceil((len(group.waiting) + running) / group.limits.concurrency)
        return max(0, min(wanted, group.limits.highest) - live)

    def in_vain(self) -> list[Group]:
        """Groups with tasks for which there is no device here, nor a replica that will be free."""
        return [
            group
            for group in self
            if group.waiting
            and group.devices is not None
            and not self._replicas.live(group)
            and not group.devices.free()
        ]

    @property
    def obstacles(self) -> list[str]:
        """Why there is no place for replicas that tasks here wait for."""
        found = [group.devices.obstacle for group in self if group.waiting and group.devices is not None]
        return list(dict.fromkeys(each for each in found if each is not None))

    def views(self, group: Group) -> list[ReplicaView]:
        """The replicas of a group."""
        return self._scaling.views_of(group)

    def live(self, group: Group) -> int:
        """How many replicas of a group take tasks, or will."""
        return self._replicas.live(group)

    def drain(self, numbers: Iterable[int], reason: StopReason) -> None:
        """Let these replicas go."""
        self._scaling.drain(numbers, reason)


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
    def obstacle(self) -> str | None:
        devices = self._group.devices
        return None if devices is None else devices.obstacle


def _shares(group: Group, devices: ReplicaDevices) -> bool:
    """Whether a group's replicas may be given the same devices."""
    return group.devices is not None and not group.devices.ids.isdisjoint(devices.ids)


def _first(group: Group) -> float:
    """When the first task came that waits in a group."""
    return min((job.arrived_at for job in group.waiting), default=math.inf)
