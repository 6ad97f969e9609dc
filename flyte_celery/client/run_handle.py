"""The handle of a run: what `flyte.run` returns, whether the task was submitted or has run here.

One class says what a handle can do, so that code which is written against a fleet runs unchanged in tests and without a
broker. `remote_run` and `local_run` have the two kinds.
"""

from __future__ import annotations

import abc
import asyncio
import enum
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from celery import states

from .dispatch import failure
from .results import Meta

H = TypeVar("H", bound="Run")
P = ParamSpec("P")
R = TypeVar("R")


class ActionPhase(enum.StrEnum):
    """Where a run is."""

    #: No replica has it: it waits in the queue, for its time, or for its next attempt.
    QUEUED = "queued"
    #: A replica has it, or it has set a state of its own.
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    #: It was revoked.
    ABORTED = "aborted"


class Outputs(tuple[Any, ...]):
    """A run's outputs: a tuple whose elements are also named `o0`, `o1`, ..."""

    @classmethod
    def of(cls, value: Any) -> Outputs:
        """The outputs of a task that returned `value`: one for each element of a tuple, else one."""
        return cls(value if isinstance(value, tuple) and not hasattr(value, "_fields") else (value,))

    def __getattr__(self, name: str) -> Any:
        if name[:1] == "o" and name[1:].isdigit() and int(name[1:]) < len(self):
            return self[int(name[1:])]
        raise AttributeError(f"These outputs have no {name!r}: they are o0 to o{len(self) - 1}.")


class Twin(Generic[P, R]):
    """A method of one handle: call it to block, `await method.aio(...)` in asyncio code."""

    def __init__(self, blocking: Callable[P, R], aio: Callable[P, Awaitable[R]]) -> None:
        self._blocking = blocking
        self.aio = aio
        self.__doc__ = blocking.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._blocking(*args, **kwargs)


class _Twins(Generic[H, P, R]):
    """Makes `Twin`s of two methods, the second of which does not block the event loop."""

    def __init__(
        self, blocking: Callable[Concatenate[H, P], R], aio: Callable[Concatenate[H, P], Awaitable[R]]
    ) -> None:
        self._blocking, self._aio = blocking, aio
        self.__doc__ = blocking.__doc__

    @overload
    def __get__(self, handle: None, owner: type[H]) -> _Twins[H, P, R]: ...

    @overload
    def __get__(self, handle: H, owner: type[H]) -> Twin[P, R]: ...

    def __get__(self, handle: H | None, owner: type[H]) -> _Twins[H, P, R] | Twin[P, R]:
        if handle is None:
            return self
        return Twin(self._blocking.__get__(handle, owner), self._aio.__get__(handle, owner))


class Run(abc.ABC):
    """A run of a task. Await it for the task's value; `outputs`, `wait`, `raise_for_status` and `abort` have `.aio`."""

    #: Celery's result of the call.
    result: Any

    @property
    def id(self) -> str:
        """The task's id, in Celery and Flower."""
        return str(self.result.id)

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The run's name, as Flyte has it."""

    @property
    @abc.abstractmethod
    def url(self) -> str | None:
        """The run's page in Flower, where there is one and the setting `flower_url` says where that is."""

    @property
    @abc.abstractmethod
    def phase(self) -> ActionPhase:
        """Where the run is now."""

    @property
    @abc.abstractmethod
    def cached(self) -> bool:
        """Whether its value came from the cache. False as long as it has not ended."""

    @abc.abstractmethod
    def done(self) -> bool:
        """Whether it has ended, well or not."""

    @abc.abstractmethod
    def revoke(self, **options: Any) -> None:
        """Celery's `revoke`, with its options: without `terminate=True` a run that has begun goes on."""

    # -- What the two kinds differ in --------------------------------------------------------------------------------

    @abc.abstractmethod
    def _end(self, timeout: float | None) -> Meta:
        """Block until it has ended; how, as Celery's backend describes it."""

    @abc.abstractmethod
    async def _end_aio(self) -> Meta:
        """The same for asyncio code."""

    @abc.abstractmethod
    def _value(self, meta: Meta) -> Any:
        """The value of a run that has ended; raises what it has failed with."""

    @abc.abstractmethod
    def _stop(self, reason: str) -> None:
        """End the run, wherever it is; one that has ended stays as it is."""

    # -- What they share ---------------------------------------------------------------------------------------------

    def _wait(self, timeout: float | None = None) -> None:
        """Block until it has ended, well or not.

        Raises:
            TimeoutError: It has not within `timeout` seconds.
        """
        self._end(timeout)

    def _outputs(self, timeout: float | None = None) -> Outputs:
        """Block until it has ended and return what the task returned.

        Raises:
            flyte_celery.errors.RuntimeUserError: The task failed.
            TimeoutError: It has not ended within `timeout` seconds.
        """
        return Outputs.of(self._value(self._end(timeout)))

    def _raise_for_status(self, timeout: float | None = None) -> None:
        """Block until it has ended; raise what the task raised."""
        _check_status(self._end(timeout))

    def _abort(self, reason: str = "aborted") -> None:
        """End the run, wherever it is; one that has ended stays as it is. Its callers are told the reason."""
        self._stop(reason)

    async def _wait_aio(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  # as its twin
        await self._end_within(timeout)

    async def _outputs_aio(self, timeout: float | None = None) -> Outputs:  # noqa: ASYNC109
        return Outputs.of(self._value(await self._end_within(timeout)))

    async def _raise_for_status_aio(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        _check_status(await self._end_within(timeout))

    async def _abort_aio(self, reason: str = "aborted") -> None:
        await asyncio.to_thread(self._stop, reason)

    async def _end_within(self, seconds: float | None) -> Meta:
        try:
            async with asyncio.timeout(seconds):
                return await self._end_aio()
        except TimeoutError:
            raise not_ended(seconds) from None

    wait = _Twins(_wait, _wait_aio)
    outputs = _Twins(_outputs, _outputs_aio)
    raise_for_status = _Twins(_raise_for_status, _raise_for_status_aio)
    abort = _Twins(_abort, _abort_aio)

    def __await__(self) -> Generator[Any, Any, Any]:
        """The task's value, without blocking the event loop."""
        return self._awaited().__await__()

    async def _awaited(self) -> Any:
        return self._value(await self._end_aio())


def not_ended(seconds: float | None) -> TimeoutError:
    """The error of a wait that was too short."""
    return TimeoutError(f"The run has not ended within {seconds:g} s.")


def _check_status(meta: Meta) -> None:
    if meta["status"] != states.SUCCESS:
        raise failure(meta)
