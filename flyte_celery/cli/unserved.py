"""Environments that no worker serves: how much waits for them, and why nobody takes it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis

from ..environment import TaskEnvironment, environments
from ..fleet.connection import connect_to_broker
from ..fleet.later import Later
from ..fleet.needs import Needs, Unmet, unmet
from ..fleet.offers import offers
from ..gpu.host import Host, missing, missing_everywhere
from ..names import queue_name


@dataclass(frozen=True, slots=True)
class Unserved:
    """One environment without a worker that answers."""

    environment: str
    #: Tasks in its queue; None when there is no queue.
    ready: int | None
    #: Why no live worker's host can serve it, or which one could; None when nothing is known.
    reason: str | None
    #: Tasks whose time has not come, and when that of the first one does, in seconds since the epoch.
    later: int = 0
    next_due: float | None = None
    #: Tasks that workers have passed on because their hosts have not what they need.
    elsewhere: tuple[Unmet, ...] = ()
    #: Always None: what a worker's status has here is its name.
    hostname: None = None


def unserved_environments(app: Any, names: list[str]) -> list[Unserved]:
    """Describe environments that no worker serves, of those that the app defines."""
    if not names:
        return []
    hosts = _hosts(app)
    known = environments()
    return [
        Unserved(name, _ready(app, name), _reason(known[name], hosts), *_later(app, name), _elsewhere(app, name))
        for name in names
    ]


def _later(app: Any, name: str) -> tuple[int, float | None]:
    client = connect_to_broker(app)
    if client is None:
        return 0, None
    try:
        later = Later(client, queue_name(name))
        return later.count(), later.next_due()
    except redis.RedisError:
        return 0, None
    finally:
        client.close()


def _elsewhere(app: Any, name: str) -> tuple[Unmet, ...]:
    client = connect_to_broker(app)
    if client is None:
        return ()
    try:
        counts = Needs(client, queue_name(name)).counts()
        return tuple(unmet(counts, name, offers(client) if counts else []))
    except redis.RedisError:
        return ()
    finally:
        client.close()


def _reason(environment: TaskEnvironment, hosts: list[Host] | None) -> str | None:
    if hosts is None:
        return None
    if (reason := missing_everywhere(environment, hosts)) is not None:
        return reason
    able = sorted({host.name for host in hosts if not missing(environment, host)})
    if not able:
        return None
    return f"no worker of it runs; {', '.join(able)} could serve it: start `env worker {environment.name}` there"


def _hosts(app: Any) -> list[Host] | None:
    """What the hosts of live workers offer; None when nobody can say."""
    client = connect_to_broker(app)
    if client is None:
        return None
    try:
        published = offers(client)
    except redis.RedisError:
        return None
    finally:
        client.close()
    hosts: list[Host] = []
    for offer in published:
        with suppress(LookupError, TypeError):  # of another version
            hosts.append(Host.from_dict(offer))
    return hosts


def _ready(app: Any, name: str) -> int | None:
    with app.connection_for_read() as connection:
        try:
            declared = connection.default_channel.queue_declare(queue_name(name), passive=True)
        except connection.channel_errors:
            return None  # a queue that holds nothing does not exist in Redis
    return int(declared.message_count)
