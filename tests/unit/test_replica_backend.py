"""What a replica stores of a success without Celery's help: field by field what Celery would."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from hypothesis import given
from hypothesis import strategies as st

from flyte_celery.client.backend import CACHED_FIELD
from flyte_celery.replica.backend import ReplicaBackend

REQUESTS = st.none() | st.fixed_dictionaries(
    {"id": st.just("1")},
    optional={
        "group": st.none() | st.just("g"),
        "parent_id": st.none() | st.just("p"),
        "task": st.just("env.task"),
        "args": st.just([1]),
    },
).map(Context)
STATES = st.sampled_from(["SUCCESS", "FAILURE", "STARTED", "RETRY", "MINE"])


def metas(request: Any, state: str, **conf: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """That of a replica and Celery's own, without the moment."""
    app = Celery("app", set_as_current=False)
    app.conf.update(result_backend="redis://nowhere", **conf)
    made = []
    for backend in (ReplicaBackend, RedisBackend):
        meta = backend("redis://nowhere", app=app)._get_result_meta({"a": 1}, state, "traceback", request)
        assert (meta.pop("date_done") is None) == (state not in ("SUCCESS", "FAILURE"))
        made.append(meta)
    return made[0], made[1]


@given(REQUESTS, STATES, st.booleans())
def test_it_is_celerys(request_of_task: Any, state: str, extended: bool) -> None:
    ours, celerys = metas(request_of_task, state, result_extended=extended)
    assert (ours, list(ours)) == (celerys, list(celerys))


@pytest.mark.parametrize("extended", [False, True])
def test_a_result_from_the_cache_says_so(extended: bool) -> None:
    ours, celerys = metas(Context(id="1", **{CACHED_FIELD: True}), "SUCCESS", result_extended=extended)
    assert ours == {**celerys, "cached": True}
