"""What is checked before code waits for results inside a task."""

from __future__ import annotations

from .. import context
from ..errors import StarvationError, SyncTaskCallInAsyncContextError


def check_blocking(what: str) -> None:
    """A thread is about to wait.

    Args:
        what: Names the wait in the message, as in "get() of 1234".

    Raises:
        flyte_celery.errors.SyncTaskCallInAsyncContextError: It runs the event loop of an async task.
    """
    run = context.current_run.get()
    if run is not None and run.is_async and context.in_event_loop():
        raise SyncTaskCallInAsyncContextError(
            f"{what} blocks the event loop of the async task {run.task}; write `await result` instead, for several "
            "results `await asyncio.gather(*results)`."
        )


def check_circle(task_id: object) -> None:
    """The current task is about to wait for the result of another one.

    Raises:
        flyte_celery.errors.StarvationError: That one is the task itself, or waits for it, as its ancestors do.
    """
    run = context.current_run.get()
    if run is None:
        return
    for place, waiting in enumerate(run.chain):
        if waiting.endswith(f"[{task_id}]"):
            raise StarvationError(circle(run.chain[place:]))


def circle(chain: tuple[str, ...]) -> str:
    """What to say of tasks of which each waits for the next one, and the last for the first."""
    if len(chain) == 1:
        return f"{chain[0]} waits for its own result, which would never end: wait for results of your own calls."
    return (
        f"{chain[-1]} waits for the result of {chain[0]}, which waits for it: {shown(chain)} > {chain[0]}. "
        "None of them would ever end: wait for results of your own calls."
    )


#: Most tasks at each end of a chain that a message names.
_NAMED = 5


def shown(chain: tuple[str, ...]) -> str:
    """A chain of waiting tasks for a message, which each of them quotes when it fails: its ends, and how many more."""
    left_out = len(chain) - 2 * _NAMED
    if left_out > 1:
        chain = (*chain[:_NAMED], f"{left_out} more", *chain[-_NAMED:])
    return " > ".join(chain)
