"""A TCP proxy that can go deaf: connections stay open, and nothing comes through. That is how networks really fail."""

from __future__ import annotations

import contextlib
import socket
import threading


class TcpProxy:
    """Forwards a free port of 127.0.0.1 to another one, from threads of its own, until `close`.

    Args:
        port: Where it forwards to.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._flowing = threading.Event()
        self._flowing.set()
        self._answering = threading.Event()
        self._answering.set()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def stall(self) -> None:
        """From now on take bytes and keep them; new connections are accepted and hear nothing."""
        self._flowing.clear()
        self._answering.clear()

    def stall_replies(self) -> None:
        """From now on keep what the server says; what it is told still reaches it."""
        self._answering.clear()

    def heal(self) -> None:
        """Forward again, first what was kept."""
        self._flowing.set()
        self._answering.set()

    def cut(self) -> None:
        """End every connection and forget what was kept; new connections work again."""
        with self._lock:
            left, self._sockets = self._sockets, set()
        for each in left:
            self._end(each)
        self.heal()

    def ports(self) -> set[int]:
        """The ports from which it speaks to the server, as `CLIENT LIST` names them."""
        with self._lock, contextlib.suppress(OSError):
            return {each.getsockname()[1] for each in self._sockets if each.getpeername() == self._target}
        return set()

    def close(self) -> None:
        """End every connection and stop listening."""
        # shutdown() wakes the threads that wait in accept() and recv(); close() alone would not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(inner,), name="proxy-serve", daemon=True).start()

    def _serve(self, inner: socket.socket) -> None:
        self._keep(inner)
        self._flowing.wait()
        try:
            outer = socket.create_connection(self._target)
        except OSError:
            self._end(inner)
            return
        self._keep(outer)
        threading.Thread(
            target=self._pump, args=(outer, inner, self._answering), name="proxy-back", daemon=True
        ).start()
        self._pump(inner, outer, self._flowing)

    def _pump(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                gate.wait()
                sink.sendall(data)
        gate.wait()  # the end of a connection does not come through either
        self._end(source)
        self._end(sink)

    def _keep(self, each: socket.socket) -> None:
        with self._lock:
            self._sockets.add(each)

    def _end(self, each: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(each)
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
