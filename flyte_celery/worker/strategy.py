"""How a worker takes a message of an environment's task: as Celery does, after a look at its shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default

from ..fleet.storing import NotOwnedError
from .pool import ReplicaPool


def checked(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., Any]:
    """Celery's default strategy, for messages of the shape that Celery's protocol (version 2) says.

    On others Celery 5.7 fails with a `TypeError`, `ValueError` or `KeyError` that ends the worker; the message goes
    back to the queue, so the next worker ends as well. Here such a message is logged and discarded, as Celery does
    with all others that are no task.
    """
    handle = default(task, app, consumer, **options)

    def take(message: Any, body: Any, *rest: Any, **more: Any) -> Any:
        if body is None:
            _check(message)
        if isinstance(consumer.pool, ReplicaPool):  # also for what is revoked, has expired or is refused right now
            consumer.pool.guard(message.properties, task.name)
        try:
            return handle(message, body, *rest, **more)
        except NotOwnedError:
            return None  # others run the task, and say how it ends

    return take


def _check(message: Any) -> None:
    match payload := message.payload:
        case [list(), dict(), dict() | None]:
            _check_headers(message.headers)
        case dict() if "args" in payload:  # version 1, which Celery checks itself
            return
        case _:
            raise InvalidTaskError(f"its body is not [args, kwargs, options], but {payload!r:.200}")


def _check_headers(headers: Any) -> None:
    match headers:
        case {"id": str()}:
            pass
        case _:
            raise InvalidTaskError(f"it has no task id, but the headers {headers!r:.200}")
    match headers.get("timelimit"), headers.get("retries"):
        case (None | [_, _], None | int()):
            return
        case limits, retries:
            raise InvalidTaskError(f"its headers timelimit={limits!r:.200} and retries={retries!r:.200} do not fit")
