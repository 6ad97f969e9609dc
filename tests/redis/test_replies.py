"""The reply channel, over every kind of connection that a result backend may have."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.app.task import Context

import flyte_celery as flyte
from flyte_celery.client.backend import RepliesBackend, SentinelRepliesBackend
from flyte_celery.client.results import EnvironmentResult
from tests.helpers.redis_server import RedisServer, find_redis_server
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery calls it


@contextmanager
def running(*arguments: str) -> Iterator[None]:
    """A Redis program for the time of a block."""
    process = subprocess.Popen([find_redis_server(), *arguments], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def unix(server: RedisServer, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The address of a server on a socket in the file system."""
    path = folder / "redis.sock"
    with running("--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)):
        wait_until(path.exists)
        yield f"redis+socket://{path}", {}


@contextmanager
def tls(server: RedisServer, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The address of a proxy that speaks TLS, in front of the server."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            while True:
                try:
                    accepted, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=relay, args=(accepted,), daemon=True).start()

        def relay(accepted: socket.socket) -> None:
            with context.wrap_socket(accepted, server_side=True) as outer:
                outer.settimeout(0.002)  # one thread for both directions, because a TLS socket is not for two
                with socket.create_connection(("127.0.0.1", server.port)) as inner:
                    inner.settimeout(0.002)
                    while True:
                        for source, target in ((outer, inner), (inner, outer)):
                            try:
                                data = source.recv(65536)
                            except TimeoutError:
                                continue
                            except OSError:
                                return
                            if not data:
                                return
                            target.settimeout(5)
                            target.sendall(data)
                            target.settimeout(0.002)

        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        yield f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_ca_certs={certificate}", {}
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def sentinel(server: RedisServer, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The address of a Sentinel that knows the server."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    configuration = folder / "sentinel.conf"
    configuration.write_text(f"port {port}\nsentinel monitor main 127.0.0.1 {server.port} 1\ndir {folder}\n")
    with running(str(configuration), "--sentinel"):

        def knows() -> bool:
            try:
                with redis.Redis(port=port) as client:
                    return bool(client.execute_command("SENTINEL", "get-master-addr-by-name", "main"))
            except redis.RedisError:
                return False

        wait_until(knows)
        yield f"sentinel://127.0.0.1:{port}/0", {"master_name": "main"}


@contextmanager
def tcp(server: RedisServer, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The plain address."""
    yield server.url(), {}


@pytest.fixture(params=[tcp, unix, tls, sentinel], ids=lambda kind: kind.__name__)
def backend(request: pytest.FixtureRequest, own_redis_server: RedisServer, tmp_path: Path) -> Iterator[Any]:
    """The result backend of an app."""
    with ExitStack() as stack:
        url, options = stack.enter_context(request.param(own_redis_server, tmp_path))
        app = flyte.init(broker="memory://", backend=url, main="replies", result_backend_transport_options=options)
        yield app.backend
        app.backend.client.close()


def published(backend: Any, task_id: str, value: Any, state: str = "SUCCESS") -> None:
    """Store a result as a worker does, for a message with a reply channel."""
    backend.store_result(task_id, value, state, request=Context(reply_to=backend.replies.name))


def test_results_come_in_one_notification_each(backend: Any) -> None:
    assert isinstance(backend, RepliesBackend | SentinelRepliesBackend)
    for size in (1, 200_000):
        task_id = f"task-{size}"
        backend.expect(task_id, here=True)
        result = EnvironmentResult(task_id, backend=backend, app=backend.app)
        threading.Timer(0.1, published, (backend, task_id, "x" * size)).start()
        assert result.get(timeout=10) == "x" * size
        backend.client.delete(backend.get_key_for_task(task_id))
        assert result.state == "SUCCESS", "it was not read"
    assert backend.replies.open_waits() == 0


def test_a_lost_connection_is_replaced(backend: Any) -> None:
    backend.expect("before", here=True)
    result = EnvironmentResult("before", backend=backend, app=backend.app)
    lost = backend.replies.subscription
    backend.client.client_kill_filter(_type="pubsub", skipme=False)
    published(backend, "before", 1)
    assert result.get(timeout=10) == 1
    assert backend.replies.subscription is not lost


def test_no_other_state_is_a_result(backend: Any) -> None:
    backend.expect("task", here=True)
    result = EnvironmentResult("task", backend=backend, app=backend.app)
    published(backend, "task", {"done": 1}, "PROGRESS")
    threading.Timer(0.2, published, (backend, "task", 2)).start()
    assert result.get(timeout=10) == 2
