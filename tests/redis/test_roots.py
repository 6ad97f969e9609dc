"""Whether a run is over, as its root's result in Redis says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery, states

from flyte_celery.worker.roots import Roots


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    with Celery("roots", broker=redis_url, backend=redis_url) as app:
        yield app


def store(app: Celery, meta: object) -> None:
    """Keep what Celery would keep as the result of the task `root`."""
    app.backend.client.set(app.backend.get_key_for_task("root"), app.backend.encode(meta))


@pytest.mark.parametrize("state", [states.SUCCESS, states.FAILURE, states.REVOKED])
def test_a_root_with_an_outcome_has_ended(app: Celery, state: str) -> None:
    store(app, {"status": state, "result": None})
    assert Roots(app).ended(["root", "another"]) == {"root"}


@pytest.mark.parametrize("state", [states.STARTED, states.RETRY, "HALFWAY"])
def test_a_root_that_only_says_how_far_it_is_goes_on(app: Celery, state: str) -> None:
    store(app, {"status": state, "result": {"at": 1}})
    assert Roots(app).ended(["root"]) == set()


def test_what_cannot_be_read_is_no_outcome(app: Celery) -> None:
    store(app, "not a result")
    assert Roots(app).ended(["root"]) == set()


def test_nobody_can_tell_without_results_in_redis_or_without_redis() -> None:
    assert Roots(Celery("roots", backend="rpc://")).ended(["root"]) is None
    with Celery("roots", backend="redis://127.0.0.1:1/0") as app:
        assert Roots(app).ended(["root"]) is None
