"""Control and inspect commands of an environment's worker.

Celery's own `pool_grow` and `pool_shrink` refuse to work beside an autoscaler, and they are what Flower's buttons
send; in an environment's worker they move the autoscaler's bounds instead.
"""

from __future__ import annotations

from typing import Any

from celery.utils.functional import maybe_list
from celery.utils.log import get_logger
from celery.worker import control as celery_control
from celery.worker.control import Panel, nok, ok

from ..names import queue_name
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
    Panel.register(type="control", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")(revoke)
    Panel.register(type="inspect", help="Status of the environment that this worker serves.")(env_status)
    Panel.register(type="inspect", help="The last autoscaling decisions.")(env_explain)


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


def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **options: Any) -> Any:
    """Celery's `revoke`; a task whose time has not come ends now, too."""
    answer = celery_control.revoke(state, task_id, terminate, signal, **options)
    keeper = state.consumer.controller.pool.serving.keeper
    if keeper is not None:
        # It comes back as any message does, and Celery, which knows it as revoked by now, says so to its caller.
        keeper.bring_forward(map(str, maybe_list(task_id) or ()))
    return answer


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
