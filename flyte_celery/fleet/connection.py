"""A Redis client for the fleet's own keys, on the server that the broker URL names."""

from __future__ import annotations

import redis

from ..embedded import client_url

#: Seconds that a command on the fleet's keys may take before the caller goes on without it.
TIMEOUT = 2.0


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
