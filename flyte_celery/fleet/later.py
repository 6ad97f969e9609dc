"""Future work: messages whose time has not come (retries with a back-off, `countdown`, `eta`), kept in Redis per queue.

A worker that claims such a message parks it (`Claims.park`) and forgets it. When it is due it goes back into its
queue, by whoever looks first: the queue's own workers know when that is and look in time, any other worker looks once
a second (`move_all_due`), so that a queue without workers shows its depth. Each step is one script, so at no instant is
a message in a process's memory alone.

Times are the server's, compared with the `eta` that the publisher wrote by its own clock, as Celery compares it with
the worker's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis

from .. import names
from .catalogue import priority_steps
from .messages import without_eta
from .scripts import script

#: Most messages that one script moves: a bound on how long it keeps the server busy.
MOST_AT_ONCE = 500


class Later:
    """The future work of one queue.

    Args:
        client: Where it is kept.
        queue: The queue.
        steps: Its priority steps.
    """

    def __init__(self, client: redis.Redis, queue: str, steps: tuple[int, ...] = names.PRIORITY_STEPS) -> None:
        self._client = client
        self._queue = queue
        self._steps = steps

    def due_command(self) -> tuple[Any, ...]:
        """The command that moves what is due; `until_next` reads its reply."""
        return script("due").command(*self._due_arguments())

    def _due_arguments(self) -> tuple[list[str], list[Any]]:
        keys = [
            names.later_key(self._queue),
            names.later_messages_key(self._queue),
            names.later_queues_key(),
            *names.priority_lists(self._queue, self._steps),
        ]
        return keys, [self._queue, MOST_AT_ONCE]

    def move_due(self) -> float | None:
        """Put what is due into the queue.

        Returns:
            Seconds until the next message is due; None when there is none.

        Raises:
            redis.RedisError: Redis does not answer, or refuses.
        """
        return until_next(script("due").run(self._client, *self._due_arguments()))

    def count(self) -> int:
        """How many messages wait for their time."""
        return int(self._client.zcard(names.later_key(self._queue)))

    def next_due(self) -> float | None:
        """When the next message is due, in seconds since the epoch; None when there is none."""
        first: Any = self._client.zrange(names.later_key(self._queue), 0, 0, withscores=True)
        return first[0][1] / 1000 if first else None

    def entries(self) -> list[tuple[str, float]]:
        """Task ids and when each is due, in seconds since the epoch, the next one first.

        Of several messages of one task all but the first have an id with something behind it.
        """
        found: Any = self._client.zrange(names.later_key(self._queue), 0, -1, withscores=True)
        return [(entry.decode(), due / 1000) for entry, due in found]

    def drop(self, entries: Iterable[str]) -> int:
        """Forget messages for good.

        Returns:
            How many there were.
        """
        pipe: Any = self._client.pipeline()
        for entry in entries:
            pipe.zrem(names.later_key(self._queue), entry)
            pipe.hdel(names.later_messages_key(self._queue), entry)
        return int(sum(pipe.execute()[::2]))

    def hurry(self, entries: Iterable[str]) -> int:
        """Make messages due now: they lose the time that they were given.

        Returns:
            How many there were.
        """
        key, messages_key, wanted = names.later_key(self._queue), names.later_messages_key(self._queue), list(entries)

        def change(pipe: Any) -> int:
            kept: list[bytes | None] = pipe.hmget(messages_key, wanted) if wanted else []
            found = {entry: message for entry, message in zip(wanted, kept, strict=True) if message is not None}
            pipe.multi()
            for entry, message in found.items():
                number, _, text = message.partition(b":")
                pipe.hset(messages_key, entry, number + b":" + without_eta(text))
                pipe.zadd(key, {entry: 0}, xx=True)
            pipe.zadd(names.later_queues_key(), {self._queue: 0}, xx=True)
            return len(found)

        return int(self._client.transaction(change, key, messages_key, value_from_callable=True))  # type: ignore[arg-type]

    def bring_forward(self, task_ids: Iterable[str]) -> int:
        """Let workers take messages now that were revoked: one that knows so tells their callers, others park them.

        Returns:
            How many there were.
        """
        pipe: Any = self._client.pipeline(transaction=False)
        for task_id in task_ids:
            pipe.zadd(names.later_key(self._queue), {task_id: 0}, xx=True, ch=True)
        found = sum(pipe.execute())
        if found:
            self._client.zadd(names.later_queues_key(), {self._queue: 0}, xx=True)
        return int(found)


def until_next(reply: Any) -> float | None:
    """Seconds until the next message is due, from the reply to `Later.due_command`; None when there is none."""
    return None if reply < 0 else reply / 1000


def move_all_due(client: redis.Redis) -> None:
    """Put what is due into its queue, of every queue of this server.

    Raises:
        redis.RedisError: Redis does not answer, or refuses. What it refuses for one queue holds up no other.
    """
    now: Any = client.time()
    queues: Any = client.zrangebyscore(names.later_queues_key(), "-inf", now[0] * 1000 + now[1] // 1000)
    refused: dict[str, redis.ResponseError] = {}
    for queue in [each.decode() for each in queues]:
        try:
            Later(client, queue, priority_steps(client, queue)).move_due()
        except redis.ResponseError as exc:
            refused[queue] = exc
    if refused:
        raise redis.ResponseError("; ".join(f"{queue}: {exc}" for queue, exc in refused.items()))
