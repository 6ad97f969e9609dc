"""A Redis client for the fleet's own keys, on the server that the broker URL names."""

from __future__ import annotations

from typing import Any

import redis

from ..embedded import client_url

#: Seconds that a command on the fleet's keys may take before the caller goes on without it.
TIMEOUT = 2.0


#: The oldest Redis with every command that claims need (BLMOVE, LMOVE, RPOP with a count).
OLDEST_VERSION = (6, 2)


def is_too_old(client: redis.Redis) -> bool:
    """Whether the server lacks commands that claims need; one that does not tell its version is believed to be new."""
    try:
        info: Any = client.info("server")
        version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    except (redis.RedisError, LookupError, ValueError):
        return False
    return version < OLDEST_VERSION


def connect(broker_url: str | None) -> redis.Redis | None:
    """A client of the broker's Redis; it connects at its first command.

    Args:
        broker_url: As Celery writes it; of several failover URLs the first counts.

    Returns:
        None when the broker is no Redis that one URL describes (RabbitMQ, Sentinel).
    """
    url = client_url((broker_url or "").split(";", 1)[0])
    if url.split("://", 1)[0] not in ("redis", "rediss", "unix"):
        return None
    return redis.Redis.from_url(url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)
