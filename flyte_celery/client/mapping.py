"""`flyte.map`: one task over many inputs, lazily, in order, with as many in flight as asked for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any

from .. import context, errors
from ..task import TaskTemplate
from . import local
from .dispatch import CeleryDispatcher, value_of
from .readers import LoopWait, ThreadWait
from .results import outcome_of, reply_channel
from .run import active_dispatcher

#: Calls in flight when `concurrency` is 0, and results that may wait for an earlier one: memory is bounded by this,
#: not by the length of the input.
WINDOW = 1000

AnyTask = TaskTemplate[Any, Any]


class Mapped:
    """A task with the arguments that all its calls share, and the inputs that tell them apart."""

    def __init__(self, func: Any, iterables: tuple[Iterable[Any], ...], group_name: str | None) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        task = func
        if isinstance(func, functools.partial):
            task, self.args, self.kwargs = func.func, func.args, func.keywords
        if not isinstance(task, TaskTemplate):
            raise AttributeError(f"map({func!r}) is no task: decorate the function with @env.task.")
        if isinstance(func, functools.partial):
            _check_partial(task, self.args, self.kwargs)
        for iterable in iterables:
            iter(iterable)  # TypeError now, not at the first result
        self.task: AnyTask = task
        self.inputs: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        self.group = f"{task.name}_{group_name or 'map'}"

    def calls(self) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Arguments of each call."""
        for values in self.inputs:
            yield (*self.args, *values), self.kwargs


def _check_partial(task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    names = list(task.native_interface.inputs)
    left = [name for name in names[len(args) :] if name not in kwargs]
    if len(left) != 1:
        raise TypeError(
            f"map(partial({task.name}, ...)) must leave exactly one parameter, but {len(left)} are left: "
            f"{', '.join(left) or 'none'}."
        )
    if names.index(left[0]) != len(args):
        raise TypeError(
            f"map(partial({task.name}, ...)) passes the mapped value as positional argument {len(args) + 1}, "
            f"{names[len(args)]!r}, which the partial binds by keyword: bind the parameters after {left[0]!r} instead."
        )


class Map:
    """Call it for a generator of results, `map.aio(...)` for an async one."""

    def __call__(
        self,
        func: Any,
        *iterables: Iterable[Any],
        group_name: str | None = None,
        concurrency: int = 0,
        return_exceptions: bool = True,
    ) -> Generator[Any, None, None]:
        """Call a task for each element of the iterables and yield the results in the order of the inputs.

        Args:
            func: A task, or a `functools.partial` of one that leaves exactly one parameter.
            *iterables: Zipped to the shortest. They may be endless.
            group_name: Name for the calls in monitoring.
            concurrency: Calls in flight at once; 0 means as many as the window of 1000.
            return_exceptions: Yield failures as objects in place of results; False raises the first one and revokes
                the calls in flight.

        Raises:
            AttributeError: `func` is no task.
            TypeError: An iterable is none, or a partial leaves not exactly one parameter.
        """
        mapped = Mapped(func, iterables, group_name)
        return self._generate(mapped, concurrency, return_exceptions)

    def _generate(self, mapped: Mapped, concurrency: int, return_exceptions: bool) -> Generator[Any, None, None]:
        run = context.current_run.get()
        if run is not None and run.is_async and run.mode != "local":
            raise errors.SyncTaskCallInAsyncContextError(
                "flyte.map blocks the event loop of an async task; use `async for result in flyte.map.aio(...)`."
            )
        dispatcher = active_dispatcher()
        if dispatcher is None:
            yield from _here(mapped, return_exceptions, inside=run is not None)
            return
        yield from _submitted(dispatcher, mapped, concurrency or WINDOW, return_exceptions)

    async def aio(
        self,
        func: Any,
        *iterables: Iterable[Any],
        group_name: str | None = None,
        concurrency: int = 0,
        return_exceptions: bool = True,
    ) -> AsyncIterator[Any]:
        """The same for asyncio code: `async for result in flyte.map.aio(task, xs)`."""
        mapped = Mapped(func, iterables, group_name)
        dispatcher = active_dispatcher()
        if dispatcher is None:
            inside = context.current_run.get() is not None
            for args, kwargs in mapped.calls():
                yield await _one_here(mapped.task, args, kwargs, return_exceptions, inside)
            return
        async for value in _submitted_async(dispatcher, mapped, concurrency or WINDOW, return_exceptions):
            yield value


def _here(mapped: Mapped, return_exceptions: bool, inside: bool) -> Iterator[Any]:
    for args, kwargs in mapped.calls():
        try:
            if inside:
                yield local.call(mapped.task, args, kwargs)
            elif mapped.task.is_async:
                yield context.run_coroutine(mapped.task.forward(*args, **kwargs))
            else:
                yield mapped.task.forward(*args, **kwargs)
        except Exception as exc:
            if not return_exceptions:
                raise
            yield exc


async def _one_here(
    task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any], return_exceptions: bool, inside: bool
) -> Any:
    try:
        if inside:
            return await local.call_async(task, args, kwargs)
        value = task.forward(*args, **kwargs)
        return await value if task.is_async else value
    except Exception as exc:
        if not return_exceptions:
            raise
        return exc


Future = concurrent.futures.Future[dict[str, Any]]


def _value(task: AnyTask, future: Future, return_exceptions: bool) -> Any:
    try:
        return value_of(task, future.result())
    except errors.BaseRuntimeError as exc:
        if not return_exceptions:
            raise
        return exc


class _Flight:
    """Calls that were submitted and not yet yielded, oldest first."""

    def __init__(
        self, dispatcher: CeleryDispatcher, mapped: Mapped, concurrency: int, landed: Callable[[Future], None]
    ) -> None:
        self._dispatcher = dispatcher
        self._task = mapped.task
        self._calls = mapped.calls()
        self._concurrency = concurrency
        self._landed = landed
        self._open = 0
        self._exhausted = False
        self.waiting: deque[tuple[str, Future]] = deque()

    def fill(self) -> None:
        """Submit until `concurrency` calls are in flight, or the window is full."""
        while not self._exhausted and self._open < self._concurrency and len(self.waiting) < WINDOW:
            call = next(self._calls, None)
            if call is None:
                self._exhausted = True
                return
            args, kwargs = call
            result = self._dispatcher.apply_async(self._task, args, kwargs, {})
            future = outcome_of(result)
            self._open += 1
            self.waiting.append((result.id, future))
            future.add_done_callback(self._landed)

    def landed(self) -> None:
        """One call has come back."""
        self._open -= 1

    def abandon(self) -> None:
        """Nobody wants the rest: revoke what is in flight."""
        ids = [task_id for task_id, future in self.waiting if not future.done()]
        for _, future in self.waiting:
            future.cancel()
        if ids:
            self._dispatcher.app.control.revoke(ids, terminate=True)


def _submitted(
    dispatcher: CeleryDispatcher, mapped: Mapped, concurrency: int, return_exceptions: bool
) -> Iterator[Any]:
    news = ThreadWait(reply_channel(dispatcher.app.backend))
    flight = _Flight(dispatcher, mapped, concurrency, news.land)
    try:
        flight.fill()
        while flight.waiting:
            while not flight.waiting[0][1].done():
                news.get()
                flight.landed()
                flight.fill()
            yield _value(mapped.task, flight.waiting.popleft()[1], return_exceptions)
            flight.fill()
    finally:
        flight.abandon()


async def _submitted_async(
    dispatcher: CeleryDispatcher, mapped: Mapped, concurrency: int, return_exceptions: bool
) -> AsyncIterator[Any]:
    loop = asyncio.get_running_loop()
    news = LoopWait(reply_channel(dispatcher.app.backend))
    flight = _Flight(dispatcher, mapped, concurrency, news.land)
    try:
        flight.fill()
        while flight.waiting:
            while not flight.waiting[0][1].done():
                await news.get()
                flight.landed()
                flight.fill()
            yield _value(mapped.task, flight.waiting.popleft()[1], return_exceptions)
            flight.fill()
    finally:
        await loop.run_in_executor(None, flight.abandon)


class MapTask:
    """Flyte 1's `map_task(task)(item=items)`: await it, or iterate over it, for the list of results."""

    def __init__(self, task: AnyTask) -> None:
        self._task = task

    def __call__(self, **iterables: Iterable[Any]) -> _MapTaskCall:
        return _MapTaskCall(self._task, iterables)


class _MapTaskCall:
    def __init__(self, task: AnyTask, iterables: dict[str, Iterable[Any]]) -> None:
        names = list(task.native_interface.inputs)
        unknown = set(iterables) - set(names)
        if unknown or not iterables:
            raise TypeError(
                f"map_task({task.name}) takes an iterable for each of {', '.join(names)}; got "
                f"{', '.join(sorted(unknown)) or 'none'}."
            )
        self._task = task
        self._columns = [iterables[name] for name in names if name in iterables]

    def __iter__(self) -> Iterator[Any]:
        return map(self._task, *self._columns, return_exceptions=False)

    def __await__(self) -> Generator[Any, Any, list[Any]]:
        return self._collect().__await__()

    async def _collect(self) -> list[Any]:
        return [value async for value in map.aio(self._task, *self._columns, return_exceptions=False)]


def map_task(task: AnyTask) -> MapTask:
    """Flyte 1's name for mapping a task over lists given by parameter name; new code uses `flyte.map`."""
    if not isinstance(task, TaskTemplate):
        raise TypeError(f"map_task({task!r}) is no task: decorate the function with @env.task.")
    return MapTask(task)


map = Map()
