"""Replicas are replaced when they have run enough tasks, hold much memory or are old; the next one comes first."""

from __future__ import annotations

import pytest

from tests.helpers.projects import PATIENCE, Project
from tests.helpers.waiting import wait_until

SOURCE = """
    import asyncio
    import os
    import time

    import flyte_celery as flyte

    app = flyte.init()
    kept = []

    many = flyte.TaskEnvironment("many", reusable=flyte.ReusePolicy(replicas=1, concurrency=2, idle_ttl=3600))


    @many.on_startup
    async def slow_start() -> None:
        await asyncio.sleep(0.3)


    @many.task
    async def work(mib: int = 0, seconds: float = 0.0) -> int:
        await asyncio.sleep(seconds)
        kept.append(bytearray(mib * 2**20))
        return os.getpid()
"""

#: Options of the worker, and what a call has to do for the replica to be replaced.
WAYS = {
    "tasks": ("--max-tasks-per-child", "60"),
    "memory": ("--max-memory-per-child", "65536"),
    "age": ("--max-age", "2"),
}


@pytest.mark.parametrize("why", WAYS)
def test_a_replica_is_replaced_before_it_goes(shared: Project, why: str) -> None:
    """No call ever has to wait for the start-up of another replica, which takes 0.3 s."""
    shared.write(SOURCE)
    worker = shared.start("many", *WAYS[why], ready=True)
    shared.wait_for_replicas("many", 1)
    try:
        first = shared.call("many.work", 100 if why == "memory" else 0)
        pids = [first]

        def another() -> bool:
            pids.append(shared.call("many.work", 0, 0.1))
            return pids[-1] != first

        wait_until(another, PATIENCE, "another replica")
        log = worker.log()
        ready, ended = (log.index(text) for text in ("replica 2 is ready", "replica 1 has ended (recycled)"))
        assert ready < ended
        assert len(set(pids)) == 2
    finally:
        worker.terminate()
        worker.wait()
