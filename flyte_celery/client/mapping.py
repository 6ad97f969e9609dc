"""`flyte.map`: one task over many inputs, lazily, in order, with as many in flight as asked for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sized
from typing import Any, NamedTuple

from kombu.exceptions import EncodeError, OperationalError

from .. import context, errors, suspension
from ..registry import check_conflicts
from ..task import TaskTemplate
from . import local, progress
from .batch import MOST_AT_ONCE, Batch
from .dispatch import CeleryDispatcher, value_of
from .readers import LoopWait, ThreadWait
from .results import Ending, ending_of, reply_channel
from .run import active_dispatcher
from .stacks import working_for

#: Calls in flight when `concurrency` is 0, and results that may wait for an earlier one: memory is bounded by this,
#: not by the length of the input.
WINDOW = 1000

#: Seconds that calls wait at most for others of the same write.
PATIENCE = 0.005

#: What a call fails with alone, because its arguments do not fit.
_UNFIT = (TypeError, ValueError, EncodeError, errors.InlineIOMaxBytesBreached)

AnyTask = TaskTemplate[Any, Any]


class Mapped:
    """A task with the arguments that all its calls share, and the inputs that tell them apart."""

    def __init__(self, func: Any, iterables: tuple[Iterable[Any], ...], group_name: str | None) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        #: The parameters that the inputs are for; none where they are given by position.
        self.names: tuple[str, ...] = ()
        task = func
        if isinstance(func, functools.partial):
            task, self.args, self.kwargs = func.func, func.args, func.keywords
        elif isinstance(func, _ByName):
            task, self.names = func
        if not isinstance(task, TaskTemplate):
            raise AttributeError(f"map() got {func!r}, which is no task: pass a function that @env.task decorates.")
        if isinstance(func, functools.partial):
            _check_partial(task, self.args, self.kwargs)
        for iterable in iterables:
            iter(iterable)  # TypeError now, not at the first result
        self.task: AnyTask = task
        self.inputs: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        #: Whether the next input may keep us waiting: not where they are all there already.
        self.may_block = not all(isinstance(iterable, Sized) for iterable in iterables)
        self.group = f"{task.name}_{group_name or 'map'}"
        self._iterables = iterables

    def total(self) -> int | None:
        """How many inputs there are; None where that is not known before the last."""
        if self.may_block:
            return None
        return min((len(iterable) for iterable in self._iterables if isinstance(iterable, Sized)), default=0)

    def calls(self) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Arguments of each call."""
        for values in self.inputs:
            if self.names:
                yield (), dict(zip(self.names, values, strict=True))
            else:
                yield (*self.args, *values), self.kwargs


class _ByName(NamedTuple):
    """A task whose mapped inputs are for these parameters."""

    task: AnyTask
    names: tuple[str, ...]


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


def _in_flight(concurrency: object) -> int:
    """How many calls a `concurrency` lets be in flight."""
    if not isinstance(concurrency, int) or concurrency < 0:
        raise ValueError(
            f"map(concurrency={concurrency!r}) is not possible: pass an int, or 0 for no limit of your own."
        )
    return concurrency or WINDOW


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
            group_name: Name of these calls, which the progress bar shows.
            concurrency: Calls in flight at once; 0 means as many as the window of 1000.
            return_exceptions: Yield failures as objects in place of results, also the error of an argument that does
                not fit; False raises the first one and revokes the calls in flight.

        Raises:
            AttributeError: `func` is no task.
            TypeError: An iterable is none, or a partial leaves not exactly one parameter.
            ValueError: `concurrency` is no int, or negative.
            kombu.exceptions.OperationalError: The broker cannot be reached.
        """
        mapped = Mapped(func, iterables, group_name)
        return self._generate(mapped, _in_flight(concurrency), return_exceptions)

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
        yield from _submitted(dispatcher, mapped, concurrency, return_exceptions)

    async def aio(
        self,
        func: Any,
        *iterables: Iterable[Any],
        group_name: str | None = None,
        concurrency: int = 0,
        return_exceptions: bool = True,
    ) -> AsyncIterator[Any]:
        """The same for asyncio code: `async for result in flyte.map.aio(task, xs)`."""
        mapped, concurrency = Mapped(func, iterables, group_name), _in_flight(concurrency)
        dispatcher = active_dispatcher()
        if dispatcher is None:
            inside = context.current_run.get() is not None
            for args, kwargs in mapped.calls():
                yield await _one_here(mapped.task, args, kwargs, return_exceptions, inside)
            return
        async for value in _submitted_async(dispatcher, mapped, concurrency, return_exceptions):
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


class _Cell:
    """One call that was taken up and not yet yielded."""

    __slots__ = ("ending", "task_id")

    def __init__(self) -> None:
        #: Its id, once it is published.
        self.task_id = ""
        #: How it ends; None until it is published, or found in the cache.
        self.ending: Ending | None = None

    def done(self) -> bool:
        """Whether its value is here."""
        return self.ending is not None and self.ending.done()


def _value(task: AnyTask, ending: Ending | None, return_exceptions: bool) -> Any:
    assert ending is not None  # its cell is done
    try:
        return value_of(task, ending.result())
    except (errors.BaseRuntimeError, *_UNFIT) as exc:
        if not return_exceptions:
            raise
        return exc


class _Flight:
    """Calls that were submitted and not yet yielded, oldest first."""

    def __init__(
        self, dispatcher: CeleryDispatcher, mapped: Mapped, concurrency: int, landed: Callable[[Any], None]
    ) -> None:
        self._dispatcher = dispatcher
        self._mapped = mapped
        self._calls = mapped.calls()
        self._concurrency = concurrency
        self._landed = landed
        self._batch = Batch(dispatcher.publisher)
        self._taken = self._open = 0
        self._exhausted = False
        self._filling = False
        self._failed = False
        self._slow = False
        #: Calls that are looked up in the cache before they are published, with their place in `waiting`.
        self._asked: list[tuple[tuple[Any, ...], dict[str, Any], _Cell]] = []
        self._asking = threading.Lock()
        self._cached = dispatcher.is_cached(mapped.task)
        # What is looked up is called from the thread that asks, as if it were called here.
        self._context = contextvars.copy_context()
        parent = dispatcher.app.current_worker_task
        self._parent = (parent, None if parent is None else parent.request_stack.top)
        self.waiting: deque[_Cell] = deque()

    def take(self) -> bool:
        """Take up the next calls for one write: until the window or the write is full, or the input is slow.

        Returns:
            Whether calls were taken, which are there to `send`.
        """
        free = min(self._concurrency - self._open, WINDOW - len(self.waiting))
        # A write costs as much as several messages, so an eighth of the calls may be done before others follow.
        least = 1 if self._filling else max(1, min(self._concurrency, WINDOW) // 8)
        self._filling = not self._exhausted and free >= least
        if not self._filling:
            return False
        taken = len(self.waiting)
        with self._sent_meanwhile() if free > 1 and self._mapped.may_block else contextlib.nullcontext():
            spent, self._slow = 0.0, False
            while free and not self._batch.full and len(self._asked) < MOST_AT_ONCE and not self._slow:
                asked = time.monotonic()
                call = next(self._calls, None)
                if call is None:
                    self._exhausted = True
                    break
                spent += time.monotonic() - asked
                self._slow = self._mapped.may_block and spent > PATIENCE
                self._add(*call)
                free -= 1
        return len(self.waiting) > taken

    @property
    def yields_first(self) -> bool:
        """Whether a result is there that should not wait for more of a slow input."""
        return self._slow and bool(self.waiting) and self.waiting[0].done()

    def _add(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cell = _Cell()
        if self._cached:
            with self._asking:
                self._asked.append((args, kwargs, cell))
        else:
            self._call(args, kwargs, cell)
        self._taken += 1
        self._open += 1
        self.waiting.append(cell)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], cell: _Cell) -> None:
        try:
            # A parent would keep a result object per call, and store all their ids with its own result.
            call = self._dispatcher.add_to(self._batch, self._mapped.task, args, kwargs, {"add_to_parent": False})
            cell.task_id, cell.ending = str(call.id), ending_of(call, self._landed)
        except _UNFIT as exc:
            failed: concurrent.futures.Future[dict[str, Any]] = concurrent.futures.Future()
            failed.set_exception(exc)
            cell.ending = failed
            self._landed(failed)

    def _look_up(self) -> None:
        """Answer from the cache what is there, in one round trip; the rest is called."""
        with self._asking:
            asked, self._asked = self._asked, []
        if asked:
            self._context.run(self._answer, asked)

    def _answer(self, asked: list[tuple[tuple[Any, ...], dict[str, Any], _Cell]]) -> None:
        with working_for(*self._parent):
            calls = [(args, kwargs) for args, kwargs, _ in asked]
            results = self._dispatcher.answers(self._mapped.task, calls, {"add_to_parent": False})
            for (args, kwargs, cell), result in zip(asked, results, strict=True):
                if result is None:
                    self._call(args, kwargs, cell)
                else:
                    cell.ending = ending_of(result, self._landed)

    def send(self) -> None:
        """Publish what was taken.

        Raises:
            kombu.exceptions.OperationalError: The broker cannot be reached.
        """
        try:
            self._look_up()
            self._batch.flush()
        except OperationalError:
            self._failed = True
            raise

    @contextlib.contextmanager
    def _sent_meanwhile(self) -> Iterator[None]:
        """Publish what was taken so far while the input keeps us waiting for the next."""
        stop = threading.Event()
        failures: list[Exception] = []

        def send() -> None:
            while not failures and not stop.wait(PATIENCE):
                try:
                    self.send()
                except Exception as exc:
                    failures.append(exc)

        thread = threading.Thread(target=send, name="flyte-celery-map", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()  # what it publishes is published before what comes next
        if failures:
            raise failures[0]

    def landed(self) -> None:
        """One call has come back."""
        self._open -= 1

    def done(self) -> int:
        """Calls that have come back."""
        return self._taken - self._open

    def awaited(self) -> list[str]:
        """Ids of the calls that have not come back."""
        return [cell.task_id for cell in list(self.waiting) if cell.task_id and not cell.done()]

    def abandon(self) -> None:
        """Nobody wants the rest: revoke what is in flight."""
        ids = [cell.task_id for cell in self.waiting if cell.task_id and not cell.done()]
        for cell in self.waiting:
            if cell.ending is not None:
                cell.ending.cancel()
        if ids and not self._failed:
            self._dispatcher.revoke(*ids)


def _submitted(
    dispatcher: CeleryDispatcher, mapped: Mapped, concurrency: int, return_exceptions: bool
) -> Iterator[Any]:
    check_conflicts()
    news = ThreadWait(reply_channel(dispatcher.app.backend))
    flight = _Flight(dispatcher, mapped, concurrency, news.land)

    def fill() -> None:
        while news.arrived:
            news.arrived.popleft()
            flight.landed()
        while not flight.yields_first and flight.take():
            flight.send()

    try:
        with progress.shown(mapped.group, mapped.total, flight.done):
            fill()
            while flight.waiting:
                while not flight.waiting[0].done():
                    with suspension.waiting(lambda: news.land(None), flight.awaited):
                        news.get()
                    flight.landed()
                    fill()
                yield _value(mapped.task, flight.waiting.popleft().ending, return_exceptions)
                fill()
    finally:
        flight.abandon()


async def _submitted_async(
    dispatcher: CeleryDispatcher, mapped: Mapped, concurrency: int, return_exceptions: bool
) -> AsyncIterator[Any]:
    check_conflicts()
    loop = asyncio.get_running_loop()
    news = LoopWait(reply_channel(dispatcher.app.backend))
    flight = _Flight(dispatcher, mapped, concurrency, news.land)

    async def fill() -> None:
        while news.arrived:
            news.arrived.popleft()
            flight.landed()
        while not flight.yields_first and flight.take():
            await loop.run_in_executor(dispatcher.publisher.executor, flight.send)

    try:
        with progress.shown(mapped.group, mapped.total, flight.done):
            await fill()
            while flight.waiting:
                while not flight.waiting[0].done():
                    async with suspension.awaiting(lambda: news.land(None), flight.awaited):
                        await news.get()
                    flight.landed()
                    await fill()
                yield _value(mapped.task, flight.waiting.popleft().ending, return_exceptions)
                await fill()
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
        for name, values in iterables.items():
            try:
                iter(values)
            except TypeError:
                raise TypeError(
                    f"map_task({task.name}) takes an iterable for each parameter, and {name}={values!r} is none: for "
                    f"the same value in all calls map functools.partial({task.func.__name__}, {name}={values!r})."
                ) from None
        self._task = _ByName(task, tuple(iterables))
        self._columns = iterables.values()

    def __iter__(self) -> Iterator[Any]:
        return map(self._task, *self._columns, return_exceptions=False)

    def __await__(self) -> Generator[Any, Any, list[Any]]:
        return self._collect().__await__()

    async def _collect(self) -> list[Any]:
        return [value async for value in map.aio(self._task, *self._columns, return_exceptions=False)]


def map_task(task: AnyTask) -> MapTask:
    """Flyte 1's name for mapping a task over lists given by parameter name; new code uses `flyte.map`."""
    if not isinstance(task, TaskTemplate):
        raise TypeError(f"map_task() got {task!r}, which is no task: pass a function that @env.task decorates.")
    return MapTask(task)


map = Map()
