"""Lets signals end the event loop's wait.

Celery's handlers of SIGTERM and its kin only set a flag, which the loop reads when it turns next: that is when
something happens or, in a quiet worker, after up to a second. A worker that stops has promised to hand back at once
what it has not begun, so here every signal makes a byte readable.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from typing import Any


class SignalWakeup:
    """A socket that becomes readable whenever this process gets a signal; use one per process."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # A worker that a test runs in a thread has no signals.
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def watch(self, hub: Any) -> None:
        """Have the (new) event loop turn at every signal."""
        hub.add_reader(self._reader.fileno(), self._drain)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
