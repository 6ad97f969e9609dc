"""Who reads the reply channel: whoever waits. There is no thread in between.

Of the threads that wait, one reads for all of them; when it has what it waited for it hands over to the next. Every
event loop with a wait watches the same socket beside them, so that a loop or a thread that is busy with something else
keeps nobody waiting. Who finds the socket readable takes all that is there and tells each wait, wherever it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from .subscription import Subscription, wait_readable

if TYPE_CHECKING:
    from .replies import ReplyChannel

#: Seconds between two looks at waits that take long, see `ReplyChannel.look_after`.
_INTERVAL = 1.0


class ThreadWait:
    """A thread waits for things to arrive.

    Args:
        channel: Where they come from; None when somebody else's thread brings them.
    """

    def __init__(self, channel: ReplyChannel | None) -> None:
        self._channel = channel
        self._bell = threading.Lock()
        self._bell.acquire()
        self.arrived: deque[Any] = deque()

    def land(self, arrived: Any) -> None:
        """Something arrived. Any thread may call it."""
        self.arrived.append(arrived)
        self.ring()
        if self._channel is not None:
            self._channel.threads.rung(self)

    def ring(self) -> None:
        """Wake the thread if it sleeps, or the next time that it wants to."""
        if self._bell.locked():
            with contextlib.suppress(RuntimeError):  # another thread was faster
                self._bell.release()

    def sleep(self, timeout: float | None) -> None:
        """Sleep until it rings."""
        self._bell.acquire(timeout=-1 if timeout is None else max(0.0, min(timeout, threading.TIMEOUT_MAX)))

    def get(self, timeout: float | None = None) -> Any:
        """What arrived next.

        Raises:
            TimeoutError: Nothing did within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self.arrived:
            if self._channel is None:
                while not self.arrived and (deadline is None or time.monotonic() < deadline):
                    self.sleep(left(deadline))
            else:
                self._channel.threads.wait(self, deadline)
        try:
            return self.arrived.popleft()
        except IndexError:
            raise TimeoutError(f"Nothing arrived within {timeout:g} s.") from None


class ThreadReaders:
    """The threads that wait for one channel: one of them reads."""

    def __init__(self, channel: ReplyChannel) -> None:
        self._channel = channel
        self._lock = threading.RLock()
        self._leader: ThreadWait | None = None
        self._leading_thread = 0
        self._others: dict[ThreadWait, None] = {}
        self._wakeup: tuple[int, int] | None = None
        self._next_look = time.monotonic() + _INTERVAL

    def wait(self, wait: ThreadWait, deadline: float | None) -> None:
        """Return when something has arrived for a wait of this thread, or the time is over."""
        try:
            while not wait.arrived and (deadline is None or time.monotonic() < deadline):
                with self._lock:
                    leads = self._leader is None
                    if leads:
                        self._leader, self._leading_thread = wait, threading.get_ident()
                    else:
                        self._others[wait] = None
                if leads:
                    self._lead(wait, deadline)
                else:
                    wait.sleep(left(deadline))
        finally:
            with self._lock:
                self._others.pop(wait, None)
                if self._leader is wait:
                    self._leader = None
                if self._leader is None and self._others:
                    next(iter(self._others)).ring()

    def _lead(self, wait: ThreadWait, deadline: float | None) -> None:
        channel = self._channel
        wakeup = self._wakeup or self._make_wakeup()
        while True:
            channel.read()
            now = time.monotonic()
            if now >= self._next_look:  # one for all waits, however short each is
                self._next_look = now + _INTERVAL
                channel.look_after_all()
            if wait.arrived or (deadline is not None and now >= deadline):
                return
            files: list[Any] = [wakeup[0]]
            if (subscription := channel.subscription) is not None and subscription.alive:
                files.append(subscription)
            until = self._next_look if deadline is None else min(self._next_look, deadline)
            wait_readable(files, until - now)
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup[0], 1024)

    def rung(self, wait: ThreadWait) -> None:
        """Something arrived for a wait: when its thread is the one that reads, and did not read this, wake it."""
        if self._leader is wait and self._leading_thread != threading.get_ident():
            self.reconnected()

    def reconnected(self) -> None:
        """Let the thread that reads look again."""
        if self._wakeup is not None:
            with contextlib.suppress(BlockingIOError):  # it is full, so it wakes anyway
                os.write(self._wakeup[1], b".")

    def _make_wakeup(self) -> tuple[int, int]:
        ends = self._wakeup = os.pipe()
        for end in ends:
            os.set_blocking(end, False)
            weakref.finalize(self, os.close, end)
        return ends

    def __len__(self) -> int:
        return len(self._others) + (self._leader is not None)


class LoopWait:
    """A coroutine waits for things to arrive.

    Args:
        channel: Where they come from; None when somebody else's thread brings them.
    """

    def __init__(self, channel: ReplyChannel | None) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._news: asyncio.Future[None] | None = None
        self.arrived: deque[Any] = deque()

    def land(self, arrived: Any) -> None:
        """Something arrived. Any thread may call it."""
        self.arrived.append(arrived)
        news = self._news
        if news is None:
            return
        if self._thread == threading.get_ident():
            _settle(news)
        else:
            with contextlib.suppress(RuntimeError):  # the loop was closed with this wait in it
                self._loop.call_soon_threadsafe(_settle, news)

    async def get(self) -> Any:
        """What arrived next."""
        while not self.arrived:
            reader = None if self._channel is None else self._channel.loops.enter(self._loop)
            self._news = self._loop.create_future()
            try:
                if not self.arrived:  # meanwhile, in another thread
                    await self._news
            finally:
                self._news = None
                if reader is not None:
                    reader.leave(self._loop)
        return self.arrived.popleft()


def _settle(news: asyncio.Future[None]) -> None:
    if not news.done():
        news.set_result(None)


class LoopReaders:
    """The event loops that wait for one channel: each reads."""

    def __init__(self, channel: ReplyChannel) -> None:
        self._channel = channel
        # Held while a reader is added, and while all of them are gone through.
        self._lock = threading.RLock()
        self._readers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopReader] = weakref.WeakKeyDictionary()

    def enter(self, loop: asyncio.AbstractEventLoop) -> LoopReader:
        """One more wait begins on the running loop."""
        reader = self._readers.get(loop)
        if reader is None:
            with self._lock:
                reader = self._readers[loop] = LoopReader(self._channel, self)
        reader.enter(loop)
        return reader

    def reconnected(self) -> None:
        """Let every loop with a wait watch the new connection."""
        with self._lock:
            readers = list(self._readers.items())
        for loop, reader in readers:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(reader.watch, loop)

    def __len__(self) -> int:
        with self._lock:
            return sum(reader.waits for reader in self._readers.values())


class LoopReader:
    """One event loop's part; all but the constructor runs in the loop's thread."""

    def __init__(self, channel: ReplyChannel, readers: LoopReaders) -> None:
        self._channel = channel
        self._readers = readers
        self._watched: Subscription | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.waits = 0

    def enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """One more wait begins."""
        self.waits += 1
        if self.waits == 1:
            self.watch(loop)
            self._timer = loop.call_later(_INTERVAL, self._look, loop)

    def leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """A wait has ended."""
        self.waits -= 1
        # In a forked child the loop's selector is still that of the parent, who goes on reading.
        forked = self._channel.loops is not self._readers
        if not self.waits and not forked and not loop.is_closed():
            self.watch(loop)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None  # it holds the loop, which is not freed as long as this holds it

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch the connection that there is now while somebody waits."""
        wanted = self._channel.subscription if self.waits and self._channel.connected else None
        if wanted is self._watched:
            return
        if self._watched is not None:
            loop.remove_reader(self._watched.fileno())
        if wanted is not None:
            loop.add_reader(wanted.fileno(), self._read, loop)
        self._watched = wanted

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        self._channel.read()
        if not self._channel.connected or self._channel.subscription is not self._watched:
            self.watch(loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._channel.look_after_all()
        self._timer = loop.call_later(_INTERVAL, self._look, loop)


def left(deadline: float | None) -> float | None:
    """Seconds until a deadline."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())
