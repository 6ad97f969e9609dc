"""Options that `task.override(...)` sets for one call reach the worker, however the call gets there."""

from __future__ import annotations

import asyncio
import pickle
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
from celery import chain, chord, group

import flyte_celery as flyte
from tests.helpers.projects import PATIENCE
from tests.system.semantics.notes import notes

async_and_sync = pytest.mark.parametrize("suffix", ["", "_sync"], ids=["async", "sync"])


@async_and_sync
def test_a_call_has_the_retries_that_it_was_given(tasks: ModuleType, suffix: str) -> None:
    task = getattr(tasks, "strategy" + suffix)
    more = task.override(retries=flyte.RetryStrategy(4, flyte.Backoff(timedelta(milliseconds=1))))
    assert more.delay(f"override{suffix}", 4).get(timeout=PATIENCE) == 5
    assert notes(f"override{suffix}") == [0, 1, 2, 3, 4]
    assert flyte.run(more, f"override-run{suffix}", 4).outputs(PATIENCE) == (5,)
    with pytest.raises(RuntimeError, match="attempt 3"):
        task.delay(f"override-not{suffix}", 4).get(timeout=PATIENCE)


@async_and_sync
def test_they_survive_chains_groups_and_chords(tasks: ModuleType, suffix: str) -> None:
    task, add = getattr(tasks, "strategy" + suffix), getattr(tasks, "add" + suffix)
    more = task.override(retries=4)
    assert chain(add.s(1, 1), more.si(f"chain{suffix}", 4), add.s(1)).delay().get(timeout=PATIENCE) == 6
    many = group(more.s(f"group{suffix}-{n}", 4) for n in range(3))
    assert many.delay().get(timeout=PATIENCE) == [5, 5, 5]
    body = chord([more.s(f"header{suffix}-{n}", 3) for n in range(2)], more.si(f"body{suffix}", 4))
    assert body.delay().get(timeout=PATIENCE) == 5
    nested = chain(group(add.s(1, 1), more.si(f"inner{suffix}", 4)), more.si(f"outer{suffix}", 3))
    assert nested.delay().get(timeout=PATIENCE) == 4


@async_and_sync
def test_they_survive_a_pickle_of_the_template_and_of_the_signature(tasks: ModuleType, suffix: str) -> None:
    more = getattr(tasks, "strategy" + suffix).override(retries=3)
    assert pickle.loads(pickle.dumps(more)).delay(f"pickled{suffix}", 3).get(timeout=PATIENCE) == 4
    signature = pickle.loads(pickle.dumps(more.s(f"signature{suffix}", 3)))
    assert signature.delay().get(timeout=PATIENCE) == 4


@async_and_sync
def test_headers_of_ones_own_leave_them_alone(tasks: ModuleType, suffix: str) -> None:
    more = getattr(tasks, "strategy" + suffix).override(retries=3)
    result = more.apply_async((f"headers{suffix}", 3), headers={"mine": 1})
    assert result.get(timeout=PATIENCE) == 4


@async_and_sync
def test_a_map_of_an_overridden_task_overrides_each_call(tasks: ModuleType, suffix: str) -> None:
    more = getattr(tasks, "strategy" + suffix).override(retries=4)
    found = list(flyte.map(more, [f"map{suffix}-{n}" for n in range(3)], [4] * 3, return_exceptions=False))
    assert found == [5, 5, 5]


@async_and_sync
def test_a_child_has_overrides_of_its_own_alone(tasks: ModuleType, suffix: str) -> None:
    """The parent's retries are not its child's, and what the parent overrides for the child is."""
    parent = getattr(tasks, "override_child" + suffix)
    assert parent.override(retries=7).delay(f"child{suffix}", 3).get(timeout=PATIENCE) == 5
    assert notes(f"child{suffix}") == [0, 1, 2, 3, 4]


@async_and_sync
def test_a_result_may_be_as_large_as_the_call_says(tasks: ModuleType, suffix: str) -> None:
    echo = getattr(tasks, "echo" + suffix)
    with pytest.raises(flyte.errors.InlineIOMaxBytesBreached, match="arguments"):
        echo.override(max_inline_io_bytes=100).delay("x" * 200)
    assert echo.override(max_inline_io_bytes=1000).delay("x" * 200).get(timeout=PATIENCE) == "x" * 200
    with pytest.raises(flyte.errors.InlineIOMaxBytesBreached, match="result"):
        getattr(tasks, "repeat" + suffix).override(max_inline_io_bytes=100).delay("x", 200).get(timeout=PATIENCE)


@async_and_sync
def test_a_foreign_header_leaves_the_worker_alone(tasks: ModuleType, suffix: str) -> None:
    add = getattr(tasks, "add" + suffix)
    for header in ("text", 5, ["retries"], {"retries": "many", "timeout": [], "nobody": {}}):
        result = add.apply_async((1, 2), headers={"flyte_celery_overrides": header})
        assert result.get(timeout=PATIENCE) == 3


def test_eager_calls_have_them_too(tasks: ModuleType) -> None:
    assert tasks.strategy_sync.override(retries=4).apply(("eager-override", 4)).get() == 5


@pytest.mark.parametrize("call", [
    lambda task: task.delay(1, 1),
    lambda task: task.s(1, 1),
    lambda task: flyte.run(task, 1, 1),
    lambda task: list(flyte.map(task, [1], [1])),
    lambda task: asyncio.run(flyte.run.aio(task, 1, 1)),
], ids=["delay", "signature", "run", "map", "run.aio"])  # fmt: skip
def test_a_call_to_another_queue_is_refused_and_not_sent_elsewhere(tasks: ModuleType, call: Any) -> None:
    with pytest.raises(ValueError, match=r"queue='other' of aio\.add is not possible"):
        call(tasks.add.override(queue="other"))
    assert tasks.add.override(queue="aio").delay(1, 1).get(timeout=PATIENCE) == 2
