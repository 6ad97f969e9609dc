"""Dead letters: messages that were given up because each start of them was lost with its replica or worker.

The task's failure is recorded for its caller, the message is kept here until an operator requeues or drops it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis

from .. import names
from .catalogue import priority_steps
from .messages import forgiven, priority_of
from .scripts import script


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message that was given up."""

    task_id: str
    task: str
    attempts: int
    #: What the last start was lost to, in words.
    cause: str
    #: Worker that gave it up.
    worker: str
    #: When, in seconds since the epoch by that worker's clock.
    at: float
    message: bytes

    def encoded(self) -> str:
        """As it is kept in Redis."""
        # Any bytes survive as Latin-1, also those of a message that is no text.
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({**fields, "message": self.message.decode("latin-1")})

    @classmethod
    def decoded(cls, data: bytes) -> DeadLetter:
        """From what is kept in Redis."""
        fields = json.loads(data)
        return cls(**{**fields, "message": fields["message"].encode("latin-1")})


class DeadLetters:
    """The dead letters of one queue.

    Args:
        client: Where they are kept.
        queue: The queue.
    """

    def __init__(self, client: redis.Redis, queue: str) -> None:
        self._client = client
        self._queue = queue

    def count(self) -> int:
        """How many there are."""
        return int(self._client.llen(names.dead_key(self._queue)))

    def __iter__(self) -> Any:
        """Each letter, oldest first."""
        for _, letter in self._found(None):
            yield letter

    def requeue(self, ids: Iterable[str] | None) -> list[DeadLetter]:
        """Put messages back into the queue, behind what waits there, with all their attempts.

        Args:
            ids: Ids of tasks; None for all.

        Returns:
            The letters of what went back, oldest first.
        """
        steps = priority_steps(self._client, self._queue)
        lists = names.priority_lists(self._queue, steps)
        back = []
        for data, letter in self._found(ids):
            into = lists[names.priority_index(priority_of(letter.message), steps)]
            keys = [names.dead_key(self._queue), into]
            if script("revive").run(self._client, keys, [data, forgiven(letter.message)]):
                back.append(letter)
        return back

    def drop(self, ids: Iterable[str] | None) -> list[DeadLetter]:
        """Forget messages for good.

        Args:
            ids: Ids of tasks; None for all.

        Returns:
            The letters that were dropped, oldest first.
        """
        key = names.dead_key(self._queue)
        return [letter for data, letter in self._found(ids) if self._client.lrem(key, 1, data)]  # type: ignore[arg-type]

    def _found(self, ids: Iterable[str] | None) -> list[tuple[bytes, DeadLetter]]:
        wanted = None if ids is None else set(ids)
        kept: list[bytes] = self._client.lrange(names.dead_key(self._queue), 0, -1)  # type: ignore[assignment]
        letters = [(data, DeadLetter.decoded(data)) for data in reversed(kept)]
        return [(data, letter) for data, letter in letters if wanted is None or letter.task_id in wanted]


def dead_letter(message: bytes, attempts: int, cause: str, worker: str) -> DeadLetter:
    """The dead letter of a message that is given up now."""
    try:
        headers = json.loads(message)["headers"]
        task_id, task = str(headers.get("id") or ""), str(headers.get("task") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        task_id = task = ""
    return DeadLetter(task_id, task, attempts, cause, worker, time.time(), message)
