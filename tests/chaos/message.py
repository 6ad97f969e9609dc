"""A task as any client pushes it to a queue, in any language: by one command that pushes it once, or not at all."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any


def message(name: str, task: str, args: tuple[Any, ...]) -> str:
    """The message of a task, as kombu keeps it in Redis.

    Args:
        name: The task's name.
        task: Its id, and its first argument.
        args: The other arguments.
    """
    body = base64.b64encode(json.dumps([(task, *args), {}, {}]).encode()).decode()
    queue = name.partition(".")[0]
    return json.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "py", "task": name, "id": task, "root_id": task},
            "properties": {
                "correlation_id": task,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )


def task_of(stored: bytes) -> str:
    """The id of the task in a message; an empty text when it has none."""
    try:
        return str(json.loads(stored)["headers"]["id"])
    except (ValueError, LookupError, TypeError):
        return ""
