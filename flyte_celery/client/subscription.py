"""One pub/sub connection to Redis that any thread and any event loop may read from.

redis-py opens it, with all that belongs to it (TLS, passwords, UNIX sockets, Sentinel). From then on the socket is
non-blocking and what arrives is parsed here, because redis-py's pub/sub object serves one reader and blocks it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import weakref
from collections.abc import Iterable
from typing import Any

import hiredis
import redis

#: Bytes taken from the socket at once.
_READ_SIZE = 65536

#: Seconds that the server may take for opening, for confirming, and to read what is sent.
PATIENCE = 5.0

#: Keep-alive of TCP: seconds of silence, seconds between probes, and probes until the connection counts as dead.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class Subscription:
    """A connection in subscriber mode. It lives until the server or the network ends it, and is then replaced.

    Args:
        pool: redis-py's pool of connections to the server.

    Raises:
        redis.RedisError: It cannot be opened.
        OSError: The same.
    """

    def __init__(self, pool: Any) -> None:
        self._connection = pool.make_connection()
        if getattr(self._connection, "socket_connect_timeout", 0) is None:
            self._connection.socket_connect_timeout = PATIENCE
        self._connection.connect()
        # Private to redis-py, but there is no other way to wait for it; Celery's own consumer does the same.
        self._socket: Any = self._connection._sock
        # Closed when nobody refers to this any more, so that no event loop watches a number that means another file.
        weakref.finalize(self, self._socket.close)
        _keep_alive(self._socket)
        self._socket.setblocking(False)
        self._parser = hiredis.Reader()
        # Reentrant, because the garbage collector may end a wait, and with it a subscription, in the middle of a read.
        self._lock = threading.RLock()
        self._asked = 0
        self._confirmed = 0
        #: What was asked for.
        self.channels: set[bytes] = set()
        #: Whether the end of the connection was not met yet.
        self.alive = True

    def fileno(self) -> int:
        """The socket's descriptor, to wait on; -1 when it is closed."""
        number: int = self._socket.fileno()
        return number

    def read(self) -> list[tuple[bytes, bytes]]:
        """What was published since the last read, as channel and message; never blocks.

        Raises:
            redis.ConnectionError: The connection was lost just now. It is not raised again.
            redis.ResponseError: The server refuses a subscription.
        """
        with self._lock:
            if not self.alive:
                return []
            try:
                self._receive()
            except OSError as exc:
                self._end()
                raise redis.ConnectionError(str(exc)) from exc
            published = []
            while (message := self._parser.gets()) is not False:
                if isinstance(message, Exception):
                    self._end()
                    raise redis.ResponseError(str(message))
                if message[0] == b"message":
                    published.append((message[1], message[2]))
                elif message[0] == b"subscribe":
                    self._confirmed += 1
            return published

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
            while True:
                data = self._socket.recv(_READ_SIZE)
                if not data:
                    raise ConnectionError("Connection closed by server.")
                self._parser.feed(data)
                # What TLS has decrypted already is invisible to those who wait on the socket.
                if len(data) < _READ_SIZE and not isinstance(self._socket, ssl.SSLSocket):
                    return

    def subscribe(self, channels: Iterable[bytes]) -> int:
        """Ask for channels; `confirmed` tells from the returned number when the server has them all."""
        with self._lock:
            if wanted := [channel for channel in channels if channel not in self.channels]:
                self.channels.update(wanted)
                self._asked += len(wanted)
                self._send("SUBSCRIBE", *wanted)
            return self._asked

    def unsubscribe(self, channel: bytes) -> None:
        """Ask for a channel no more."""
        with self._lock:
            if channel in self.channels:
                self.channels.discard(channel)
                self._send("UNSUBSCRIBE", channel)

    def confirmed(self, asked: int) -> bool:
        """Whether the server has confirmed so many subscriptions."""
        return self._confirmed >= asked

    def _send(self, *command: str | bytes) -> None:
        if not self.alive:
            return
        try:
            self._socket.settimeout(PATIENCE)
            for part in self._connection.pack_command(*command):
                self._socket.sendall(part)
        except OSError:
            self._shut()
        finally:
            self._socket.setblocking(False)

    def _end(self) -> None:
        self.alive = False
        self._shut()

    def _shut(self) -> None:
        """Wake everybody who waits for the socket: the next read finds its end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def wait_readable(files: list[Any], timeout: float | None) -> None:
    """Wait until one of some open files can be read, or its other end is closed.

    Args:
        files: Files or their descriptors.
        timeout: Seconds to wait at most; None waits for ever.
    """
    # Looked up at each call: gevent and eventlet put their own in its place.
    if hasattr(select, "poll"):
        poller = select.poll()
        for file in files:
            poller.register(file, select.POLLIN)
        poller.poll(None if timeout is None else max(0.0, timeout * 1000))
    else:
        select.select(files, [], [], timeout)


def _keep_alive(sock: Any) -> None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
