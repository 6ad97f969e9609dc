"""A task knows who it is, wherever its code runs, however many others run in the same replica."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.helpers.projects import PATIENCE
from tests.system.semantics.notes import notes

async_and_sync = pytest.mark.parametrize("suffix", ["", "_sync"], ids=["async", "sync"])


@async_and_sync
def test_request_current_task_and_ctx_are_its_own_everywhere(tasks: ModuleType, suffix: str) -> None:
    """After an await, in gathered and created sub-tasks, in task groups and in threads, with 60 tasks at once."""
    task = getattr(tasks, "identity" + suffix)
    results = [task.delay((n % 4) / 1000) for n in range(60)]
    for result in results:
        for place, seen in result.get(timeout=PATIENCE).items():
            assert seen == [result.id, result.id, result.id, task.name], place


@pytest.mark.parametrize("name", ["parent_by_delay", "parent_by_call"])
def test_a_child_knows_its_parent_and_its_root(tasks: ModuleType, name: str) -> None:
    parents = [getattr(tasks, name).delay() for _ in range(20)]
    for parent in parents:
        child = parent.get(timeout=PATIENCE)
        assert (child["parent"], child["root"], child["run"]) == (parent.id, parent.id, parent.id)
        assert child["id"] != parent.id


def test_a_child_of_a_sync_task_knows_its_parent_and_its_root(tasks: ModuleType) -> None:
    parent = tasks.parent_by_delay_sync.delay()
    child = tasks.lineage.AsyncResult(parent.get(timeout=PATIENCE)).get(timeout=PATIENCE)
    assert (child["parent"], child["root"]) == (parent.id, parent.id)


def test_the_context_of_a_task(tasks: ModuleType) -> None:
    with tasks.flyte.custom_context(colour="green"):
        result = tasks.lineage.delay()
    seen = result.get(timeout=PATIENCE)
    assert seen["id"] == seen["root"] == seen["run"] == result.id
    assert seen["parent"] is None
    assert seen["custom"] == {"colour": "green"}
    assert seen["environment"] == "aio"
    assert seen["worker"].startswith("aio@")


@pytest.mark.parametrize(("name", "colour"), [("parent_by_call", "blue"), ("parent_by_call_sync", "red")])
def test_a_custom_context_flows_to_children(tasks: ModuleType, name: str, colour: str) -> None:
    with tasks.flyte.custom_context(colour="green", size="small"):
        child = getattr(tasks, name).delay().get(timeout=PATIENCE)
    assert child["custom"] == {"colour": colour, "size": "small"}


def test_a_custom_context_survives_a_retry(tasks: ModuleType) -> None:
    with tasks.flyte.custom_context(colour="green"):
        result = tasks.retry_with_context.delay("context")
    assert result.get(timeout=PATIENCE) == {"colour": "green"}
    assert notes("context") == [{"colour": "green"}] * 2
