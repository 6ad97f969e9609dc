"""The client of the fleet's own keys: what it does when nobody answers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from threading import Thread

import pytest
import redis

from flyte_celery.fleet.connection import connect
from tests.helpers.projects import PATIENCE


class HangsUp:
    """A server that ends each connection, and counts them."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.connections = 0
        self._thread = Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1  # before the client can see its end
                connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(PATIENCE)


@pytest.fixture
def servers() -> Iterator[list[HangsUp]]:
    """Two of them."""
    servers = [HangsUp(), HangsUp()]
    yield servers
    for server in servers:
        server.close()


def test_each_sentinel_is_asked_once(servers: list[HangsUp]) -> None:
    """Whoever waits for an answer is an event loop: by itself the client would ask each four times, for seconds."""
    urls = ";".join(f"sentinel://127.0.0.1:{server.port}" for server in servers)
    client = connect(urls, options={"master_name": "main"})
    assert client is not None
    with pytest.raises(redis.ConnectionError):
        client.ping()
    assert [server.connections for server in servers] == [1, 1]


def test_a_server_is_asked_once(servers: list[HangsUp]) -> None:
    """What it was asked for may have been done, and is not to be done twice."""
    client = connect(f"redis://127.0.0.1:{servers[0].port}")
    assert client is not None
    with pytest.raises(redis.ConnectionError):
        client.ping()
    assert servers[0].connections == 1
