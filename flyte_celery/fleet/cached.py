"""The cache of results in Redis, beside the results themselves: entries, when they were used, and what they take.

An entry is a copy of a result in Celery's own form, made in the step that stores the result (script `store`), so that
a caller who has the result finds the entry. All of it is dispensable: an entry that is lost is computed again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoScriptError

from .. import names
from .scripts import script
from .storing import Store

#: Bytes that Redis takes to keep an entry, besides its text and three times its name.
_OVERHEAD = 300

#: Entries that one command of a listing asks for.
_AT_ONCE = 500


class Place(NamedTuple):
    """Where a result is cached."""

    environment: str
    task: str
    member: str
    """`task:hash`"""

    @property
    def entry(self) -> str:
        """Its key, and the channel of those who wait for it."""
        return names.cached_key(self.member)

    @property
    def computing(self) -> str:
        """Key of who computes it."""
        return names.computing_key(self.member)

    @property
    def books(self) -> list[str]:
        """Keys of what is known of the environment's cache."""
        return [
            names.cache_uses_key(self.environment),
            names.cache_entries_key(self.environment),
            names.cache_counts_key(self.environment),
        ]


@dataclass(frozen=True, slots=True)
class Found:
    """What the cache answers."""

    #: The result in Celery's own form; None where it is not there.
    payload: bytes | None = None
    #: Who computes it now: a task's id, `""` for the one that asked for the right to; None where nobody asked.
    computed_by: str | None = None
    #: Seconds until that right is over unless it is renewed.
    for_seconds: float = 0.0

    @classmethod
    def of(cls, answer: Any) -> Found:
        """The answer of the script `find`."""
        if isinstance(answer, list):
            return cls(None, as_text(answer[0]), max(answer[1], 0) / 1000)
        if answer is None:
            return cls()
        return cls(None, "") if answer == 0 else cls(answer)


def as_text(value: bytes | str) -> str:
    """What Redis gives for a name, as text."""
    return value.decode() if isinstance(value, bytes) else value


def look_up(
    place: Place, max_age: float | None, expires: int, *, asks: str = "", lease: float = 0.0
) -> tuple[list[str], list[Any]]:
    """What the script `find` is called with.

    Args:
        place: Where to look.
        max_age: Seconds after which an entry is too old, None for never.
        expires: Seconds to keep a result that has expired under its own id, 0 for ever.
        asks: A task's id that wants to compute what is not there, `""` for none.
        lease: Seconds for which it gets the right to.
    """
    keys = [place.entry, *place.books, place.computing]
    age = "" if max_age is None else int(max_age * 1000)
    return keys, [place.member, place.task, age, expires, asks, max(1, int(lease * 1000))]


def find(client: Any, looks: Sequence[tuple[list[str], list[Any]]]) -> list[Found]:
    """Look up several results in one round trip.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    if len(looks) == 1:
        return [Found.of(script("find").run(client, *looks[0]))]
    pipe = client.pipeline(transaction=False)
    for look in looks:
        pipe.execute_command(*script("find").command(*look))
    try:
        return [Found.of(answer) for answer in pipe.execute()]
    except NoScriptError:
        client.script_load(script("find").text)
        return find(client, looks)


@dataclass(frozen=True, slots=True)
class Keep:
    """How a result that is about to be stored goes into the cache."""

    place: Place
    task_id: str
    #: Seconds.
    ttl: float
    #: Seconds that what is known of the cache outlives its last entry.
    books_ttl: float
    most_bytes: int
    most_bytes_of_result: int

    #: Called when the result is too large to be kept.
    refused: Callable[[], object] | None = None

    def added_to(self, write: Store) -> Store:
        """What the script `store` is told then; the same as before for a result that is too large."""
        payload = write.payload
        size = len(payload if isinstance(payload, bytes) else payload.encode())
        overhead = _OVERHEAD + 3 * len(self.place.member)
        if size > self.most_bytes_of_result or size + overhead > self.most_bytes or self.ttl <= 0:
            if self.refused is not None:
                self.refused()
            return write
        place = self.place
        times = [max(1, int(seconds * 1000)) for seconds in (self.ttl, self.ttl + self.books_ttl)]
        kept = ["cache", place.member, place.task, self.task_id, *times, self.most_bytes, overhead]
        return write._replace(
            keys=[*write.keys, place.entry, *place.books, place.computing], args=[*write.args[:-1], *kept]
        )


def renew(client: Any, place: Place, task_id: str, lease: float) -> bool:
    """Keep the right to compute a result; False where another task has it."""
    keys = [place.computing, place.entry]
    return bool(script("computing").run(client, keys, [task_id, max(1, int(lease * 1000)), ""]))


def give_up(client: Any, place: Place, task_id: str, news: str | bytes) -> bool:
    """Leave a result to others, who are told by `news`, a final result of no task; False where another one has it."""
    return bool(script("computing").run(client, [place.computing, place.entry], [task_id, 0, news]))


@dataclass(slots=True)
class TaskCounts:
    """What is in the cache of one task, and what it has done."""

    entries: int = 0
    #: With what Redis needs besides.
    bytes: int = 0
    #: Calls that were answered from it.
    hits: int = 0
    #: Results that were put into it.
    stored: int = 0


@dataclass(slots=True)
class EnvironmentCounts:
    """The cache of one environment."""

    tasks: dict[str, TaskCounts] = field(default_factory=dict)
    #: Entries that made room for others.
    evicted: int = 0


class EnvironmentCache:
    """The cache of one environment, as an operator sees it.

    Args:
        client: The Redis that keeps the results.
        environment: Its name.
    """

    def __init__(self, client: redis.Redis, environment: str) -> None:
        self._client: Any = client
        self._books = Place(environment, "", "").books

    def counts(self) -> EnvironmentCounts:
        """What is there, by task."""
        _, entries, counts = self._books
        found = EnvironmentCounts()
        of_tasks: Counter[tuple[str, str]] = Counter()
        for name, value in self._client.hgetall(counts).items():
            what, _, task = as_text(name).partition(":")
            if what == "evicted":
                found.evicted = int(value)
            elif task:
                of_tasks[task, what] = int(value)
        for (task, what), value in of_tasks.items():
            setattr(found.tasks.setdefault(task, TaskCounts()), what, value)
        for batch in self._batches(None):
            known = self._client.hmget(entries, batch)
            pipe = self._client.pipeline(transaction=False)
            for member in batch:
                pipe.exists(names.cached_key(member))
            for member, value, there in zip(batch, known, pipe.execute(), strict=True):
                if value and there:
                    of_task = found.tasks.setdefault(member.rpartition(":")[0], TaskCounts())
                    of_task.entries += 1
                    of_task.bytes += int(as_text(value).split(" ", 2)[1])
        return found

    def clear(self, task: str | None = None) -> int:
        """Forget all results, or those of one task; returns how many there were. What was counted stays."""
        return sum(
            int(script("uncache").run(self._client, [*self._books, *map(names.cached_key, batch)], batch))
            for batch in self._batches(task)
        )

    def _batches(self, task: str | None) -> Iterator[list[str]]:
        """Names of entries, also of those that Redis has expired."""
        members = map(as_text, self._client.zrange(self._books[0], 0, -1))
        wanted = [member for member in members if task is None or member.rpartition(":")[0] == task]
        for start in range(0, len(wanted), _AT_ONCE):
            yield wanted[start : start + _AT_ONCE]
