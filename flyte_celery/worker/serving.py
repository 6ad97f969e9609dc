"""What one worker serves: an environment, with the policy and the settings that apply to it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..autoscaler.decide import Limits
from ..environment import TaskEnvironment
from ..gpu.host import Host
from ..gpu.leases import Leases
from ..replica.plan import ReplicaPlan
from ..reuse import ReusePolicy
from ..secret import SecretRequest
from ..secret_sources import Secrets
from ..settings import Settings
from ..supervisor.confinement import Confinement
from ..supervisor.lifecycle import Patience
from .keeper import Keeper
from .recycling import Recycling
from .roots import Roots

#: Replicas for which a host has room that asks nothing of it: more than any policy allows.
MOST_ROOM = 10_000


class CannotServe(Exception):
    """The worker cannot start as it was asked to; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Serving:
    """One environment as one worker serves it."""

    environment: TaskEnvironment
    limits: Limits
    #: Tasks that one replica may run in its life; 1 for ephemeral replicas, None for no limit.
    max_tasks: int | None
    patience: Patience
    #: Seconds that running tasks get to finish when the worker stops.
    grace: float
    settings: Settings
    plan: ReplicaPlan
    #: The broker as the app was configured with it; the worker's own URL may name another transport.
    broker_url: str
    #: What this host offers.
    host: Host
    #: The host's devices of the kind that each replica needs, None when it needs none.
    devices: Leases | None = None
    #: The keeper of its claims; None where the broker is no Redis that claims can live on.
    keeper: Keeper | None = None
    #: What is weaker here than with claims, None with them.
    weaker: str | None = None
    #: Whether the broker delivers again, at once, what was not acknowledged when a connection is lost.
    redelivers: bool = False
    #: Whether results are kept where the leases are, so that a worker that lost its lease cannot store any.
    fenced: bool = False
    #: Variables set for replicas before user modules are imported.
    environ: dict[str, str] = field(default_factory=dict)
    #: Variables of the worker itself, which its replicas inherit.
    inherited: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: What one replica may use.
    confinement: Confinement = field(default_factory=Confinement)
    recycling: Recycling = field(default_factory=Recycling)
    #: Replicas that this host has room for, by the cores, the memory and the devices that they ask for.
    room: int = MOST_ROOM
    #: The bounds that a policy means here, options and settings of the worker included.
    limits_of: Callable[[ReusePolicy], Limits] = lambda policy: Limits(
        policy.min_replicas, policy.max_replicas, policy.concurrency, scaledown_ttl=30.0, idle_ttl=30.0
    )
    #: Finds secrets that a call asks for in place of the environment's; raises `provisions.CannotProvide`.
    find_secrets: Callable[[SecretRequest | None], Secrets] = lambda _: Secrets()
    #: Tells whether runs are over, for replicas that belong to runs.
    roots: Roots | None = None
    #: What the worker's log says at its start, beside what is served.
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The environment's name."""
        return self.environment.name

    @property
    def capacity(self) -> int:
        """Tasks that may run at once on this host when all replicas are up."""
        return min(self.limits.highest, self.room) * self.limits.concurrency
