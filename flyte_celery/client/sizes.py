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
        ValueError: It holds an integer with more digits than Python writes.
    """
    if isinstance(value, _SMALL):
        return
    try:
        size = len(dumps(value))
    except Exception as exc:
        if isinstance(exc, ValueError) and "int_max_str_digits" in str(exc):
            problem = f"cannot be written: {str(exc).partition(';')[0]}. Pass large integers as text, as in hex(number)"
            raise ValueError(f"The {what} of {task_name} {problem}.") from None
        return  # whoever sends it says what cannot be written
    if size > most:
        takes = "takes" if what == "result" else "take"
        raise InlineIOMaxBytesBreached(
            f"The {what} of {task_name} {takes} {size} bytes, and its max_inline_io_bytes is {most}: pass a path or "
            "a key to where the data is, or raise the limit with @env.task(max_inline_io_bytes=...)."
        )
