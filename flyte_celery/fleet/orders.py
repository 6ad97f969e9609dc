"""What operators order of environments and hosts, kept in Redis: all workers obey with their next look.

An order holds until it is taken back, also for workers that start later; only `prewarm` is done once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis

from .. import names
from .scripts import script


@dataclass(frozen=True, slots=True)
class Orders:
    """What holds for one environment."""

    lowest: int | None = None
    highest: int | None = None
    """Bounds in place of the policy's."""

    paused: bool = False
    """Its queue takes tasks, and no worker takes them from it."""

    drained: bool = False
    """It has no replica, and no worker takes its tasks."""

    def __str__(self) -> str:
        words = []
        if self.highest is not None:
            words.append(f"scaled to {self.lowest} to {self.highest} replicas")
        words += [word for word, holds in (("paused", self.paused), ("drained", self.drained)) if holds]
        return " and ".join(words)


def orders_of(client: redis.Redis, queue: str) -> Orders:
    """What was ordered of an environment."""
    found: list[Any] = client.hmget(names.orders_key(queue), ["min", "max", "paused", "drained"])
    lowest, highest, paused, drained = found
    return Orders(
        None if lowest is None else int(lowest),
        None if highest is None else int(highest),
        bool(paused),
        bool(drained),
    )


def scale(client: redis.Redis, queue: str, lowest: int, highest: int) -> None:
    """Let other bounds hold than the policy's.

    Raises:
        ValueError: They are no bounds.
    """
    if not 0 <= lowest <= highest:
        raise ValueError(f"MIN {lowest} and MAX {highest} are no bounds: give whole numbers with 0 <= MIN <= MAX.")
    client.hset(names.orders_key(queue), mapping={"min": lowest, "max": highest})


def reset(client: redis.Redis, queue: str) -> bool:
    """Let the policy's bounds hold again. Returns whether others did."""
    return bool(client.hdel(names.orders_key(queue), "min", "max"))


def pause(client: redis.Redis, queue: str) -> None:
    """Have no worker take tasks; what has begun goes on, replicas stay as their policy says."""
    client.hset(names.orders_key(queue), "paused", "1")


def drain(client: redis.Redis, queue: str) -> None:
    """Have no worker take tasks, and every replica finish what it runs and go."""
    client.hset(names.orders_key(queue), "drained", "1")


def resume(client: redis.Redis, queue: str) -> bool:
    """End `pause` and `drain`. Returns whether there was something to end."""
    return bool(client.hdel(names.orders_key(queue), "paused", "drained"))


def drain_host(client: redis.Redis, host: str) -> None:
    """The same as `drain` for every environment on a host."""
    client.hset(names.drained_hosts_key(), host, "1")


def resume_host(client: redis.Redis, host: str) -> bool:
    """End `drain_host`. Returns whether there was something to end."""
    return bool(client.hdel(names.drained_hosts_key(), host))


def prewarm(client: redis.Redis, queue: str, replicas: int) -> None:
    """Have so many replicas now, as if work for them had been seen: they go as they would after that work."""
    script("prewarm").run(client, [names.orders_key(queue)], [replicas])


def is_held_back(client: redis.Redis, queue: str, host: str) -> bool:
    """Whether a worker on a host is to take nothing from a queue."""
    pipe: Any = client.pipeline(transaction=False)
    pipe.hmget(names.orders_key(queue), ["paused", "drained"])
    pipe.hexists(names.drained_hosts_key(), host)
    of_environment, of_host = pipe.execute()
    return any(of_environment) or bool(of_host)


def hosts_of_workers(client: redis.Redis) -> set[str]:
    """The hosts of all workers whose leases are known."""
    members: list[bytes] = client.zrange(names.workers_key(), 0, -1)  # type: ignore[assignment]
    return {member.decode().rpartition(":")[0].rpartition("@")[2] for member in members}
