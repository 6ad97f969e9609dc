"""What one worker serves, put together from the environment, the worker's options, the settings and the host."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from ..autoscaler.decide import Limits
from ..environment import TaskEnvironment
from ..fleet.connection import connect_to_broker
from ..gpu.host import Host, device_of
from ..gpu.inventory import most_replicas
from ..gpu.leases import Leases, default_directory
from ..options import check_grace
from ..queues import TYPE_ARGUMENT, environment_queue
from ..replica.application import find
from ..replica.plan import Logging, ReplicaPlan
from ..reuse import ReusePolicy
from ..settings import Settings
from ..supervisor.confinement import Confinement
from ..supervisor.lifecycle import Patience
from ..variables import as_environ
from .beside import ONE_CORE
from .bounds import Machine, confinement, share, thread_variables, too_small, unenforced
from .fencing import Fencing, fencing
from .keeper import Keeper
from .place import place_of
from .promises import is_amqp, weaker_promises
from .provisions import Provisions, secrets_for
from .recycling import Recycling
from .roots import Roots
from .serving import MOST_ROOM, CannotServe, Serving


def assembled(
    worker: Any,
    environment: TaskEnvironment,
    settings: Settings,
    host: Host,
    provisions: Provisions,
    broker_url: str,
    keeper: Keeper | None,
) -> Serving:
    """Put together what a worker serves; with a keeper, the worker asks for seats from now on.

    Args:
        worker: Celery's worker.
        environment: What it serves.
        settings: The worker's.
        host: What this host offers.
        provisions: What was provided for its replicas.
        broker_url: The broker as the app was configured with it.
        keeper: The keeper of its claims, None without.

    Raises:
        CannotServe: The environment's resources cannot be given.
    """
    resources = environment.resources
    try:
        confined = confinement(resources, settings)
    except ValueError as exc:
        raise CannotServe(f"The resources of environment {environment.name!r} cannot be given: {exc}") from None
    limits_of = _limits_of(environment, worker.options, settings)
    limits = _limits(worker, environment, settings, limits_of)
    environ = as_environ(environment.env_vars)
    environ |= thread_variables(resources, {**os.environ, **environ})
    asked, machine = share(resources, 0.0), Machine.here(settings)
    room = machine.holds(asked) if asked.cores or asked.memory else MOST_ROOM
    devices, wanted = None, device_of(environment)
    if wanted is not None:
        devices = Leases(settings.device_locks or default_directory(), wanted, host.accelerators)
        room = min(room, most_replicas(wanted, host.accelerators))
    crowded: tuple[str, ...] = ()
    if keeper is not None and environment.reusable:
        keeper.give_seats(place_of(environment, settings.code_version, worker.hostname, asked, machine))
        crowded = too_small(asked, machine, limits.highest)
    elif devices is not None:  # the bounds are this worker's own
        limits = replace(limits, lowest=min(limits.lowest, room), highest=min(limits.highest, room))
    fenced = Fencing(works=False) if keeper is None else fencing(worker.app, keeper.claims)
    return Serving(
        environment=environment,
        limits=limits,
        max_tasks=(worker.max_tasks_per_child or None) if environment.reusable else 1,
        patience=Patience(startup=_startup_patience(environment, settings.startup_timeout), stop=10.0),
        grace=settings.grace_for(worker.options.get("grace"), check_grace(environment.grace)),
        settings=settings,
        plan=_plan(worker, environment, settings, limits.concurrency, provisions),
        broker_url=broker_url,
        host=host,
        devices=devices,
        keeper=keeper,
        weaker=None if keeper is not None else _weaker(worker.app, environment, broker_url),
        redelivers=is_amqp(broker_url),
        fenced=fenced.works,
        environ=environ,
        inherited=dict(os.environ),
        confinement=confined,
        recycling=_recycling(worker, settings, confined),
        room=room,
        limits_of=limits_of,
        warnings=(*provisions.warnings, *unenforced(resources), *crowded, *filter(None, [fenced.warning])),
        roots=Roots(worker.app),
        find_secrets=partial(secrets_for, worker.app, environment.name),
    )


def _limits_of(environment: TaskEnvironment, options: Any, settings: Settings) -> Callable[[ReusePolicy], Limits]:
    """What a policy means in this worker: its options, and the settings, may say other times."""

    def limits_of(policy: ReusePolicy) -> Limits:
        return Limits(
            policy.min_replicas,
            policy.max_replicas,
            policy.concurrency,
            scaledown_ttl=_seconds(options.get("scaledown_ttl"), settings.scaledown_ttl, policy.scaledown_ttl),
            idle_ttl=_seconds(options.get("idle_ttl"), settings.idle_ttl, policy.idle_ttl),
            buffer=environment.buffer,
            by_run=policy.scope == "run",
        )

    return limits_of


def _limits(
    worker: Any, environment: TaskEnvironment, settings: Settings, limits_of: Callable[[ReusePolicy], Limits]
) -> Limits:
    """The bounds of the environment's own replicas."""
    if (policy := environment.reusable) is None:
        given = worker.options.get("concurrency") or worker.app.conf.worker_concurrency
        fit = Machine.here(settings).holds(share(environment.resources, ONE_CORE))
        return Limits(0, worker.concurrency if given else fit, 1, scaledown_ttl=0.0, idle_ttl=0.0)
    limits = limits_of(policy)
    if worker.options.get("autoscale"):
        high, low = worker.options["autoscale"]
        return replace(limits, lowest=low, highest=high)
    return limits


def _plan(
    worker: Any, environment: TaskEnvironment, settings: Settings, concurrency: int, provisions: Provisions
) -> ReplicaPlan:
    """What the launcher and the replicas are told."""
    return ReplicaPlan(
        application=find(worker.app),
        hostname=worker.hostname,
        environment=environment.name,
        concurrency=concurrency,
        logging=Logging(
            worker.loglevel,
            worker.logfile,
            bool(worker.redirect_stdouts),
            str(worker.redirect_stdouts_level),
            None if worker.no_color is None else not worker.no_color,
        ),
        preload=device_of(environment) is None,
        startup_timeout=settings.startup_timeout,
        max_suspended=settings.max_suspended,
        secrets=provisions.secrets,
    )


def _recycling(worker: Any, settings: Settings, confined: Confinement) -> Recycling:
    kilobytes = worker.max_memory_per_child
    return Recycling(
        max_memory=None if not kilobytes else int(kilobytes) * 1024,
        max_age=worker.options.get("max_age") or settings.max_age,
        files=confined.files,
    )


def _weaker(app: Any, environment: TaskEnvironment, url: str) -> str:
    arguments = environment_queue(app, environment.name).queue_arguments or {}
    quorum = arguments.get(TYPE_ARGUMENT) == "quorum"
    return weaker_promises(url, quorum, published=connect_to_broker(app) is not None)


def _startup_patience(environment: TaskEnvironment, default: float) -> float:
    # The replica enforces each hook's own timeout and says which one it was; the worker's patience is for a replica
    # that can no longer say anything, so it is the sum and a little more.
    hooks: Iterable[timedelta | None] = [hook.timeout for hook in environment.startup_hooks] or [None]
    return math.fsum(default if timeout is None else timeout.total_seconds() for timeout in hooks) + 5.0


def _seconds(option: float | None, setting: float | None, policy: float | timedelta) -> float:
    value = next(value for value in (option, setting, policy) if value is not None)
    return value.total_seconds() if isinstance(value, timedelta) else float(value)
