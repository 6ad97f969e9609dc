"""Replicas of one kind: those of the environment, those of a call's own policy, and ephemeral ones for single calls.

A worker has one group for its environment. A call whose override asks for other replicas gets a group of its own beside
it, which calls with the same override share, and which goes when nobody needs it any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..autoscaler.decide import Limits
from ..replica.plan import ReplicaPlan
from ..settings import Settings
from ..supervisor.confinement import Confinement
from ..supervisor.lifecycle import Starts
from .bounds import Share
from .devices import ReplicaDevices
from .lines import Lines
from .waiting import Waiting


def starts_of(settings: Settings) -> Starts:
    """Whether replicas of a group that has none yet can be started."""
    return Starts(settings.max_start_failures, settings.start_backoff, settings.start_backoff_cap)


@dataclass(slots=True, eq=False)
class Group:
    """What the replicas of one kind have in common.

    Args:
        name: For logs and status.
    """

    name: str
    limits: Limits
    #: Whether its replicas can be started.
    starts: Starts
    #: Tasks that one replica may run in its life; 1 for ephemeral ones, None for no limit.
    max_tasks: int | None
    confinement: Confinement = field(default_factory=Confinement)
    #: What one replica takes of the machine.
    share: Share = field(default_factory=Share)
    #: Variables that its replicas have beside the launcher's, or with None have not.
    environ: Mapping[str, str | None] = field(default_factory=dict)
    #: Whether its replicas are fresh interpreters: the launcher has imported the application with other variables.
    fresh: bool = False
    #: What its replicas are told in place of the launcher's plan, for other secrets; None: the same.
    plan: ReplicaPlan | None = None
    #: What gives its replicas their devices, None when they need none.
    devices: ReplicaDevices | None = None
    #: What it needs that not every host has, see `fleet.needs`; None when any host will do.
    need: str | None = None
    #: Whether each of its replicas belongs to a run, see `runs`.
    by_run: bool = field(init=False)
    #: Its tasks that have no replica.
    waiting: Waiting | Lines = field(init=False)

    def __post_init__(self) -> None:
        self.by_run = self.limits.by_run
        self.waiting = Lines() if self.by_run else Waiting()

    @property
    def ephemeral(self) -> bool:
        """Whether each of its replicas runs one task."""
        return self.max_tasks == 1


def devices_of(groups: Iterable[Group]) -> list[ReplicaDevices]:
    """What gives replicas of these groups their devices, each once."""
    return list({id(group.devices): group.devices for group in groups if group.devices is not None}.values())


def broken_devices(groups: Iterable[Group]) -> dict[str, str]:
    """The devices that no replica of these groups is given, with the reason, for people."""
    return {device: why for devices in devices_of(groups) for device, why in devices.broken().items()}
