"""What a worker does while its Redis is away: everything but taking tasks and finishing them.

Celery would sleep between its attempts to connect, longer each time, and its event loop would stand still: no result
of a replica would be read, no time limit kept, and the lease could not be renewed when Redis is back.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from celery.utils.log import get_logger
from celery.worker import state as worker_state

from ..fleet.patience import backoff

if TYPE_CHECKING:
    from .keeper import Keeper
    from .pool import ReplicaPool

logger = get_logger("flyte_celery.worker")

#: Most seconds between two looks whether Redis is back.
LOOK_EVERY = 1.0


def stay_alive(pool: ReplicaPool, keeper: Keeper) -> None:
    """Turn the event loop until Redis answers, or the worker is told to stop."""
    hub = pool.replicas.hub
    if hub is None or _told_to_stop():
        return
    pool.renew()
    if not keeper.away:
        return
    logger.warning(
        "%s: Redis does not answer. Replicas and running tasks stay; what they finish is stored when it is back.",
        pool.serving.name,
    )
    pool.watch_again()
    timers = pool.start_timers(hub)
    began = time.monotonic()
    loop = hub.create_loop()
    try:
        for delay in backoff(0.05, LOOK_EVERY):
            look_at = time.monotonic() + delay
            hub.call_later(delay, lambda: None)
            while time.monotonic() < look_at and not _told_to_stop():
                next(loop)
            if _told_to_stop():
                return
            pool.renew()
            if not keeper.away:
                break
    finally:
        for timer in timers:
            timer.cancel()
    logger.warning("%s: Redis answers again after %.1f s.", pool.serving.name, time.monotonic() - began)


def _told_to_stop() -> bool:
    # Both hold an exit status, of which 0 is one and equals False, or nothing.
    flags = (worker_state.should_stop, worker_state.should_terminate)
    return any(flag is not None and flag is not False for flag in flags)
