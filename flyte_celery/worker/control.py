"""Control and inspect commands of an environment's worker.

Celery's own `pool_grow` and `pool_shrink` refuse to work beside an autoscaler, and they are what Flower's buttons
send; in an environment's worker they move the autoscaler's bounds instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import redis
from celery.utils.log import get_logger
from celery.worker.control import Panel, nok, ok

from ..fleet import orders
from ..names import queue_name
from . import commands
from .pool import ReplicaPool
from .status import status_of

logger = get_logger("flyte_celery.worker")


def register() -> None:
    """Make the commands known to this worker process."""
    Panel.register(type="control", args=[("n", int)], signature="[N=1]", help="Grow the environment's maximum.")(
        pool_grow
    )
    Panel.register(type="control", args=[("n", int)], signature="[N=1]", help="Shrink the environment's maximum.")(
        pool_shrink
    )
    commands.register(
        {
            "env_pause": env_pause,
            "env_resume": env_resume,
            "env_drain": env_drain,
            "env_drain_host": env_drain_host,
            "env_resume_host": env_resume_host,
            "env_scale": env_scale,
            "env_prewarm": env_prewarm,
            "env_fleet": env_fleet,
            "env_status": env_status,
            "env_explain": env_explain,
        }
    )


def pool_grow(state: Any, n: int = 1, **_: Any) -> Any:
    """Raise the environment's minimum and, where it must, its maximum by `n` replicas."""
    autoscaler = state.consumer.controller.autoscaler
    lowest = max(autoscaler.limits.lowest, autoscaler.target) + n
    highest, lowest = autoscaler.update(max=max(autoscaler.limits.highest, lowest), min=lowest)
    return ok(f"pool will grow: between {lowest} and {highest} replicas")


def pool_shrink(state: Any, n: int = 1, **_: Any) -> Any:
    """Lower the environment's maximum to `n` replicas less than there are."""
    autoscaler = state.consumer.controller.autoscaler
    highest = autoscaler.target - n
    if highest < 0:
        return nok(f"cannot shrink by {n}: the environment has {autoscaler.target} replica(s)")
    highest, lowest = autoscaler.update(max=highest, min=min(autoscaler.limits.lowest, highest))
    return ok(f"pool will shrink: between {lowest} and {highest} replicas")


def env_pause(state: Any, **_: Any) -> Any:
    """Take no more tasks."""
    return _order(state, orders.pause, "paused")


def env_resume(state: Any, **_: Any) -> Any:
    """End a pause or a drain."""
    return _order(state, orders.resume, "serves again")


def env_drain(state: Any, **_: Any) -> Any:
    """Take no more tasks and end every replica."""
    return _order(state, orders.drain, "drains")


def env_drain_host(state: Any, host: str = "", **_: Any) -> Any:
    """Take no more tasks on a host and end every replica there, of all environments."""

    def drain(client: redis.Redis, _: str) -> None:
        if host not in (hosts := sorted(orders.hosts_of_workers(client))):
            raise ValueError(f"{host!r} is no host of a worker. There are workers on {', '.join(hosts)}.")
        orders.drain_host(client, host)

    return _order(state, drain, f"{host} drains")


def env_resume_host(state: Any, host: str = "", **_: Any) -> Any:
    """End the drain of a host."""
    return _order(state, lambda client, _: orders.resume_host(client, host), f"{host} serves again")


def env_scale(state: Any, lowest: int | None = None, highest: int | None = None, **_: Any) -> Any:
    """Let other bounds hold for the whole fleet; without any, the policy's again."""
    if lowest is None or highest is None:
        return _order(state, orders.reset, "its policy's bounds hold again")
    return _order(state, lambda client, queue: orders.scale(client, queue, lowest, highest), "scaled")


def env_prewarm(state: Any, n: int = 1, **_: Any) -> Any:
    """Have replicas now."""
    return _order(state, lambda client, queue: orders.prewarm(client, queue, n), f"{n} replica(s) are asked for")


def _order(state: Any, order: Callable[[Any, str], object], done: str) -> Any:
    serving = state.consumer.controller.pool.serving
    if serving.keeper is None:
        return nok(f"{serving.name}: the broker keeps no orders; they need Redis as the broker")
    try:
        serving.keeper.order(order)
    except ValueError as exc:
        return nok(str(exc))
    return ok(f"{serving.name}: {done}")


def env_fleet(state: Any, **_: Any) -> dict[str, Any] | None:
    """What this worker last heard of its fleet, None where there is none."""
    view = getattr(state.consumer.controller.autoscaler, "view", None)
    return None if view is None else asdict(view)


def env_status(state: Any, **_: Any) -> dict[str, Any]:
    """The worker's status, see `status.WorkerStatus`."""
    worker = state.consumer.controller
    pool: ReplicaPool = worker.pool
    return status_of(pool, worker.autoscaler, worker.hostname, _ready(state.consumer, pool)).as_dict()


def env_explain(state: Any, **_: Any) -> list[dict[str, Any]]:
    """The decisions that changed the number of replicas, oldest first."""
    return [
        {"at": kept.at, "target": kept.target, "reason": str(kept.reason), "text": kept.text}
        for kept in state.consumer.controller.autoscaler.history
    ]


def _ready(consumer: Any, pool: ReplicaPool) -> int | None:
    """Messages in the queue, over all its priority lists; both Redis and AMQP transports know it."""
    try:
        declared = consumer.connection.default_channel.queue_declare(queue_name(pool.serving.name), passive=True)
    except consumer.connection.channel_errors:
        return 0  # a queue that holds nothing does not exist in Redis
    except Exception as exc:
        logger.debug("%s: the queue's depth cannot be read: %r", pool.serving.name, exc)
        return None
    return int(declared.message_count)
