"""Tasks that need what the host of the worker that claimed them cannot give: passed on, to workers of the same queue.

`task.override(resources=...)` may ask for a device, or for more cores or memory, than the next worker of the
environment has. That worker passes the message on (`Claims.pass_on`), and one whose host has what is needed, and a
place for it, claims it (`Claims.take`). Each step is one script, so at no instant is a message in a process's memory
alone. Nothing here holds a claim or a slot.

A need is what of `Resources` a host must have, and what the call asks of its replica besides, as canonical JSON: tasks
with equal needs may share a replica, and wait together, those with the higher priority first, then those that were
passed on first. A task that is revoked, expires or has waited too long is
over: any worker claims it then, and its caller is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from .. import names
from ..gpu.host import Host, in_words, lacking
from ..overrides import resources_received, resources_sent
from ..resources import Resources

#: What of `Resources` a host has or has not; what is kept on a disk or shared is nobody's bound.
_FIELDS = ("cpu", "memory", "gpu")


def need_of(resources: Resources, options: str = "{}") -> str:
    """The need of a call.

    Args:
        resources: What its replica is to have.
        options: What its override asks of the replica, see `overrides.replica_options`.
    """
    sent = resources_sent(resources)
    need = {field: sent[field] for field in _FIELDS if sent[field] is not None}
    return json.dumps({**need, "override": json.loads(options)}, sort_keys=True)


def resources_of(need: str) -> Resources | None:
    """The resources that a need asks for; None for one that this version cannot read."""
    try:
        return resources_received({field: json.loads(need).get(field) for field in _FIELDS})
    except Exception:
        return None


def in_words_of(need: str) -> str:
    """A need for people: the end of a sentence that begins with "it needs"."""
    resources = resources_of(need)
    return (in_words(resources) if resources is not None else "") or need


def offering(need: str, environment: str, offers: Iterable[dict[str, Any]]) -> list[str]:
    """The workers of an environment whose hosts have what is needed, by name, busy or not.

    Args:
        need: The need.
        environment: The environment's name.
        offers: What live workers' hosts offer, see `fleet.offers`.
    """
    if (resources := resources_of(need)) is None:
        return []
    found = []
    for offer in offers:
        try:
            if offer["environment"] == environment and not lacking(resources, Host.from_dict(offer)):
                found.append(str(offer["worker"]))
        except (LookupError, TypeError):  # of another version
            continue
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Unmet:
    """Tasks with one need that wait for a worker."""

    needs: str
    """What is needed, in words."""

    tasks: int
    """How many there are."""

    reason: str
    """Why they wait."""

    def __str__(self) -> str:
        return f"{self.tasks} task{'s need' if self.tasks > 1 else ' needs'} {self.needs}: {self.reason}"


def unmet(
    counts: Mapping[str, int],
    environment: str,
    offers: Iterable[dict[str, Any]],
    obstacle: Callable[[str], str] = lambda _: "",
) -> list[Unmet]:
    """Say of tasks that were passed on why they wait; those that need the same of a host are counted together.

    Args:
        counts: How many there are with each need.
        environment: The environment's name.
        offers: What live workers' hosts offer.
        obstacle: Says of a need what is in the way on the host that is asked; empty where that has not what is needed,
            or has a place.
    """
    there = list(offers)
    found: dict[str, Unmet] = {}
    for need, count in counts.items():
        words = in_words_of(need)
        before = found[words].tasks if words in found else 0
        if not (reason := obstacle(need)):
            workers = ", ".join(offering(need, environment, there))
            reason = f"{workers} could give that, and will when there is a place" if workers else ""
        found[words] = Unmet(words, before + count, reason or f"no worker of {environment!r} offers that")
    return list(found.values())


class Needs:
    """The tasks of one queue that were passed on.

    Args:
        client: Where they are kept.
        queue: The queue.
    """

    def __init__(self, client: redis.Redis, queue: str) -> None:
        self._client = client
        self._queue = queue

    def counts(self) -> dict[str, int]:
        """How many tasks there are with each need.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        found: Any = self._client.smembers(names.needs_key(self._queue))
        needs = sorted(each.decode() for each in found)
        pipe: Any = self._client.pipeline(transaction=False)
        for need in needs:
            pipe.zcard(names.need_key(self._queue, need))
        counts = dict(zip(needs, pipe.execute(), strict=True)) if needs else {}
        return {need: count for need, count in counts.items() if count}

    def entries(self) -> list[tuple[str, str]]:
        """Each task's id with its need; of several messages of one task all but the first have an id with more behind.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        kept: Any = self._client.hgetall(names.passed_on_key(self._queue))
        return sorted((entry.decode(), value.partition(b"\n")[0].decode()) for entry, value in kept.items())

    def first(self, need: str, most: int) -> list[bytes]:
        """The messages of the first tasks with a need.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        entries: Any = self._client.zrange(names.need_key(self._queue, need), 0, most - 1)
        messages: Any = self._client.hmget(names.passed_on_key(self._queue), entries) if entries else []
        return [kept.partition(b"\n")[2] for kept in messages if kept is not None]

    def drop(self, entries: Iterable[str]) -> int:
        """Forget tasks for good.

        Returns:
            How many there were.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        needs = dict(self.entries())
        dropped = 0
        for entry in entries:
            if (need := needs.get(entry)) is None:
                continue
            pipe: Any = self._client.pipeline()
            pipe.hdel(names.passed_on_key(self._queue), entry)
            pipe.zrem(names.need_key(self._queue, need), entry)
            pipe.zrem(names.passed_on_ends_key(self._queue), entry)
            dropped += pipe.execute()[0]
        return dropped

    def end(self, task_ids: Iterable[str]) -> None:
        """Let workers claim tasks now that were revoked: one that knows so tells their callers, others pass them on.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        pipe: Any = self._client.pipeline(transaction=False)
        wanted = list(task_ids)
        for task_id in wanted:
            pipe.hexists(names.passed_on_key(self._queue), task_id)
        there = [task_id for task_id, is_there in zip(wanted, pipe.execute(), strict=True) if is_there]
        if there:
            self._client.zadd(names.passed_on_ends_key(self._queue), dict.fromkeys(there, 0))
