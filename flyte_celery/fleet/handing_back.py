"""Puts claims back into their queue, for the worker that owns them and for whoever finds it dead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis

from .. import names
from .messages import priority_of
from .scripts import script


def hand_back(
    client: redis.Redis, queue: str, worker: str, messages: Iterable[tuple[int, bytes]], steps: tuple[int, ...]
) -> int:
    """Put claimed messages back at the head of the queue, in the order in which they were claimed.

    Args:
        client: The Redis server of the queue.
        queue: The queue.
        worker: Who has claimed them.
        messages: Each claim's id, and the message to put back for it.
        steps: The queue's priority steps.

    Returns:
        How many went back; the others were no longer the worker's.
    """
    args: list[Any] = []
    for number, message in sorted(messages, reverse=True):  # the last one first: each goes before those already there
        args += [number, names.priority_index(priority_of(message), steps) + 1, message]
    keys = [names.claims_key(queue, worker), names.started_key(queue, worker), *names.priority_lists(queue, steps)]
    return int(sum(script("hand_back").run(client, keys, args)))
