"""What a worker and a replica say to each other, as plain tuples: they are pickled for every task.

Worker to replica:

- `(RUN, job, task_name, task_id, request, body, content_type, content_encoding)`
- `(CANCEL, job, soft)`: end that task alone; `soft` is the soft time limit in seconds that it exceeded, or None.
- `(EXCEEDED, job, code, message)`: the task has run over a limit of its `timeout`: interrupt its body, whose attempt
  fails with that error.
- `(GO, job)`: a task that has waited for its children has a slot again.
- `(STOP,)`: run the shutdown hooks and exit. The worker sends it only when the replica owns no task.

Replica to worker:

- `(READY, seconds)`: start-up is finished and took that long.
- `(START_FAILED, error)`: start-up raised; the replica exits by itself.
- `(ACCEPTED, job, monotonic)`: the task has begun.
- `(SUSPENDED, job)`: the task waits for its children and needs no slot.
- `(RESUME, job)`: it waits no longer, and asks for one.
- `(DONE, job, outcome)`: an `OK`, `RAISED` or `CANCELLED` outcome, see `replica.execute`.
"""

from __future__ import annotations

from typing import Final

RUN: Final = 1
CANCEL: Final = 2
STOP: Final = 3
GO: Final = 4
EXCEEDED: Final = 5

READY: Final = 11
START_FAILED: Final = 12
ACCEPTED: Final = 13
DONE: Final = 14
SUSPENDED: Final = 15
RESUME: Final = 16

#: Outcome `(OK, failed, value, runtime)`: what Celery's tracer returned; `value` is the result's repr, or for a
#: failed task its pickled `ExceptionInfo`.
OK: Final = 0
#: Outcome `(RAISED, pickled ExceptionInfo)`: the tracer itself raised (`Reject`, `MemoryError`).
RAISED: Final = 1
#: Outcome `(CANCELLED,)`: the task was cancelled on the worker's request.
CANCELLED: Final = 2
