"""A run that was submitted: Flyte's handle, around Celery's result."""

from __future__ import annotations

import logging
import os
from typing import Any

import redis
from celery import states

from ..fleet.begun import begun
from ..fleet.connection import connect_to_broker
from ..settings import Settings
from ..task import TaskTemplate
from .dispatch import CeleryDispatcher, value_of
from .results import Meta, is_known, outcome, wait_for
from .run_handle import ActionPhase, Run, not_ended
from .waits import check_blocking

logger = logging.getLogger("flyte_celery")

_ENDED = {
    states.SUCCESS: ActionPhase.SUCCEEDED,
    states.FAILURE: ActionPhase.FAILED,
    states.REVOKED: ActionPhase.ABORTED,
}

#: States that do not tell whether a replica has the task: most tasks store none when they begin.
_UNTOLD = frozenset({states.PENDING, states.RECEIVED, states.RETRY, states.REJECTED})


class RemoteRun(Run):
    """A submitted run."""

    def __init__(self, dispatcher: CeleryDispatcher, task: TaskTemplate[Any, Any], result: Any) -> None:
        self._dispatcher = dispatcher
        self._task = task
        self.result = result

    @property
    def name(self) -> str:
        """The task's id."""
        return self.id

    @property
    def url(self) -> str | None:
        """The run's page in Flower, where the setting `flower_url` says where that is."""
        flower = Settings.from_environ(os.environ).flower_url
        return f"{flower.rstrip('/')}/task/{self.id}" if flower else None

    @property
    def phase(self) -> ActionPhase:
        """Where the run is now. Without Redis as the broker, one that has stored no state counts as queued."""
        state = states.SUCCESS if self.result.ignored else self.result.state
        if state in _ENDED:
            return _ENDED[state]
        if state in _UNTOLD and not self._has_begun():
            return ActionPhase.QUEUED
        return ActionPhase.RUNNING

    def _has_begun(self) -> bool:
        if (client := connect_to_broker(self._dispatcher.app)) is None:
            return False
        try:
            return bool(begun(client, [self.id]))
        except redis.RedisError as exc:
            logger.warning("Whether %s runs cannot be looked up: %s", self.id, exc)
            return False
        finally:
            client.close()

    @property
    def cached(self) -> bool:
        """Whether its value came from the cache. False as long as it has not ended."""
        return bool(self.result.cached)

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return is_known(self.result) or bool(self.result.ready())

    def revoke(self, **options: Any) -> None:
        """Celery's `revoke`, with its options: without `terminate=True` a run that has begun goes on."""
        self.result.revoke(**options)

    def _stop(self, reason: str) -> None:
        """End the run, wherever it is."""
        logger.info("Aborting %s: %s", self.id, reason)
        # Celery's `revoke` has no room for the reason; its workers ignore what they do not know.
        arguments = {"task_id": self.id, "terminate": True, "signal": "SIGTERM", "reason": reason}
        self._dispatcher.app.control.broadcast("revoke", arguments=arguments)

    def _end(self, timeout: float | None) -> Meta:
        if not is_known(self.result):
            check_blocking(f"A wait for {self.id}")
        try:
            return wait_for(self.result, timeout)
        except TimeoutError:
            raise not_ended(timeout) from None

    async def _end_aio(self) -> Meta:
        return await outcome(self.result)

    def _value(self, meta: Meta) -> Any:
        return value_of(self._task, meta)

    def __repr__(self) -> str:
        return f"<Run {self._task.name} {self.id}>"
