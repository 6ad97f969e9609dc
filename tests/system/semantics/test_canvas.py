"""Links, chains, groups and chords, within environments, across them, and mixed with plain tasks."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from celery import chain, chord, group, signature

from tests.helpers.projects import PATIENCE, Project
from tests.helpers.waiting import wait_until
from tests.system.semantics.notes import notes

async_and_sync = pytest.mark.parametrize("suffix", ["", "_sync"], ids=["async", "sync"])


def test_a_link_gets_the_result_of_its_task(tasks: ModuleType) -> None:
    tasks.add.apply_async((2, 3), link=tasks.record_result.s("link"))
    assert wait_until(lambda: notes("link"), PATIENCE) == [5]


def test_an_immutable_link_does_not(tasks: ModuleType) -> None:
    tasks.add.apply_async((2, 3), link=tasks.record.si("immutable", 1))
    assert wait_until(lambda: notes("immutable"), PATIENCE) == [1]


def test_a_chain_goes_through_environments_and_plain_tasks(tasks: ModuleType) -> None:
    """1 + 1 = 2 in an async environment, + 3 in a sync one, + 4 in a plain worker, + 5 in the async one again."""
    workflow = chain(tasks.add.s(1, 1), tasks.add_sync.s(3), tasks.plain_add.s(4), tasks.add.s(5))
    result = workflow.apply_async()
    assert result.get(timeout=PATIENCE) == 14
    assert (result.parent.get(), result.parent.parent.get()) == (9, 5)


def test_the_pipe_operator_makes_a_chain(tasks: ModuleType) -> None:
    assert (tasks.add.s(1, 2) | tasks.add_sync.s(10))().get(timeout=PATIENCE) == 13


def test_models_travel_through_a_chain_with_their_types(tasks: ModuleType) -> None:
    result = chain(tasks.pack.s(5), tasks.stamp.s("blue"), tasks.stamp.s(ink="red")).apply_async()
    assert result.get(timeout=PATIENCE) == tasks.Parcel(weight=5, label="packed blue red")


def test_models_are_passed_to_delay_and_to_signatures(tasks: ModuleType) -> None:
    parcel = tasks.Parcel(weight=5, label="box")
    expected = tasks.Parcel(weight=5, label="box red")
    assert tasks.stamp.delay(parcel, ink="red").get(timeout=PATIENCE) == expected
    assert tasks.stamp.s(parcel, "red").delay().get(timeout=PATIENCE) == expected
    assert tasks.stamp.delay({"weight": 5, "label": "box"}, "red").get(timeout=PATIENCE) == expected


@async_and_sync
def test_a_group(tasks: ModuleType, suffix: str) -> None:
    result = group(getattr(tasks, "add" + suffix).s(n, n) for n in range(40)).apply_async()
    assert result.get(timeout=PATIENCE) == [2 * n for n in range(40)]
    assert result.successful()


def test_a_group_mixes_environments_and_plain_tasks(tasks: ModuleType) -> None:
    result = group(tasks.add.s(1, 1), tasks.add_sync.s(2, 2), tasks.plain_add.s(3, 3)).apply_async()
    assert result.get(timeout=PATIENCE) == [2, 4, 6]


def test_the_results_of_a_group_have_their_types_one_by_one(tasks: ModuleType) -> None:
    result = group(tasks.pack.s(1), tasks.add.s(1, 1)).apply_async()
    assert [each.get(timeout=PATIENCE) for each in result] == [tasks.Parcel(weight=1, label="packed"), 2]


@pytest.mark.parametrize("body", ["total", "total_sync", "plain_total"])
@pytest.mark.parametrize("header", ["add", "add_sync", "plain_add", "mixed"])
def test_a_chord(tasks: ModuleType, header: str, body: str) -> None:
    names = ["add", "add_sync", "plain_add"] if header == "mixed" else [header] * 3
    result = chord([getattr(tasks, name).s(n, n) for n, name in enumerate(names)])(getattr(tasks, body).s())
    assert result.get(timeout=PATIENCE) == 6


def test_the_body_of_a_chord_gets_models(tasks: ModuleType) -> None:
    result = (group(tasks.pack.s(n) for n in range(10)) | tasks.weigh.s()).apply_async()
    assert result.get(timeout=PATIENCE) == 45


def test_a_chord_whose_header_fails_fails_its_body_and_calls_the_errback(tasks: ModuleType) -> None:
    body = tasks.total_sync.s().on_error(tasks.errback_by_id_sync.s("chord"))
    result = chord([tasks.add.s(1, 1), tasks.fail.s("no good"), tasks.fail_sync.s("no good")])(body)
    with pytest.raises(Exception, match="no good"):
        result.get(timeout=PATIENCE)
    assert wait_until(lambda: notes("chord"), PATIENCE) == [result.id]


def test_a_chain_after_a_chord_and_a_group_after_a_chain(tasks: ModuleType) -> None:
    first = chord([tasks.add.s(n, 0) for n in range(5)], tasks.total.s())
    result = chain(first, tasks.add_sync.s(1), group(tasks.add.s(10), tasks.plain_add.s(20))).apply_async()
    assert result.get(timeout=PATIENCE) == [21, 31]


def test_a_failure_ends_a_chain_and_calls_its_errback(tasks: ModuleType) -> None:
    workflow = chain(tasks.fail.si("no good"), tasks.record.si("never", 1))
    result = workflow.apply_async(link_error=tasks.errback_by_id.s("chain"))
    with pytest.raises(ValueError, match="no good"):
        result.parent.get(timeout=PATIENCE)
    assert wait_until(lambda: notes("chain"), PATIENCE) == [result.parent.id]
    assert not notes("never")


def test_signatures_travel_as_json(tasks: ModuleType) -> None:
    sent = tasks.app.backend.encode(dict(tasks.stamp.s(tasks.Parcel(weight=1), ink="red")))
    received = signature(tasks.app.backend.decode(sent), app=tasks.app)
    assert received.apply_async().get(timeout=PATIENCE) == tasks.Parcel(weight=1, label=" red")


def test_a_task_replaces_itself_with_a_workflow(tasks: ModuleType) -> None:
    assert tasks.replaced.delay(3).get(timeout=PATIENCE) == 11


def test_options_of_a_signature_reach_the_task(tasks: ModuleType) -> None:
    sig: Any = tasks.lineage.signature(task_id="chosen-id").set(priority=3)
    assert sig.apply_async().get(timeout=PATIENCE)["id"] == "chosen-id"


@async_and_sync
def test_map_starmap_and_chunks_run_in_one_task(tasks: ModuleType, suffix: str) -> None:
    add = getattr(tasks, "add" + suffix)
    assert add.starmap([(1, 2), (3, 4)]).delay().get(timeout=PATIENCE) == [3, 7]
    assert add.chunks([(1, 2), (3, 4), (5, 6)], 2).group()().get(timeout=PATIENCE) == [[3, 7], [11]]
    assert getattr(tasks, "total" + suffix).map([[1, 2], [3]]).delay().get(timeout=PATIENCE) == [3, 3]


_WORKFLOWS: dict[str, Callable[[ModuleType, Any], Any]] = {
    "starmap": lambda _, task: task.starmap([(1,), (2,)]),
    "map": lambda _, task: task.map([1, 2]),
    "chunks": lambda _, task: task.chunks([(1,), (2,), (3,)], 2),
    "group of chunks": lambda _, task: task.chunks([(1,), (2,), (3,)], 2).group(),
    "group": lambda _, task: group([task.starmap([(1,)]), task.map([2])]),
    "chain begins": lambda tasks, task: task.map([1, 2]) | tasks.same.s(),
    "chain ends": lambda tasks, task: tasks.same.s(1) | task.map([1, 2]),
    "chord": lambda tasks, task: chord([task.starmap([(1,)]), task.map([2])], tasks.same.s()),
    "by name": lambda tasks, task: tasks.app.signature("celery.starmap", kwargs={"task": task.s(), "it": [(1,)]}),
}


@async_and_sync
@pytest.mark.parametrize("workflow", _WORKFLOWS)
def test_map_starmap_and_chunks_run_in_the_environments_replicas(
    tasks: ModuleType, project: Project, workflow: str, suffix: str
) -> None:
    """Wherever they stand in a workflow: never in the plain worker, which knows no limits, secrets or warm replicas."""
    task = getattr(tasks, "pid_of_item" + suffix)
    ran = _WORKFLOWS[workflow](tasks, task).apply_async().get(timeout=PATIENCE)
    assert set(_numbers(ran)) <= set(project.pids(task.parent_env_name))


def _numbers(nested: Any) -> list[int]:
    return [nested] if isinstance(nested, int) else [number for part in nested for number in _numbers(part)]


def test_the_items_of_a_starmap_have_their_types(tasks: ModuleType) -> None:
    result = tasks.stamp.starmap([(tasks.Parcel(weight=1).model_dump(), "red")]).delay()
    assert result.get(timeout=PATIENCE) == [{"weight": 1, "label": " red"}]
