"""Many calls in one write: for `flyte.map`, and for coroutines that submit in the same turn of their event loop."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from .message import Caller
from .publish import Call, Options, Publisher
from .shortcut import closed_for_now

#: Most messages in one write, and most characters unless one message alone has more.
MOST_AT_ONCE = 100
MOST_CHARACTERS = 1024 * 1024


class Batch:
    """Calls that are published together: `add` them until it is `full`, then `flush`.

    Another thread may flush while one adds.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._lock = threading.Lock()
        self._calls: list[Call] = []
        self._characters = 0
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether the next call belongs into another write."""
        return len(self._calls) >= MOST_AT_ONCE or self._characters >= MOST_CHARACTERS

    def __bool__(self) -> bool:
        return bool(self._calls)

    def begin(self) -> bool:
        """A call is about to be added; returns whether it may leave out Celery's general path."""
        if not self._calls:
            self._publisher.ensure_broker()
            # Asked once for each write: the answer takes as long as a message does.
            self._closed = closed_for_now(self._publisher.app)
        return not self._closed

    def add(self, task: Any, args: Sequence[Any], kwargs: dict[str, Any], options: Options) -> Any:
        """Take up a call, with arguments and options as they travel, after `begin`.

        A call that must take Celery's general path is published at once, after those before it.

        Returns:
            The `Call`, or Celery's result of a call that is published: both have an `id` and a `backend`.
        """
        publisher = self._publisher
        caller = Caller.here(publisher.app)  # coroutines of several parents may share a write
        call = None if self._closed else publisher.prepare(task, args, kwargs, options, caller)
        if call is None:
            self.flush()
            return publisher.by_celery(task, args, kwargs, options)
        with self._lock:
            self._calls.append(call)
            self._characters += len(call.message.text)
        if call.has_parent:
            call.result()
        return call

    def flush(self) -> None:
        """Publish what was added.

        Raises:
            kombu.exceptions.OperationalError: The broker cannot be reached; the batch is dropped.
        """
        with self._lock:
            calls, self._calls, self._characters = self._calls, [], 0
        if calls:
            self._publisher.push(calls)


class Turn:
    """Publishes with one write what the coroutines of an event loop submit in the same turn; blocks no loop.

    It does not hold its loop, which would never be freed then.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._batch = Batch(publisher)
        self._written: asyncio.Future[None] | None = None

    @classmethod
    def current(cls, publisher: Publisher) -> Turn:
        """That of the running event loop."""
        turns = _turns.setdefault(asyncio.get_running_loop(), {})
        if publisher not in turns:
            turns[publisher] = cls(publisher)
        return turns[publisher]

    def begin(self) -> bool:
        """See `Batch.begin`."""
        return self._batch.begin()

    def add(
        self, task: Any, args: Sequence[Any], kwargs: dict[str, Any], options: Options
    ) -> tuple[Any, asyncio.Future[None]]:
        """Take up a call, with arguments and options as they travel.

        Returns:
            What `Batch.add` returns, and a future of its being published, which raises what `Publisher.publish` does.
        """
        result = self._batch.add(task, args, kwargs, options)
        if self._written is None:
            loop = asyncio.get_running_loop()
            self._written = loop.create_future()
            loop.call_soon(self._write, loop, self._batch, self._written)
        written = self._written
        if self._batch.full:
            self._batch, self._written = Batch(self._publisher), None
        return result, written

    def _write(self, loop: asyncio.AbstractEventLoop, batch: Batch, written: asyncio.Future[None]) -> None:
        if self._batch is batch:
            self._batch, self._written = Batch(self._publisher), None
        if not batch:  # Celery has published all
            written.set_result(None)
            return
        writing = loop.run_in_executor(self._publisher.executor, batch.flush)
        writing.add_done_callback(lambda done: _settle(written, done))


def _settle(written: asyncio.Future[None], done: asyncio.Future[None]) -> None:
    error = done.exception()
    if error is None:
        written.set_result(None)
    else:
        written.set_exception(error)
        written.exception()  # several coroutines wait for it, or none that is still there


_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Publisher, Turn]] = weakref.WeakKeyDictionary()
