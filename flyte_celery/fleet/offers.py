"""What the hosts of live workers offer: published by each worker for as long as its lease, read by `env status`.

Nothing is decided by it: a worker knows its own host, and the host's locks say who has a device.
"""

from __future__ import annotations

import json
from typing import Any

import redis

from ..names import offers_key, offers_until_key
from .scripts import script

_KEYS = [offers_key(), offers_until_key()]


def publish(client: redis.Redis, worker: str, offer: dict[str, Any], lease: float) -> None:
    """Publish a worker's offer, which holds for `lease` seconds.

    Raises:
        redis.RedisError: The server does not answer, or refuses.
    """
    script("offer").run(client, _KEYS, [worker, int(lease * 1000), json.dumps(offer)])


def withdraw(client: redis.Redis, worker: str) -> None:
    """Take a worker's offer back.

    Raises:
        redis.RedisError: The server does not answer, or refuses.
    """
    script("offer").run(client, _KEYS, [worker, 0, ""])


def offers(client: redis.Redis) -> list[dict[str, Any]]:
    """The offers that hold, ordered by worker; what is no offer is left out.

    Raises:
        redis.RedisError: The server does not answer, or refuses.
    """
    found: list[dict[str, Any]] = []
    for text in script("offers").run(client, _KEYS, []):
        offer = json.loads(text)
        if isinstance(offer, dict):
            found.append(offer)
    return found
