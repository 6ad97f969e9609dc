"""Who knows why Redis does not answer keeps its replicas, or must end them in time: the reason must be the true one."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from flyte_celery.fleet.connection import does_not_run
from flyte_celery.worker.probe import Probe
from tests.helpers.projects import PATIENCE

LOST = redis.ConnectionError("Connection closed by server.")
REFUSED = ConnectionRefusedError(111, "Connection refused")


@pytest.fixture
def stopped() -> Iterator[redis.Redis]:
    """A client of a port where nothing listens, and which nobody else can get meanwhile."""
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        yield redis.Redis.from_url(f"redis://127.0.0.1:{bound.getsockname()[1]}")


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
    assert does_not_run(error)


@pytest.mark.parametrize("handled", [LOST, REFUSED])
def test_a_server_that_is_silent_may_run_whatever_is_handled(silent: redis.Redis, handled: Exception) -> None:
    error = _answer(Probe(silent), handled)
    assert isinstance(error, redis.TimeoutError)
    assert not does_not_run(error)


def test_a_server_that_is_silent_may_run_where_the_question_is_asked(silent: redis.Redis) -> None:
    with pytest.raises(redis.TimeoutError) as caught:
        try:
            raise REFUSED
        except ConnectionRefusedError:
            silent.ping()
    assert not does_not_run(caught.value)


def test_a_server_that_answers(redis_client: redis.Redis) -> None:
    assert _answer(Probe(redis_client), LOST) is None
