"""Celery's events of an environment's worker, for which nobody waits while Redis does not answer.

Celery publishes its heartbeat from the event loop, again and again until the broker takes it: no task would be ended
at its limit meanwhile, no signal be noticed. A heartbeat that cannot be told is worth nothing later.
"""

from __future__ import annotations

from typing import Any, ClassVar

from celery.events.dispatcher import EventDispatcher
from celery.events.event import group_from
from kombu.utils.imports import symbol_by_name

from .keeper import Keeper


class PromptDispatcher(EventDispatcher):
    """Publishes each event in one attempt, and none while Redis is away."""

    #: The keeper of this worker process, which knows whether Redis is away.
    keeper: ClassVar[Keeper]

    def send(self, type: str, *args: Any, retry: bool = False, **fields: Any) -> Any:
        """Publish an event. Those that are published many at once wait; others are dropped while Redis is away."""
        if self.keeper.away and group_from(type) not in self.buffer_group:
            return None
        return super().send(type, *args, retry=False, **fields)

    def flush(self, *args: Any, **kwargs: Any) -> Any:
        """Publish what waits, unless Redis is away."""
        return None if self.keeper.away else super().flush(*args, **kwargs)


def wait_for_no_event(app: Any, keeper: Keeper) -> None:
    """Have the events of a worker's app published at once or not at all; call it before there are any."""
    PromptDispatcher.keeper = keeper
    celerys: Any = symbol_by_name(app.events.dispatcher_cls)
    if not issubclass(celerys, PromptDispatcher):
        app.events.dispatcher_cls = type("Dispatcher", (PromptDispatcher, celerys), {})
