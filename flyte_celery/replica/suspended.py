"""Tasks of this replica that wait for their children: they give their slot to the worker, and get one back from it.

```
RUNNING    --first wait--> SUSPENDED      the worker may send another task for the slot
SUSPENDED  --last wait over--> RESUMING   the worker is asked for a slot, before any new task gets one
RESUMING   --granted--> RUNNING
```
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import enum
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from ..context import RunContext
from ..errors import StarvationError
from . import wire
from .bridge import Abandoned
from .execute import Tell

#: Most waiting tasks that an error names.
NAMED = 10


class _State(enum.Enum):
    RUNNING = enum.auto()
    SUSPENDED = enum.auto()
    RESUMING = enum.auto()


@dataclass(slots=True)
class _Task:
    number: int
    id: str
    state: _State = _State.RUNNING
    #: Waits that are not over.
    waits: int = 0
    #: The task and those that wait for it, the first one first.
    chain: tuple[str, ...] = ()
    #: What its waits on threads end with.
    cancelled: type[BaseException] | None = None
    interrupts: list[Callable[[], object]] = field(default_factory=list)
    #: Whom to wake when a slot is granted.
    wake: list[Callable[[], object]] = field(default_factory=list)


class Suspended:
    """All tasks of one replica, by their ids.

    Args:
        tell: Sends to the worker, from any thread.
        most: Tasks that may wait at once.
    """

    def __init__(self, tell: Tell, most: int) -> None:
        self._tell = tell
        self._most = most
        self._lock = threading.Lock()
        self._tasks: dict[str, _Task] = {}
        self._numbered: dict[int, _Task] = {}

    def begun(self, task_id: str, number: int) -> None:
        """A task has come to this replica."""
        with self._lock:
            self._tasks[task_id] = self._numbered[number] = _Task(number, task_id)

    def ended(self, number: int) -> None:
        """A task has left it."""
        with self._lock:
            if (task := self._numbered.pop(number, None)) is not None and self._tasks.get(task.id) is task:
                del self._tasks[task.id]

    def granted(self, number: int) -> None:
        """The worker has given a slot back."""
        with self._lock:
            task = self._numbered.get(number)
            if task is None:
                return
            task.state = _State.RUNNING
            wake, task.wake = task.wake, []
            if task.waits:  # another wait has begun meanwhile, whose child may need this very slot
                self._suspend(task)
        for call in wake:
            call()

    def cancel(self, number: int, error: type[BaseException] = Abandoned) -> bool:
        """End the waits of a task that waits on a thread by raising `error` there; says whether it does."""
        with self._lock:
            task = self._numbered.get(number)
            if task is None or not task.interrupts:
                return False
            task.cancelled = error
            interrupts = list(task.interrupts)
        for interrupt in interrupts:
            interrupt()
        return True

    @contextlib.contextmanager
    def blocking(self, run: RunContext, interrupt: Callable[[], object]) -> Iterator[None]:
        """Around a wait of a sync task's thread."""
        task = self._begin(run)
        if task is None:
            yield
            return
        task.interrupts.append(interrupt)
        try:
            yield
        finally:
            task.interrupts.remove(interrupt)
            granted: concurrent.futures.Future[None] = concurrent.futures.Future()
            if self._end(task, lambda: granted.set_result(None)):
                granted.result()
            error, task.cancelled = task.cancelled, None
            if error is not None:
                raise error

    @contextlib.asynccontextmanager
    async def awaiting(self, run: RunContext) -> AsyncIterator[None]:
        """Around what a coroutine awaits."""
        task = self._begin(run)
        if task is None:
            yield
            return
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            loop.call_soon_threadsafe(_settle, granted)

        try:
            yield
        except asyncio.CancelledError:
            self._end(task, lambda: None)  # it may clean up at once
            raise
        except BaseException:
            if self._end(task, wake):
                await granted
            raise
        if self._end(task, wake):
            await granted

    def _begin(self, run: RunContext) -> _Task | None:
        with self._lock:
            task = self._tasks.get(run.task_id)
            if task is None:  # a local run inside a task, or a thread that outlives its task
                return None
            task.chain = run.chain
            if task.state is _State.RUNNING:
                self._check_bound(task)
                self._suspend(task)
            task.waits += 1
            return task

    def _suspend(self, task: _Task) -> None:
        task.state = _State.SUSPENDED
        self._tell((wire.SUSPENDED, task.number))

    def _end(self, task: _Task, wake: Callable[[], object]) -> bool:
        """A wait is over; says whether `wake` will be called when the task may go on."""
        with self._lock:
            task.waits -= 1
            if task.waits or task.state is _State.RUNNING:
                return False
            task.wake.append(wake)
            if task.state is _State.SUSPENDED:
                task.state = _State.RESUMING
                self._tell((wire.RESUME, task.number))
            return True

    def _check_bound(self, task: _Task) -> None:
        others = [other for other in self._tasks.values() if other.state is not _State.RUNNING]
        if len(others) < self._most:
            return
        named = "; ".join(" > ".join(other.chain) for other in itertools.islice(others, NAMED))
        more = f"; and {len(others) - NAMED} more" if len(others) > NAMED else ""
        raise StarvationError(
            f"{' > '.join(task.chain)} cannot wait for a child: {len(others)} tasks of its replica wait already, the "
            f"most that may ({named}{more}). Make fewer calls that wait for calls, allow more replicas, or raise "
            "FLYTE_CELERY_MAX_SUSPENDED."
        )


def _settle(granted: asyncio.Future[None]) -> None:
    if not granted.done():
        granted.set_result(None)
