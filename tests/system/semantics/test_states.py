"""States, ignored results, signals and reading results from elsewhere."""

from __future__ import annotations

import asyncio
from types import ModuleType

import pytest

from tests.helpers.projects import PATIENCE, Project
from tests.helpers.waiting import wait_until
from tests.helpers.workers import run_python
from tests.system.semantics.notes import notes, open_gate

async_and_sync = pytest.mark.parametrize("suffix", ["", "_sync"], ids=["async", "sync"])


@async_and_sync
def test_a_task_reports_its_progress(tasks: ModuleType, suffix: str) -> None:
    key = f"progress{suffix}"
    result = getattr(tasks, "progress" + suffix).delay(key)
    wait_until(lambda: notes(key), PATIENCE)
    assert (result.state, result.info) == ("HALFWAY", {"key": key})
    open_gate(key)
    assert result.get(timeout=PATIENCE) == key
    assert result.state == "SUCCESS"


@async_and_sync
def test_track_started_shows_which_replica_runs_the_task(tasks: ModuleType, project: Project, suffix: str) -> None:
    key = f"tracked{suffix}"
    task = getattr(tasks, "tracked" + suffix)
    result = task.delay(key)
    wait_until(lambda: result.state == "STARTED", PATIENCE)
    assert result.info["pid"] in project.pids(task.parent_env_name)
    assert result.info["hostname"].startswith(f"{task.parent_env_name}@")
    open_gate(key)
    assert result.get(timeout=PATIENCE) is None


@async_and_sync
def test_an_ignored_result_is_not_stored(tasks: ModuleType, suffix: str) -> None:
    key = f"silent{suffix}"
    result = getattr(tasks, "silent" + suffix).delay(key)
    wait_until(lambda: notes(key), PATIENCE)
    # What was submitted later and has ended was not overtaken: one replica, and a result is stored before the end.
    assert getattr(tasks, "add" + suffix).delay(1, 2).get(timeout=PATIENCE) == 3
    assert result.state == "PENDING"
    assert tasks.app.backend.client.get(tasks.app.backend.get_key_for_task(result.id)) is None


@async_and_sync
@pytest.mark.parametrize(
    ("outcome", "names"),
    [
        ("success", ["prerun", "success", "postrun"]),
        ("failure", ["prerun", "failure", "postrun"]),
        ("retry", ["prerun", "retry", "postrun", "prerun", "success", "postrun"]),
    ],
)
def test_signals_are_sent_in_the_replica(
    tasks: ModuleType, project: Project, suffix: str, outcome: str, names: list[str]
) -> None:
    task = getattr(tasks, "signalled" + suffix)
    result = task.delay("", outcome)
    result.get(timeout=PATIENCE, propagate=False)
    seen = wait_until(lambda: len(found := notes(f"signals:{result.id}")) >= len(names) and found, PATIENCE)
    # A retry is published before its signal, so another slot may begin the next attempt before the first one's is sent.
    assert sorted(name for name, _ in seen) == sorted(names)
    assert (seen[0][0], seen[-1][0]) == (names[0], names[-1])
    assert {pid for _, pid in seen} <= set(project.pids(task.parent_env_name))


def test_every_replica_announces_its_process(tasks: ModuleType, project: Project) -> None:
    assert {*project.pids("aio"), *project.pids("snc")} <= set(notes("process_init"))


def test_another_process_reads_results_by_id(tasks: ModuleType, project: Project) -> None:
    good, bad = tasks.pack.delay(7), tasks.fail.delay("no good")
    good.get(timeout=PATIENCE)
    bad.get(timeout=PATIENCE, propagate=False)
    printed = run_python(
        project.folder,
        f"""
        from tests.system.semantics.tasks import app, pack
        print(repr(pack.AsyncResult({good.id!r}).get()))
        print(app.AsyncResult({good.id!r}).get())
        print(app.AsyncResult({bad.id!r}).state, repr(app.AsyncResult({bad.id!r}).result))
        """,
        project.variables,
    )
    assert printed.splitlines() == [
        "Parcel(weight=7, label='packed')",
        "{'weight': 7, 'label': 'packed'}",
        "FAILURE ValueError('no good')",
    ]


def test_results_are_awaited_without_blocking_the_event_loop(tasks: ModuleType) -> None:
    """200 calls at once from asyncio, their failures too."""

    async def main() -> list[object]:
        calls = [tasks.add.delay(n, 1) for n in range(200)]
        values = await asyncio.gather(*calls)
        with pytest.raises(ValueError, match="no good"):
            await tasks.fail.delay("no good")
        return [*values, await tasks.pack.delay(3)]

    assert asyncio.run(main()) == [*range(1, 201), tasks.Parcel(weight=3, label="packed")]


def test_a_result_is_awaited_in_one_event_loop_after_another(tasks: ModuleType) -> None:
    async def call(x: int) -> int:
        value: int = await tasks.add.delay(x, x)
        return value

    assert [asyncio.run(call(n)) for n in range(3)] == [0, 2, 4]
