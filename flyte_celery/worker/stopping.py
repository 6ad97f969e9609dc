"""How a worker stops: what is not begun goes back at once, what runs gets its grace, nothing is lost either way."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from celery.utils.log import get_logger
from celery.worker import state as worker_state

from ..replica import wire

if TYPE_CHECKING:
    from .job import Job
    from .pool import ReplicaPool

logger = get_logger("flyte_celery.worker")

#: Seconds beyond its grace period in which a worker lets cancelled coroutines and shutdown hooks end.
LAST_MOMENTS = 1.0

#: Seconds between two lines that say what is waited for.
SAY_EVERY = 5.0


class Stopping:
    """The stop of one pool, step by step.

    Args:
        pool: The pool.
        grace: Seconds that running tasks get to finish.
    """

    def __init__(self, pool: ReplicaPool, grace: float) -> None:
        self._pool = pool
        self._grace = grace
        self._hurry = False
        #: Whether it has begun.
        self.begun = False
        #: Whether running tasks are waited for no longer.
        self.ending = False

    def begin(self) -> None:
        """Take nothing more, and hand back at once what no replica has begun."""
        pool = self._pool
        if pool.serving.keeper is not None and not self.begun:
            pool.renew()  # where Redis is away this takes 2 s, and Celery then asks nothing of it, which takes longer
        self.begun = True
        unstarted = [job for job in pool.jobs.values() if job.replica is None]
        if (keeper := pool.serving.keeper) is not None:
            keeper.hand_back_now(job.claim for job in unstarted)
        else:  # which hands back what is scheduled for later as well
            for request in tuple(worker_state.scheduled_requests):
                request.reject(requeue=True)
        pool.hand_back(*unstarted)

    def finish(self) -> None:
        """Let running tasks finish for the grace period, then hand back what is left and end every replica."""
        self.begin()
        self._take_second_sigterm()
        pool = self._pool
        pool.watch_again()
        pool.replicas.drain_all()
        deadline = time.monotonic() + self._grace
        self._wait(deadline)
        self._end(time.monotonic() if self._hurried() else deadline)

    def at_once(self) -> None:
        """Hand everything back and end every replica now."""
        self.begin()
        self._pool.replicas.drain_all()
        self._end(time.monotonic())

    def _wait(self, deadline: float) -> None:
        pool, hub = self._pool, self._pool.replicas.hub
        say_at = now = time.monotonic()
        # An error that ends the worker before its event loop runs leaves nothing to wait with.
        while hub is not None and pool.jobs and now < deadline and not self._hurried():
            if now >= say_at:
                logger.info(
                    "%s: waiting up to %.0f s for %s", pool.serving.name, deadline - now, words(pool.jobs.values())
                )
                say_at = now + SAY_EVERY
            hub.call_later(min(0.5, max(0.0, deadline - now)), lambda: None)
            hub.run_once()
            now = time.monotonic()

    def _take_second_sigterm(self) -> None:
        """Let another SIGTERM end the wait for running tasks; to Celery it would say again what the first one did."""

        def hurry(*_: object) -> None:
            self._hurry = True

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, hurry)

    def _hurried(self) -> bool:
        return self._hurry or bool(worker_state.should_terminate)

    def _end(self, deadline: float) -> None:
        """End every replica, and hand back what then has not finished: it is no failed attempt."""
        self.ending = True
        pool = self._pool
        for job in pool.jobs.values():
            if job.on_loop and job.replica is not None and (replica := pool.replicas.get(job.replica)) is not None:
                pool.replicas.send(replica, (wire.CANCEL, job.number, None))
        pool.replicas.close(deadline + LAST_MOMENTS)
        self._turn()
        if pool.serving.keeper is not None:
            pool.serving.keeper.release()
        pool.hand_back(*pool.jobs.values())

    def _turn(self) -> None:
        """Let Celery acknowledge what has just ended, which it does in the next turn of the event loop."""
        if (hub := self._pool.replicas.hub) is not None:
            hub.call_later(0.01, lambda: None)
            hub.run_once()


def words(jobs: Collection[Job], most: int = 5) -> str:
    """How many tasks run, and which."""
    named: Iterable[str] = (job.words for job in itertools.islice(jobs, most))
    more = f" and {len(jobs) - most} more" if len(jobs) > most else ""
    return f"{len(jobs)} running task(s): {', '.join(named)}{more}"
