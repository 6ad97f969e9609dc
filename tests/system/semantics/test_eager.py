"""`apply` and `task_always_eager` run environment tasks in the calling process, with Celery's tracer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from types import ModuleType

import pytest
from celery import chain, chord, group

from tests.system.semantics.notes import notes


@pytest.fixture
def eager(tasks: ModuleType) -> Iterator[ModuleType]:
    """The project's module with an app that is eager for the length of a test."""
    tasks.app.conf.task_always_eager = True
    yield tasks
    tasks.app.conf.task_always_eager = False


def test_apply_runs_here_and_gives_types(tasks: ModuleType) -> None:
    assert tasks.pid.apply().get() == tasks.pid_async.apply().get() == os.getpid()
    assert tasks.stamp.apply((tasks.Parcel(weight=2), "red")).get() == tasks.Parcel(weight=2, label=" red")


def test_apply_stores_the_failure_and_get_raises_it(tasks: ModuleType) -> None:
    result = tasks.fail.apply(("no good",))
    assert (result.state, str(result.result)) == ("FAILURE", "no good")
    with pytest.raises(ValueError, match="no good"):
        result.get()


def test_an_eager_app_submits_nothing(eager: ModuleType) -> None:
    assert eager.pid.delay().get() == eager.pid_async.delay().get() == os.getpid()
    assert eager.stamp.delay(eager.Parcel(weight=2), "red").get() == eager.Parcel(weight=2, label=" red")


def test_eager_tasks_retry(eager: ModuleType) -> None:
    assert eager.strategy.delay("eager", 2).get() == 3
    assert notes("eager") == [0, 1, 2]


def test_an_eager_canvas(eager: ModuleType) -> None:
    assert chain(eager.pack.s(5), eager.stamp.s("blue"), eager.stamp.s("red"))().get().label == "packed blue red"
    assert chord([eager.pack.s(1), eager.pack.s(2)])(eager.weigh.s()).get() == 3
    assert group(eager.add.s(1, 1), eager.plain_add.s(2, 2))().get() == [2, 4]


def test_eager_results_are_awaited_in_asyncio_code(eager: ModuleType) -> None:
    async def main() -> list[object]:
        return [await eager.pid_async.delay(), await eager.pid.delay(), await eager.pack.delay(1)]

    assert asyncio.run(main()) == [os.getpid(), os.getpid(), eager.Parcel(weight=1, label="packed")]


def test_eager_tasks_call_tasks(eager: ModuleType) -> None:
    result = eager.parent_by_call.delay()
    child = result.get()
    assert (child["parent"], child["custom"]) == (result.id, {"colour": "blue"})
    assert eager.parent_by_delay.delay().get()["id"]
