"""How a task tells a test what happened, and how a test holds a task: lists in the project's Redis."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

#: Seconds that a task waits at a gate before it fails.
GATE_PATIENCE = 30.0


def client(retries: int = 0) -> redis.Redis:
    """A client of the project's Redis database.

    Args:
        retries: How often a command is sent again after its connection was lost.
    """
    retry = Retry(ConstantBackoff(0.05), retries)
    return redis.Redis.from_url(os.environ["FLYTE_CELERY_BROKER_URL"], decode_responses=True, retry=retry)


def note(topic: str, value: Any = None) -> int:
    """Write something down, and return how many notes the topic has now."""
    with client() as connection:
        return int(connection.rpush(f"note:{topic}", json.dumps(value)))  # type: ignore[arg-type]


def notes(topic: str) -> list[Any]:
    """What was written down, in order."""
    with client() as connection:
        return [json.loads(text) for text in connection.lrange(f"note:{topic}", 0, -1)]  # type: ignore[union-attr]


def open_gate(name: str) -> None:
    """Let everything pass that waits at a gate, or will."""
    with client() as connection:
        connection.set(f"gate:{name}", 1)


def wait_at(name: str) -> None:
    """Wait until a gate is open."""
    with client(retries=10) as connection:
        deadline = time.monotonic() + GATE_PATIENCE
        while not connection.exists(f"gate:{name}"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Nobody opened the gate {name!r}.")
            time.sleep(0.01)


async def wait_at_async(name: str) -> None:
    """Wait until a gate is open, without blocking the event loop."""
    with client(retries=10) as connection:
        async with asyncio.timeout(GATE_PATIENCE):
            while not connection.exists(f"gate:{name}"):  # noqa: ASYNC110  # the event is in Redis
                await asyncio.sleep(0.01)
