"""Messages between a worker and its children: length-prefixed pickles on a Unix stream socket.

Both ends are processes of the same user, started by us from the same code, so pickle is safe here; nothing that
comes from the broker is ever unpickled by this module (task bodies travel through it as the bytes that they are).
"""

from __future__ import annotations

import itertools
import pickle
import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any

_HEADER = struct.Struct("!I")

#: Bytes read from a socket at once: large enough for hundreds of small messages per system call.
READ_SIZE = 256 * 1024

#: Frames written at once; no system takes fewer than this (`IOV_MAX`).
MOST_FRAMES = 512


def encode(*messages: Any) -> bytes:
    """Messages as one frame: four bytes of length, then the pickle of them all."""
    body = pickle.dumps(messages, protocol=pickle.HIGHEST_PROTOCOL)
    return _HEADER.pack(len(body)) + body


class Decoder:
    """Cuts a stream of bytes into the messages that were written to it."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield every message that `data` completes, in order."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer, start)
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            with memoryview(self._buffer) as buffer, buffer[start + _HEADER.size : end] as frame:
                messages = pickle.loads(frame)
            yield from messages
            start = end
        if start:
            del self._buffer[:start]


class Line:
    """One end of a socket pair that never blocks: what the kernel does not take at once waits in a buffer.

    The owner polls `fileno()` for reading always, and for writing while `pending` is true.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._decoder = Decoder()
        self._out: deque[memoryview] = deque()
        self.closed = False

    def fileno(self) -> int:
        """The socket's file descriptor, -1 once closed."""
        return self.sock.fileno()

    @property
    def pending(self) -> bool:
        """Whether bytes wait for the socket to become writable."""
        return bool(self._out)

    def send(self, message: Any) -> None:
        """Write a message, or keep what does not fit. A line whose peer is gone swallows it: the reader tells."""
        self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> None:
        """Write an already encoded message (see `encode`)."""
        self.keep(frame)
        self.flush()

    def keep(self, frame: bytes) -> None:
        """Put an encoded message into the buffer, for one write of several: the owner calls `flush`."""
        if not self.closed:
            self._out.append(memoryview(frame))

    def flush(self) -> None:
        """Write as much of the buffer as the socket takes now."""
        while self._out:
            try:
                written = self.sock.sendmsg(itertools.islice(self._out, MOST_FRAMES))
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # the peer is gone; reading will report end of file
                self._out.clear()
                return
            while written:
                first = self._out.popleft()
                if written < len(first):
                    self._out.appendleft(first[written:])
                    break
                written -= len(first)

    def receive(self) -> tuple[list[Any], bool]:
        """Read what is there.

        Returns:
            The complete messages, and whether the peer has closed its end (or died).
        """
        messages: list[Any] = []
        while True:
            try:
                data = self.sock.recv(READ_SIZE)
            except (BlockingIOError, InterruptedError):
                return messages, False
            except OSError:
                return messages, True
            if not data:
                return messages, True
            messages.extend(self._decoder.feed(data))
            if len(data) < READ_SIZE:
                return messages, False

    def close(self) -> None:
        """Close this end; the peer reads end of file."""
        self.closed = True
        self._out.clear()
        self.sock.close()
