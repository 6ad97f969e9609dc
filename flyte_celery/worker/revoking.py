"""`revoke`, for all workers of an app with environments: what runs is not said to be revoked.

With Celery's own, any worker that does not run a task, and finds no state of it, stores that it is revoked. A task
that runs has no state either, unless it is `track_started`, and without `terminate` it goes on: its caller would be
told of an end that never was. So nothing is stored here for tasks that some worker of an environment has given to a
replica. Everything else is left to Celery: what waits ends at once, what runs here is terminated if asked for.
"""

from __future__ import annotations

from typing import Any

import redis
from celery.utils.functional import maybe_list
from celery.utils.log import get_logger
from celery.worker import control as celery_control
from celery.worker import state as worker_state
from celery.worker.control import Panel, ok

from ..fleet.begun import begun
from ..fleet.connection import connect_to_broker
from ..fleet.revoked import note_reason
from .pool import ReplicaPool

logger = get_logger("flyte_celery.worker")


def register() -> None:
    """Make the command known to this worker process, in place of Celery's."""
    Panel.register(type="control", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")(revoke)


def revoke(
    state: Any, task_id: Any, terminate: bool = False, signal: Any = None, reason: str | None = None, **options: Any
) -> Any:
    """Celery's `revoke`; a task that runs elsewhere is left to its worker, one whose time has not come ends now."""
    task_ids = {str(each) for each in maybe_list(task_id) or ()}
    if reason is not None:
        for each in task_ids:
            note_reason(each, str(reason))
    pool = state.consumer.pool
    running = set() if terminate else _running(state.app, pool, task_ids)
    worker_state.revoked.update(running)
    if running == task_ids:
        answer = ok(f"tasks {running} flagged as revoked")
    else:
        answer = celery_control.revoke(state, list(task_ids - running), terminate, signal, **options)
    if isinstance(pool, ReplicaPool) and pool.serving.keeper is not None:
        # It comes back as any message does, and Celery, which knows it as revoked by now, says so to its caller.
        pool.serving.keeper.bring_forward(task_ids)
    return answer


def _running(app: Any, pool: Any, task_ids: set[str]) -> set[str]:
    """Those of these tasks that a replica has, here or elsewhere."""
    here: set[str] = set()
    if isinstance(pool, ReplicaPool):  # Celery does not know yet that they run
        here = {job.task_id for job in pool.jobs.values() if job.replica is not None and job.task_id in task_ids}
    unknown = {each for each in task_ids - here if each not in worker_state.requests}
    if (client := connect_to_broker(app)) is None:
        # Nobody can say where they run. In an environment's worker they count as running: it ends what waits, later.
        return here | unknown if isinstance(pool, ReplicaPool) else here
    try:
        return here | begun(client, unknown)
    except redis.RedisError as exc:
        logger.warning("Revoked tasks cannot be looked up; those that wait end when a worker takes them: %s", exc)
        return here | unknown
    finally:
        client.close()
