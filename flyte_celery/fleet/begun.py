"""Which tasks have begun to run on some worker, of any environment: a worker that does not run a task can ask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis

from .. import names


def begun(client: redis.Redis, task_ids: Iterable[str]) -> set[str]:
    """Those of these tasks that a replica was given and that have not ended. One that begins right now may be missing.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    wanted = set(task_ids)
    if not wanted:
        return wanted
    members: Any = client.zrange(names.workers_key(), 0, -1)
    pipe: Any = client.pipeline(transaction=False)
    for member in members:
        queue, _, worker = member.decode().partition("/")
        pipe.hvals(names.started_key(queue, worker))
    return wanted.intersection(task_id.decode() for running in pipe.execute() for task_id in running)
