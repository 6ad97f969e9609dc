"""Why tasks were revoked: `run.abort(reason)` tells the workers, and what they store as the end of the task has it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

#: Reasons that a process remembers: a task may end long after it was revoked.
_MOST = 1000

_reasons: OrderedDict[str, str] = OrderedDict()


def note_reason(task_id: str, reason: str) -> None:
    """Remember in this process why a task was revoked."""
    _reasons[task_id] = reason
    while len(_reasons) > _MOST:
        _reasons.popitem(last=False)


class TellsReasons:
    """Mixed into result backends."""

    def mark_as_revoked(self, task_id: str, reason: str = "", *args: Any, **options: Any) -> None:
        """Record that a task was revoked, with the reason that was given for it in place of Celery's."""
        super().mark_as_revoked(task_id, _reasons.get(task_id, reason), *args, **options)  # type: ignore[misc]
