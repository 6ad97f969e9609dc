"""When a message may run: its `eta` header, as Celery reads it."""

from __future__ import annotations

from typing import Any

from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker import state as worker_state


def due_at(message: dict[str, Any]) -> float | None:
    """When a message, as kombu has it, is due, in seconds since the epoch; a time without a zone is one in UTC.

    Returns:
        None for a message that is to be handed to Celery at once: it has no such time, or one that Celery will complain
        of, or its task was revoked, which Celery then tells its caller.
    """
    headers = message.get("headers")
    if not isinstance(headers, dict) or not (eta := headers.get("eta")) or headers.get("id") in worker_state.revoked:
        return None
    try:
        when: Any = maybe_iso8601(eta)
        return float(maybe_make_aware(when).timestamp())
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None
