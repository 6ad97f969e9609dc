"""Whether runs are over: their root tasks' results tell, where those are in Redis."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import redis
from celery import states
from celery.backends.redis import RedisBackend
from celery.utils.log import get_logger

from ..fleet.connection import connect

logger = get_logger("flyte_celery.worker")

#: Seconds before Redis is asked again that did not answer: the worker's event loop waits for it.
PAUSE = 10.0


class Roots:
    """Looks for results of root tasks in an app's result backend.

    Args:
        app: The worker's Celery app.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._client: redis.Redis | None = None
        self._not_before = 0.0

    def ended(self, runs: Collection[str]) -> set[str] | None:
        """Those whose root task has ended, in one round trip; None when nobody can tell."""
        backend = self._app.backend
        if not isinstance(backend, RedisBackend) or time.monotonic() < self._not_before:
            return None
        if self._client is None:
            conf = self._app.conf
            # Not the backend's own client, which waits two minutes for an answer.
            self._client = connect(
                conf.result_backend, conf.redis_backend_use_ssl, conf.result_backend_transport_options
            )
            if self._client is None:
                return None
        asked = list(runs)
        try:
            found: Any = self._client.mget([backend.get_key_for_task(run) for run in asked])
        except redis.RedisError as exc:
            logger.warning("Whether runs are over cannot be looked up: %s", exc)
            self._not_before = time.monotonic() + PAUSE
            return None
        return {run for run, payload in zip(asked, found, strict=True) if payload and self._is_final(backend, payload)}

    def _is_final(self, backend: Any, payload: bytes) -> bool:
        try:
            return backend.decode(payload)["status"] in states.READY_STATES
        except Exception as exc:  # in a form of somebody else's
            logger.debug("A root's result cannot be read: %r", exc)
            return False
