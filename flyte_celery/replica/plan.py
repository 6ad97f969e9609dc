"""What a launcher and its replicas must know; made by the worker, pickled to the launcher's first message."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..secret_sources import Secrets
from .application import ApplicationReference


@dataclass(frozen=True, slots=True)
class Logging:
    """How the worker logs, so that its replicas do the same."""

    level: int | None
    file: str | None
    redirect_stdouts: bool
    redirect_level: str
    colorize: bool | None


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """One environment as its replicas see it."""

    application: ApplicationReference
    #: The worker's node name, `ENV@host`.
    hostname: str
    environment: str
    #: Tasks at once in one replica.
    concurrency: int
    logging: Logging
    #: Whether replicas are forks of a process that has imported the application (False: fresh interpreters, for
    #: environments whose device drivers do not survive a fork).
    preload: bool = True
    #: Seconds for start-up hooks that do not say themselves.
    startup_timeout: float = 600.0
    #: Tasks of one replica that may wait for their children at once.
    max_suspended: int = 1000
    #: Secrets of the environment. They travel in the plan, over a socket or a pipe: other users of the machine can
    #: read a process's arguments, and its own user the variables that it was started with.
    secrets: Secrets = field(default_factory=Secrets)
