"""Who knows why Redis does not answer keeps its replicas, or must end them in time: the reason must be the true one."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import redis

from flyte_celery.fleet.connection import does_not_run
from flyte_celery.worker.probe import Probe
from tests.helpers.projects import PATIENCE

LOST = redis.ConnectionError("Connection closed by server.")
REFUSED = ConnectionRefusedError(111, "Connection refused")


@pytest.fixture(params=["port", "socket", "removed socket"])
def stopped(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """A client of where nothing listens, and nobody else can meanwhile; a server that ends removes its socket."""
    with ExitStack() as stack:
        if request.param == "port":
            bound = stack.enter_context(closing(socket.socket()))
            bound.bind(("127.0.0.1", 0))
            yield redis.Redis.from_url(f"redis://127.0.0.1:{bound.getsockname()[1]}")
            return
        path = Path(stack.enter_context(TemporaryDirectory(dir="/tmp")), "redis.sock")  # short enough for a socket
        bound = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
        bound.bind(str(path))
        if request.param == "removed socket":
            path.unlink()
        yield redis.Redis.from_url(f"unix://{path}")


@pytest.fixture
def silent() -> Iterator[redis.Redis]:
    """A client of a server that takes connections and answers nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield redis.Redis.from_url(f"redis://127.0.0.1:{server.getsockname()[1]}", socket_timeout=0.1)


def _answer(probe: Probe, handled: Exception) -> BaseException | None:
    """Ask while an error is being handled, as Celery does that has lost its connection."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            raise handled
        except Exception:
            try:
                if probe.answers():
                    return None
            except redis.RedisError as exc:
                return exc
        time.sleep(0.001)
    pytest.fail("The probe has not answered.")


@pytest.mark.parametrize("handled", [LOST, REFUSED])
def test_a_server_that_does_not_run_is_known_whatever_is_handled(stopped: redis.Redis, handled: Exception) -> None:
    error = _answer(Probe(stopped), handled)
    assert error is not None
    assert does_not_run(stopped, error)


@pytest.mark.parametrize("handled", [LOST, REFUSED])
def test_a_server_that_is_silent_may_run_whatever_is_handled(silent: redis.Redis, handled: Exception) -> None:
    error = _answer(Probe(silent), handled)
    assert isinstance(error, redis.TimeoutError)
    assert not does_not_run(silent, error)


def test_a_server_that_is_silent_may_run_where_the_question_is_asked(silent: redis.Redis) -> None:
    with pytest.raises(redis.TimeoutError) as caught:
        try:
            raise REFUSED
        except ConnectionRefusedError:
            silent.ping()
    assert not does_not_run(silent, caught.value)


def test_a_server_whose_certificate_is_missing_may_run(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"rediss://127.0.0.1:{server.getsockname()[1]}?ssl_ca_certs={tmp_path / 'missing.pem'}"
        client = redis.Redis.from_url(url)
        error = _answer(Probe(client), LOST)
    assert isinstance(error, redis.ConnectionError)
    assert not does_not_run(client, error)


def test_a_server_that_answers(redis_client: redis.Redis) -> None:
    assert _answer(Probe(redis_client), LOST) is None
