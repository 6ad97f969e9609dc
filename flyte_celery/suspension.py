"""A task that waits for its children holds no slot: whatever waits says so here, and a replica acts on it.

Outside of tasks, and in local runs, waiting is nobody's business and nothing happens.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Protocol

from .context import RunContext, current_run

#: Tells the ids of the tasks whose results are waited for, any one of which ends the wait.
Awaited = Callable[[], Iterable[str]]


class Suspender(Protocol):
    """What a replica does about waiting tasks. For the arguments see `waiting`."""

    def blocking(
        self, run: RunContext, interrupt: Callable[[], object], awaited: Awaited | None
    ) -> contextlib.AbstractContextManager[None]:
        """Around a wait of a thread."""
        ...

    def awaiting(
        self, run: RunContext, interrupt: Callable[[], object], awaited: Awaited | None
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Around a wait of a coroutine."""
        ...


_suspender: Suspender | None = None


def set_suspender(suspender: Suspender | None) -> None:
    """Have a replica's means used by this process; None ends that."""
    global _suspender
    _suspender = suspender


def waiting(interrupt: Callable[[], object], awaited: Awaited | None = None) -> contextlib.AbstractContextManager[None]:
    """Give the current task's slot away while this thread waits; when it ends the task has a slot again.

    Args:
        interrupt: Ends the wait early, from any thread: the task is cancelled, or would wait for ever.
        awaited: Asked, by any thread, once the wait has lasted: whose end ends it. None for a wait that ends in any
            case, such as one with a time-out.

    Raises:
        flyte_celery.errors.StarvationError: On entering, too many tasks of the replica wait already; on leaving, the
            wait would never have ended, because what is awaited waits for this task.
    """
    run = current_run.get()
    if _suspender is None or run is None:
        return contextlib.nullcontext()
    return _suspender.blocking(run, interrupt, awaited)


def awaiting(
    interrupt: Callable[[], object], awaited: Awaited | None = None
) -> contextlib.AbstractAsyncContextManager[None]:
    """The same around what a coroutine awaits. A task that awaits several children at once waits until the last.

    Raises:
        flyte_celery.errors.StarvationError: As `waiting`.
    """
    run = current_run.get()
    if _suspender is None or run is None:
        return contextlib.nullcontext()
    return _suspender.awaiting(run, interrupt, awaited)


# A process that a task forks is no replica: its waits are nobody's business, and the pipe to the worker is not its own.
os.register_at_fork(after_in_child=lambda: set_suspender(None))
