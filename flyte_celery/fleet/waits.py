"""Which tasks wait for which results, as far as they have waited for a while: how a circle of waits is found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from .. import names
from .scripts import script

#: Seconds that an entry holds when nobody renews it: its replica is gone.
LEASE = 2.5


class Waits:
    """The entries of all tasks.

    Args:
        client: A client of the Redis that keeps the results.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def enter(self, task_id: str, name: str, awaited: Sequence[str]) -> list[tuple[str, str]]:
        """Note that a task waits for results, any one of which ends its wait.

        Returns:
            Id and name of each task of a circle, from this task to the one that waits for it; empty when there is none.

        Raises:
            redis.RedisError: Redis is away.
        """
        entry = json.dumps({"name": name, "for": list(awaited)})
        arguments = [names.wait_key(""), task_id, int(LEASE * 1000), entry]
        found = script("wait").run(self._client, [names.wait_key(task_id)], arguments)
        texts = [each.decode() if isinstance(each, bytes) else each for each in found]
        return list(zip(texts[::2], texts[1::2], strict=True))

    def awaited(self, task_ids: Sequence[str]) -> dict[str, list[str]]:
        """The results that tasks wait for, of those whose wait is noted.

        Raises:
            redis.RedisError: Redis is away.
        """
        entries = self._client.mget([names.wait_key(task_id) for task_id in task_ids])
        return {
            task_id: list(json.loads(entry)["for"])
            for task_id, entry in zip(task_ids, entries, strict=True)
            if entry is not None
        }

    def renew(self, task_ids: Iterable[str]) -> list[str]:
        """Have entries hold for longer; returns those that were gone already.

        Raises:
            redis.RedisError: Redis is away.
        """
        ids = list(task_ids)
        pipe = self._client.pipeline(transaction=False)
        for task_id in ids:
            pipe.pexpire(names.wait_key(task_id), int(LEASE * 1000))
        return [task_id for task_id, held in zip(ids, pipe.execute() if ids else [], strict=True) if not held]

    def remove(self, task_ids: Iterable[str]) -> None:
        """These tasks go on.

        Raises:
            redis.RedisError: Redis is away.
        """
        if keys := [names.wait_key(task_id) for task_id in task_ids]:
            self._client.delete(*keys)
