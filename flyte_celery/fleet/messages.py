"""What a message in a queue tells about its own past: how often its start was lost, and since when it waits elsewhere.

kombu's Redis transport keeps a message as JSON, with `properties` that are the transport's own and that no retry or
child task inherits. That is kept there: it moves with the message, from one atomic step to the next, so it
survives every worker and needs no bookkeeping beside the queue.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

_ATTEMPTS = "flyte_celery_attempts"
_CAUSE = "flyte_celery_lost_to"
_PASSED_ON = "flyte_celery_passed_on"


def attempts_of(properties: dict[str, Any]) -> tuple[int, str]:
    """How many starts of a message were lost, and what the last one was lost to; `(0, "")` for a new message."""
    attempts, cause = properties.get(_ATTEMPTS), properties.get(_CAUSE)
    return (attempts if isinstance(attempts, int) else 0), (cause if isinstance(cause, str) else "")


def lost_once_more(message: bytes, cause: str) -> bytes:
    """The message after a start of it was lost; what is no message stays as it is, for Celery to say what is wrong."""

    def count(payload: dict[str, Any]) -> None:
        properties = payload["properties"]
        properties[_ATTEMPTS] = attempts_of(properties)[0] + 1
        properties[_CAUSE] = cause
        # What kombu sets on a message that it delivers again; Celery's own deduplication looks at it.
        properties.setdefault("delivery_info", {})["redelivered"] = True

    return _changed(message, count)


def forgiven(message: bytes) -> bytes:
    """The message as if no start of it had been lost."""

    def forget(payload: dict[str, Any]) -> None:
        payload["properties"].pop(_ATTEMPTS, None)
        payload["properties"].pop(_CAUSE, None)

    return _changed(message, forget)


def passed_on(message: bytes) -> tuple[bytes, float]:
    """The message as one that was passed on, and when it was first, in milliseconds since the epoch."""
    found = [time.time() * 1000]

    def note(payload: dict[str, Any]) -> None:
        found[0] = float(payload["properties"].setdefault(_PASSED_ON, found[0]))

    return _changed(message, note), found[0]


def without_eta(message: bytes) -> bytes:
    """The message as if it had been submitted without a time."""

    def forget(payload: dict[str, Any]) -> None:
        payload["headers"]["eta"] = None

    return _changed(message, forget)


def priority_of(message: bytes) -> int:
    """The message's priority, 0 when it does not tell."""
    try:
        return int(json.loads(message)["properties"].get("priority") or 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0


def headers_of(message: bytes) -> dict[str, Any]:
    """The message's headers, empty when it has none that can be read."""
    try:
        return dict(json.loads(message)["headers"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def task_id_of(message: bytes) -> str:
    """The id of the message's task, empty when it does not tell."""
    try:
        return str(json.loads(message)["headers"].get("id") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


def _changed(message: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    try:
        payload = json.loads(message)
        change(payload)
    except (ValueError, KeyError, TypeError, AttributeError):
        return message
    return json.dumps(payload).encode()
