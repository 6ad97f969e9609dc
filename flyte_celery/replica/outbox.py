"""What a replica tells its worker: written at once from a task's thread, gathered per turn on the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from ..supervisor.wire import Line, encode


class Outbox:
    """Sends messages from any thread, in the order of the calls."""

    def __init__(self, line: Line, loop: asyncio.AbstractEventLoop) -> None:
        self._line = line
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._lock = threading.Lock()
        self._messages: list[tuple[Any, ...]] = []
        self._waiting_for_room = False

    def send(self, message: tuple[Any, ...]) -> None:
        """Send a message; on the event loop it goes with all others of this turn in one write."""
        if threading.get_ident() != self._loop_thread:
            with self._lock:
                self._messages.append(message)
                self._write()
            return
        with self._lock:
            self._messages.append(message)
            if len(self._messages) == 1:
                self._loop.call_soon(self.flush)

    def finish(self) -> None:
        """Write out everything, however long it takes: the process is about to end."""
        with self._lock:
            self._line.sock.setblocking(True)
            self._write()

    def flush(self) -> None:
        """Write now what was gathered in this turn of the event loop."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if self._messages:
            messages, self._messages = self._messages, []
            self._line.send_frame(encode(*messages))
        if self._line.pending and not self._waiting_for_room:
            self._waiting_for_room = True
            self._loop.call_soon_threadsafe(self._loop.add_writer, self._line.fileno(), self._on_room)

    def _on_room(self) -> None:
        with self._lock:
            self._line.flush()
            if not self._line.pending:
                self._waiting_for_room = False
                self._loop.remove_writer(self._line.fileno())
