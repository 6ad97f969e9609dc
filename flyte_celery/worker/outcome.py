"""How a task ended in its replica, told to Celery's request."""

from __future__ import annotations

import pickle
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback

from ..errors import RuntimeSystemError, RuntimeUserError
from ..replica import wire
from .job import Job


def report(job: Job, outcome: tuple[Any, ...], *, ending: bool) -> None:
    """Tell Celery's request.

    Args:
        job: The task.
        outcome: As in `replica.wire`.
        ending: Whether the worker has ended what ran, which goes back to the queue.
    """
    match outcome:
        case _ if job.terminated:
            pass  # Celery's request has recorded how it ended
        case (wire.OK, failed, value, runtime):
            job.on_done((failed, _load(value) if failed else value, runtime))
        case _ if ending:
            pass
        case (wire.RAISED, info):
            job.on_error(_load(info))
        case _:
            job.fail(RuntimeSystemError("Cancelled", f"The task {job.task_name} was cancelled from inside."))


def _load(pickled: bytes) -> Any:
    try:
        info = pickle.loads(pickled)
    except Exception as problem:
        return _info_of(RuntimeError(f"The task failed with an exception that this worker cannot read: {problem}"))
    exc = info.exception
    exc = exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
    if isinstance(exc, MemoryError):
        # Celery's request raises it anew, as if this process had run out of memory, and never finishes the message.
        return _info_of(RuntimeUserError("MemoryError", str(exc) or "The task ran out of memory."))
    return info


def _info_of(exc: Exception) -> ExceptionInfo:
    try:
        raise exc
    except type(exc):
        return ExceptionInfo()
