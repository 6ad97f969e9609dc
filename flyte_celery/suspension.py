"""A task that waits for its children holds no slot: whatever waits says so here, and a replica acts on it.

Outside of tasks, and in local runs, waiting is nobody's business and nothing happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

from .context import RunContext, current_run


class Suspender(Protocol):
    """What a replica does about waiting tasks."""

    def blocking(self, run: RunContext, interrupt: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
        """Around a wait of a sync task's thread, which `interrupt` ends early."""
        ...

    def awaiting(self, run: RunContext) -> contextlib.AbstractAsyncContextManager[None]:
        """Around a wait of a coroutine."""
        ...


_suspender: Suspender | None = None


def set_suspender(suspender: Suspender) -> None:
    """Have a replica's means used by this process."""
    global _suspender
    _suspender = suspender


def waiting(interrupt: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """Give the current task's slot away while this thread waits; when it ends the task has a slot again.

    Args:
        interrupt: Ends the wait early, from any thread: the task is cancelled.

    Raises:
        flyte_celery.errors.StarvationError: On entering; too many tasks of the replica wait already.
    """
    run = current_run.get()
    return contextlib.nullcontext() if _suspender is None or run is None else _suspender.blocking(run, interrupt)


def awaiting() -> contextlib.AbstractAsyncContextManager[None]:
    """The same around what a coroutine awaits. A task that awaits several children at once waits until the last.

    Raises:
        flyte_celery.errors.StarvationError: On entering; too many tasks of the replica wait already.
    """
    run = current_run.get()
    return contextlib.nullcontext() if _suspender is None or run is None else _suspender.awaiting(run)
