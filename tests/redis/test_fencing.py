"""How a task ended is recorded only by the worker that owns it, and where results are kept the worker finds out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import redis
from celery import Celery, states
from celery.app.task import Context

import flyte_celery as flyte
from flyte_celery import names
from flyte_celery.client.backend import RepliesBackend
from flyte_celery.fleet.claims import Claims
from flyte_celery.fleet.storing import FENCE_FIELD, Fence, NotOwnedError
from flyte_celery.replica.backend import ReplicaBackend
from flyte_celery.worker.fencing import fencing
from tests.helpers.redis_server import RedisServer, free_port

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery calls it

QUEUE = "kept"
TASK, BODY = "the-task", "the-body"

#: Where errors and chords report to.
REPORTS = "reports"

_databases = itertools.count()


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    """A project's app."""
    app = flyte.init(broker=redis_url, main=f"fencing-{next(_databases)}")
    yield app
    app.close()


@pytest.fixture
def claims(server: redis.Redis) -> Claims:
    """A worker with a lease and the one message of its queue."""
    claims = Claims(server, QUEUE, names.PRIORITY_STEPS, "kept@here:1", 15.0)
    claims.take_lease()
    server.hset(names.claims_key(QUEUE, claims.worker), "1", "message")
    return claims


@pytest.fixture(params=[RepliesBackend, ReplicaBackend], ids=["main process", "replica"])
def backend(request: pytest.FixtureRequest, app: Celery) -> Any:
    """What a process of the worker records with."""
    return request.param(url=app.conf.result_backend, app=app)


def given_up(claims: Claims) -> None:
    """The worker stalled for longer than its lease."""
    claims.leave()


def handed_on(claims: Claims) -> None:
    """The lease was lost, and another life of the worker, or another worker, has the task."""
    claims.client.delete(names.claims_key(QUEUE, claims.worker))


lost = pytest.mark.parametrize("lose", [given_up, handed_on])
stored = pytest.mark.parametrize("stores", [True, False], ids=["result", "no result"])


def running(claims: Claims, backend: Any) -> Context:
    """The request of the task that the worker runs: with an error callback, and all that a chord waits for."""
    backend.set_chord_size("group", 1)
    return Context(
        id=TASK,
        task=TASK,
        errbacks=[backend.app.signature("blame", queue=REPORTS)],
        chord=backend.app.signature("body", queue=REPORTS, task_id=BODY),
        group="group",
        group_index=0,
        properties={FENCE_FIELD: Fence(*claims.fence(1))},
        delivery_info={},
    )


def reports(server: redis.Redis) -> int:
    """How many callbacks were submitted."""
    return int(server.llen(REPORTS))  # type: ignore[arg-type]


@stored
def test_its_owner_records_a_failure(server: redis.Redis, claims: Claims, backend: Any, stores: bool) -> None:
    """And the claim stays for the acknowledgement."""
    backend.mark_as_failure(TASK, ValueError("no"), request=running(claims, backend), store_result=stores)
    assert backend.get_state(TASK) == (states.FAILURE if stores else states.PENDING)
    assert backend.get_state(BODY) == states.FAILURE
    assert reports(server) == 1
    assert server.hlen(names.claims_key(QUEUE, claims.worker)) == 1


@lost
@stored
def test_nobody_else_records_a_failure(
    server: redis.Redis, claims: Claims, backend: Any, lose: Any, stores: bool
) -> None:
    """No result, no error callback, no chord."""
    request = running(claims, backend)
    lose(claims)
    with pytest.raises(NotOwnedError, match=TASK):
        backend.mark_as_failure(TASK, ValueError("no"), request=request, store_result=stores)
    assert [backend.get_state(each) for each in (TASK, BODY)] == [states.PENDING] * 2
    assert reports(server) == 0


@lost
@stored
def test_nobody_else_records_a_revocation(claims: Claims, backend: Any, lose: Any, stores: bool) -> None:
    """Celery asks for it where an exception would end its worker."""
    request = running(claims, backend)
    lose(claims)
    backend.mark_as_revoked(TASK, "expired", request=request, store_result=stores)
    assert [backend.get_state(each) for each in (TASK, BODY)] == [states.PENDING] * 2


@lost
def test_nobody_else_records_a_success_or_a_retry(claims: Claims, backend: Any, lose: Any) -> None:
    request = running(claims, backend)
    lose(claims)
    with pytest.raises(NotOwnedError):
        backend.mark_as_done(TASK, 1, request)
    with pytest.raises(NotOwnedError):
        backend.mark_as_retry(TASK, ValueError("no"), request=request)
    assert [backend.get_state(each) for each in (TASK, BODY)] == [states.PENDING] * 2


def test_a_state_of_the_tasks_own_is_discarded_without_an_error(claims: Claims, backend: Any) -> None:
    """The body that calls `update_state` goes on until the worker ends it."""
    request = running(claims, backend)
    given_up(claims)
    backend.store_result(TASK, {"done": 1}, "PROGRESS", request=request)
    assert backend.get_state(TASK) == states.PENDING


def test_a_failure_does_not_take_the_place_of_a_success(app: Celery, claims: Claims) -> None:
    """The replica stored it, the main process kept a limit at the same moment: as with Celery's own backend."""
    backend = app.backend
    request = running(claims, backend)
    backend.store_result(TASK, 1, states.SUCCESS, request=request)
    backend.store_result(TASK, ValueError("no"), states.FAILURE, request=request)
    assert backend.get_state(TASK) == states.SUCCESS


# -- Where results are kept ------------------------------------------------------------------------------------------


def written(app: Celery, claims: Claims, backend: str, **conf: Any) -> tuple[bool, str]:
    """What a worker finds out when its app's results are written so."""
    app = Celery("written", broker=app.conf.broker_url, backend=backend, set_as_current=False)
    app.conf.update(conf)
    with closing(app):
        return fencing(app, claims)


def test_one_server_may_have_two_names(app: Celery, claims: Claims) -> None:
    other_name = app.conf.result_backend.replace("127.0.0.1", "localhost")
    assert other_name != app.conf.result_backend
    assert written(app, claims, other_name) == (True, "")


def test_another_database_has_no_leases(app: Celery, claims: Claims, redis_server: RedisServer) -> None:
    works, warning = written(app, claims, redis_server.url(0))
    assert not works
    assert f"Results are kept in {redis_server.url(0)}, apart from the leases, so fencing is off" in warning
    assert "Write result_backend as the URL of the broker" in warning


def test_what_is_no_redis_has_no_leases(app: Celery, claims: Claims) -> None:
    works, warning = written(app, claims, "cache+memory://")
    assert not works
    assert "apart from the leases" in warning


def test_without_results_there_is_nothing_to_say(app: Celery, claims: Claims) -> None:
    assert written(app, claims, "disabled://") == (False, "")


def test_a_server_that_does_not_answer_is_known_by_its_address(app: Celery, claims: Claims) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    works, warning = written(app, claims, nowhere)
    assert not works
    assert "cannot be found out (Error 111" in warning
    there = Claims(redis.Redis.from_url(nowhere), QUEUE, names.PRIORITY_STEPS, "kept@here:2", 15.0)
    assert written(app, there, nowhere) == (True, "")


def test_passwords_are_not_shown(app: Celery, claims: Claims) -> None:
    works, warning = written(app, claims, f"redis://me:secret@127.0.0.1:{free_port()}/0")
    assert not works
    assert "secret" not in warning
