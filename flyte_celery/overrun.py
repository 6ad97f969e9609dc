"""Bodies that ran over a limit of their task's `timeout`, in the process that runs them.

A replica hears from its worker that a limit was exceeded, notes it here and interrupts the body: `CancelledError` for a
coroutine, Celery's `SoftTimeLimitExceeded` for a sync body. Whatever the body then does, the attempt has failed with
the limit's error; `watched` sees to that.
"""

from __future__ import annotations

import threading
from asyncio import CancelledError
from types import TracebackType
from typing import Self

from .errors import TaskTimeoutError

_lock = threading.Lock()
_exceeded: dict[str, TaskTimeoutError] = {}
_bodies: set[str] = set()


def note(task_id: str, error: TaskTimeoutError) -> bool:
    """A task has run over a limit; says whether its body runs, and so is to be interrupted."""
    with _lock:
        _exceeded.setdefault(task_id, error)
        return task_id in _bodies


def in_body(task_id: str) -> bool:
    """Whether a task's body runs right now."""
    return task_id in _bodies


def forget(task_id: str) -> None:
    """The task has ended."""
    with _lock:
        _exceeded.pop(task_id, None)


class watched:  # reads like a function, as the context managers of the standard library do
    """Around a task's body: raises the error of the limit that it has exceeded in place of what the body did.

    Args:
        task_id: The task.
        passing: What the body may raise all the same: it says that the attempt's outcome is settled.

    Raises:
        flyte_celery.errors.TaskTimeoutError: The limit; what the body raised itself is its `__context__`.
    """

    def __init__(self, task_id: str, passing: tuple[type[BaseException], ...] = ()) -> None:
        self._task_id = task_id
        self._passing = passing

    def __enter__(self) -> Self:
        with _lock:
            if (error := _exceeded.pop(self._task_id, None)) is None:
                _bodies.add(self._task_id)
                return self
        raise error

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None) -> None:
        with _lock:
            _bodies.discard(self._task_id)
            error = _exceeded.pop(self._task_id, None)
        if error is None or isinstance(exc, self._passing):
            return
        # What else is no `Exception` ends the task from outside, and its outcome is recorded already.
        if exc is None or isinstance(exc, Exception | CancelledError | SystemExit):
            raise error
