"""Arguments and results that are too large for a message: refused where they come from, with what to do instead."""

from __future__ import annotations

from typing import Any

from kombu.utils.json import dumps

from ..errors import InlineIOMaxBytesBreached

_SMALL = (int, float, bool, type(None))


def check_size(what: str, task_name: str, value: Any, most: int) -> None:
    """Refuse a value that is longer than a task allows, as JSON.

    Args:
        what: `"arguments"` or `"result"`.
        task_name: The task.
        value: JSON-native; what is not, by another serializer, is not measured.
        most: The task's `max_inline_io_bytes`.

    Raises:
        flyte_celery.errors.InlineIOMaxBytesBreached: Names the task, the size and the limit.
    """
    if isinstance(value, _SMALL):
        return
    try:
        size = len(dumps(value))
    except Exception:  # whoever sends it says what cannot be written
        return
    if size > most:
        raise InlineIOMaxBytesBreached(
            f"The {what} of {task_name} take {size} bytes, and its max_inline_io_bytes is {most}: pass a path or a key "
            "to where the data is, or raise the limit with @env.task(max_inline_io_bytes=...)."
        )
