"""Celery's stacks of the tasks that run, which it keeps for each thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from celery._state import _task_stack


@contextlib.contextmanager
def working_for(task: Any, request: Any) -> Iterator[None]:
    """Have Celery know on this thread which task the code works for, and with what request; None for no task."""
    if task is None:
        yield
        return
    _task_stack.push(task)
    task.request_stack.push(request)
    try:
        yield
    finally:
        task.request_stack.pop()
        _task_stack.pop()
