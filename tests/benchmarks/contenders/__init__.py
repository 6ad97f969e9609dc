"""The task queues under comparison, each a module with its app and a `contender`; the first two are the yardsticks."""

from __future__ import annotations

#: Name of the module and of the contender, in the order of the table.
NAMES = ("ours", "stock", "dramatiq", "taskiq", "rq")
