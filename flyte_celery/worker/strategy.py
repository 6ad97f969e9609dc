"""How a worker takes a message of an environment's task: as Celery does, after a look at its body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default


def checked(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., Any]:
    """Celery's default strategy, for bodies that are what Celery's message protocol says.

    On a body that is neither a list nor a mapping (an empty one, say) Celery 5.7 fails with a `TypeError` that ends
    the worker; the message goes back to the queue, so the next worker ends as well. Like every other message that is
    no task, it is logged and discarded instead.
    """
    handle = default(task, app, consumer, **options)

    def take(message: Any, body: Any, *rest: Any, **more: Any) -> Any:
        if body is None and not isinstance(message.payload, list | tuple | dict):
            raise InvalidTaskError(f"its body is no list of arguments, but {message.payload!r:.200}")
        return handle(message, body, *rest, **more)

    return take
