"""What the worker writes to its replicas: together at the end of a turn, and what a socket does not take, later."""

from __future__ import annotations

from typing import Any

from ..supervisor.wire import Line

#: Seconds between two attempts to write what sockets did not take. One timer serves all: kombu fires ten in a turn at
#: most, and then waits for a second, so that more of them would hold up time limits and the lease.
_AGAIN = 0.001


class Outbox:
    """Writes to the lines of replicas without waiting for any."""

    def __init__(self) -> None:
        #: The worker's event loop, None before it runs.
        self._hub: Any = None
        #: Lines for which something was noted in this turn of the event loop.
        self._noted: list[Line] = []
        #: Lines whose sockets have not taken all.
        self._blocked: list[Line] = []
        self._timer: Any = None

    def watch(self, hub: Any) -> None:
        """Use the (new) event loop; what the last one was asked to do may be forgotten."""
        self._hub = hub
        self._write()
        if self._timer is not None:
            self._timer.cancel()
            self._write_again()

    def send(self, line: Line, message: Any) -> None:
        """Write a message now."""
        line.send(message)
        self._see_to(line)

    def keep(self, line: Line, frame: bytes) -> None:
        """Write an encoded message with everything else of this turn of the event loop."""
        line.keep(frame)
        if self._hub is None:
            line.flush()
        elif line not in self._noted:
            if not self._noted:
                # Not `call_soon`: what a timer asks for by that waits until the loop has polled, a second or more.
                self._hub.call_later(0, self._write)
            self._noted.append(line)

    def _write(self) -> None:
        noted, self._noted = self._noted, []
        for line in noted:
            line.flush()
            self._see_to(line)

    def _see_to(self, line: Line) -> None:
        if line.pending and self._hub is not None and line not in self._blocked:
            self._blocked.append(line)
            if self._timer is None:
                self._timer = self._hub.call_later(_AGAIN, self._write_again)

    def _write_again(self) -> None:
        blocked, self._blocked, self._timer = self._blocked, [], None
        for line in blocked:
            line.flush()
            self._see_to(line)
