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
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from ..client.waits import shown
from ..context import RunContext
from ..errors import StarvationError
from ..suspension import Awaited
from . import wire
from .bridge import Abandoned
from .execute import Tell

#: Most waiting tasks that an error names.
NAMED = 5


class _State(enum.Enum):
    RUNNING = enum.auto()
    SUSPENDED = enum.auto()
    RESUMING = enum.auto()


@dataclass(slots=True, eq=False)
class _Wait:
    interrupt: Callable[[], object]
    #: Whose end ends it; None when it ends in any case.
    awaited: Awaited | None
    since: float = field(default_factory=time.monotonic)
    #: What is raised when it was ended because it would never have ended.
    error: BaseException | None = None


@dataclass(slots=True)
class _Task:
    number: int
    id: str
    state: _State = _State.RUNNING
    #: Waits that are not over, and those of them that block a thread.
    waits: set[_Wait] = field(default_factory=set)
    blocking: set[_Wait] = field(default_factory=set)
    is_async: bool = False
    #: The task and those that wait for it, the first one first.
    chain: tuple[str, ...] = ()
    #: What its waits on threads end with.
    cancelled: type[BaseException] | None = None
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
        #: Called when a task begins to wait, under a lock.
        self.on_wait: Callable[[], object] = lambda: None
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
        """End the waits of a task that waits on its thread by raising `error` there; says whether it does.

        A coroutine is for its loop to cancel.
        """
        with self._lock:
            task = self._numbered.get(number)
            if task is None or not task.blocking:
                return False
            task.cancelled = error
            waits = list(task.blocking)
        for wait in waits:
            wait.interrupt()
        return not task.is_async

    @contextlib.contextmanager
    def blocking(self, run: RunContext, interrupt: Callable[[], object], awaited: Awaited | None) -> Iterator[None]:
        """Around a wait of a thread."""
        wait = _Wait(interrupt, awaited)
        task = self._begin(run, wait)
        if task is None:
            yield
            return
        task.blocking.add(wait)
        try:
            yield
        finally:
            task.blocking.discard(wait)
            granted: concurrent.futures.Future[None] = concurrent.futures.Future()
            if self._end(task, wait, lambda: granted.set_result(None)):
                granted.result()
            if (error := task.cancelled) is not None:
                if error is not Abandoned:  # the task may go on, and wait again
                    task.cancelled = None
                raise error
            if wait.error is not None:
                raise wait.error

    @contextlib.asynccontextmanager
    async def awaiting(
        self, run: RunContext, interrupt: Callable[[], object], awaited: Awaited | None
    ) -> AsyncIterator[None]:
        """Around what a coroutine awaits."""
        wait = _Wait(interrupt, awaited)
        task = self._begin(run, wait)
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
            self._end(task, wait, lambda: None)  # it may clean up at once
            raise
        except BaseException:
            if self._end(task, wait, wake):
                await granted
            if wait.error is not None:
                raise wait.error from None
            raise
        if self._end(task, wait, wake):
            await granted
        if wait.error is not None:
            raise wait.error

    def _begin(self, run: RunContext, wait: _Wait) -> _Task | None:
        with self._lock:
            task = self._tasks.get(run.task_id)
            if task is None:  # a local run inside a task, or a thread that outlives its task
                return None
            task.chain, task.is_async = run.chain, run.is_async
            if task.state is _State.RUNNING:
                self._check_bound(task)
                self._suspend(task)
            task.waits.add(wait)
            self.on_wait()
            return task

    def _suspend(self, task: _Task) -> None:
        task.state = _State.SUSPENDED
        self._tell((wire.SUSPENDED, task.number))

    def _end(self, task: _Task, wait: _Wait, wake: Callable[[], object]) -> bool:
        """A wait is over; says whether `wake` will be called when the task may go on."""
        with self._lock:
            task.waits.discard(wait)
            if task.waits or task.state is _State.RUNNING:
                return False
            task.wake.append(wake)
            if task.state is _State.SUSPENDED:
                task.state = _State.RESUMING
                self._tell((wire.RESUME, task.number))
            return True

    # -- Waits that never end ----------------------------------------------------------------------------------------

    def lasting(self, seconds: float, most: int) -> dict[str, tuple[str, list[str]]] | None:
        """The tasks that wait for results alone, all their waits for at least so many seconds.

        Args:
            seconds: How long.
            most: Results; tasks that wait for more are left out.

        Returns:
            By the ids of the tasks, each with its name and the ids of the results; None when no task waits at all.
        """
        latest = time.monotonic() - seconds
        with self._lock:
            waiting = [task for task in self._tasks.values() if task.waits]
            lasting = [
                (task, [wait.awaited for wait in task.waits if wait.awaited is not None])
                for task in waiting
                if len(task.waits) <= most
                and all(wait.awaited is not None and wait.since <= latest for wait in task.waits)
            ]
        found = {}
        for task, awaited in lasting:
            ids = sorted({each for ask in awaited for each in ask()})
            if len(ids) <= most:
                found[task.id] = task.chain[-1], ids
        return found if waiting else None

    def fail(self, task_id: str, awaited: str, error: BaseException) -> None:
        """End the waits of a task for one result, which would never end."""
        with self._lock:
            task = self._tasks.get(task_id)
            waits = [] if task is None else [wait for wait in task.waits if wait.awaited and awaited in wait.awaited()]
            for wait in waits:
                wait.error = error
        for wait in waits:
            wait.interrupt()

    def _check_bound(self, task: _Task) -> None:
        others = [other for other in self._tasks.values() if other.state is not _State.RUNNING]
        if len(others) < self._most:
            return
        named = "; ".join(shown(other.chain) for other in itertools.islice(others, NAMED))
        more = f"; and {len(others) - NAMED} more" if len(others) > NAMED else ""
        raise StarvationError(
            f"{shown(task.chain)} cannot wait for a child: {len(others)} tasks of its replica wait already, the "
            f"most that may ({named}{more}). Make fewer calls that wait for calls, allow more replicas, or raise "
            "FLYTE_CELERY_MAX_SUSPENDED."
        )


def _settle(granted: asyncio.Future[None]) -> None:
    if not granted.done():
        granted.set_result(None)
