"""Environments without reuse: one process per task, forked from a process that has imported everything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.projects import PATIENCE, Project
from tests.helpers.waiting import wait_until

SOURCE = """
    import asyncio
    import os
    import time
    from pathlib import Path

    import flyte_celery as flyte

    app = flyte.init()

    IMPORTED_BY = os.getpid()
    started = []

    once = flyte.TaskEnvironment("once")


    @once.on_startup
    async def note_start() -> None:
        started.append(os.getpid())


    @once.on_shutdown
    def note_end() -> None:
        with open(Path(__file__).parent / "ended.txt", "a") as file:
            file.write(f"{os.getpid()}\\n")


    @once.task
    def hold(folder: str, gate: str) -> dict[str, int | list[int]]:
        mark = Path(folder, str(os.getpid()))
        mark.touch()
        while not os.path.exists(gate):
            time.sleep(0.01)
        mark.unlink()
        return {"pid": os.getpid(), "imported_by": IMPORTED_BY, "started": started}


    @once.task
    async def hold_on_loop(folder: str, gate: str) -> dict[str, int | list[int]]:
        return await asyncio.to_thread(hold.forward, folder, gate)


    @once.task
    def crash(mark: str) -> str:
        try:
            open(mark, "x").close()
        except FileExistsError:
            return "second"
        os._exit(9)
"""


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    """A worker that runs two tasks at once."""
    shared.write(SOURCE)
    shared.start("once", "-c", "2")
    return shared


@pytest.mark.parametrize("task", ["once.hold", "once.hold_on_loop"])
def test_every_task_has_a_process_of_its_own_that_was_forked_warm(project: Project, tmp_path: Path, task: str) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    results = [project.send(task, str(tmp_path), str(gate)) for _ in range(6)]
    found = [result.get(timeout=PATIENCE) for result in results]
    assert len({each["pid"] for each in found}) == 6
    assert all(each["started"] == [each["pid"]] for each in found), "start-up hooks ran, once, in each"
    (launcher,) = {each["imported_by"] for each in found}
    assert launcher in project.workers[0].processes()
    assert launcher not in {each["pid"] for each in found}


def test_no_more_run_at_once_than_the_worker_was_told(project: Project, tmp_path: Path) -> None:
    gate, marks = tmp_path / "gate", tmp_path / "running"
    marks.mkdir()
    results = [project.send("once.hold", str(marks), str(gate)) for _ in range(5)]
    wait_until(lambda: len(list(marks.iterdir())) == 2, description="two running tasks")
    status = project.status("once")
    assert status["running"] == len(status["replicas"]) == 2
    assert len(list(marks.iterdir())) == 2
    gate.touch()
    assert len({result.get(timeout=PATIENCE)["pid"] for result in results}) == 5


def test_nothing_is_left_when_nothing_runs(project: Project, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    pid = project.call("once.hold", str(tmp_path), str(gate))["pid"]
    project.wait_for_replicas("once", 0)
    assert str(pid) in (project.folder / "ended.txt").read_text().split(), "its shutdown hook ran"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_task_whose_process_dies_runs_again_in_another_one(project: Project, tmp_path: Path) -> None:
    assert project.call("once.crash", str(tmp_path / "mark")) == "second"
