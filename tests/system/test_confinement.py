"""What a task may do to its machine beside taking memory: processes, files, cores, what it leaves behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from flyte_celery.errors import ResourceExhaustedError
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.waiting import wait_until

SOURCE = """
    import asyncio
    import os
    import signal
    import subprocess
    import sys
    import time
    from pathlib import Path

    import flyte_celery as flyte

    app = flyte.init()
    files = []

    confined = flyte.TaskEnvironment(
        "confined",
        resources=flyte.Resources(cpu=1, disk="1Gi", shm="64Mi"),
        reusable=flyte.ReusePolicy(replicas=1, concurrency=2, idle_ttl=3600),
        max_attempts=1,
    )


    @confined.task
    async def bomb() -> None:
        mother = os.getpid()
        while True:
            if not os.fork():
                while os.getppid() != 1:
                    os.fork()
                    time.sleep(0.005)
                os._exit(0)
            await asyncio.sleep(0.005)


    @confined.task
    async def hold(mark: str, gate: str) -> int:
        with open(mark, "a") as file:
            file.write("+")
        while not os.path.exists(gate):
            await asyncio.sleep(0.01)
        return flyte.ctx().attempt_number


    @confined.task
    async def leak_files(number: int) -> int:
        files.extend(open(os.devnull) for _ in range(number))
        return os.getpid()


    @confined.task
    async def about() -> dict[str, int | str]:
        return {
            "pid": os.getpid(), "cores": len(os.sched_getaffinity(0)), "threads": os.environ["OMP_NUM_THREADS"],
        }


    @confined.task
    async def score() -> int:
        return int(Path("/proc/self/oom_score_adj").read_text())


    @confined.task
    async def leave_behind(how: str) -> int:
        sleep = "import time; time.sleep(600)"
        if how == "orphan":
            command = f"{sys.executable} -c '{sleep}' >/dev/null 2>&1 & echo $!"
            return int(subprocess.run(command, shell=True, capture_output=True, check=True).stdout)
        session = how == "session"
        return subprocess.Popen([sys.executable, "-c", sleep], start_new_session=session).pid


    @confined.task
    async def die() -> None:
        os._exit(1)
"""


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    """A worker whose replicas may run 40 processes and have 200 files open."""
    shared.write(SOURCE)
    shared.start("confined", env={"FLYTE_CELERY_MAX_PROCESSES": "40", "FLYTE_CELERY_MAX_FILES": "200"})
    return shared


def test_the_worker_says_once_what_it_does_not_limit(project: Project) -> None:
    log = project.workers[0].log()
    assert log.count("nothing limits disk='1Gi'") == 1
    assert "shm='64Mi'" in log


def test_a_replica_is_bound_to_its_cores(project: Project) -> None:
    """Its libraries compute with as many threads, and the kernel would rather end it than its worker."""
    own = int(Path(f"/proc/{project.workers[0].pid}/oom_score_adj").read_text())
    found: dict[str, Any] = project.call("confined.about")
    assert (found["cores"], found["threads"]) == (1, "1")
    assert project.call("confined.score") == min(1000, own + 300)


def test_a_fork_bomb_ends_alone(project: Project, tmp_path: Path) -> None:
    """The worker lives, its caller is told, and the neighbour runs again without losing its one attempt."""
    mark, gate = tmp_path / "mark", tmp_path / "gate"
    holding = project.send("confined.hold", str(mark), str(gate))
    wait_until(mark.exists, PATIENCE, "a neighbour that runs")
    with pytest.raises(ResourceExhaustedError, match=r"confined\.bomb\[.*may run 40: start fewer"):
        project.call("confined.bomb")
    wait_until(lambda: mark.read_text() == "++", PATIENCE, "a neighbour that runs again")
    gate.touch()
    assert holding.get(timeout=PATIENCE) == 0
    wait_until(lambda: len(project.workers[0].processes()) < 8, PATIENCE, "the end of the bomb")


def test_a_replica_that_leaks_files_is_replaced_before_they_run_out(project: Project) -> None:
    before = project.call("confined.leak_files", 170)
    wait_until(lambda: project.call("confined.about")["pid"] != before, PATIENCE, "another replica")
    before = project.call("confined.about")["pid"]
    with pytest.raises(OSError, match="Too many open files"):
        project.call("confined.leak_files", 500)
    wait_until(lambda: project.call("confined.about")["pid"] != before, PATIENCE, "another replica")
    assert project.call("confined.hold", os.devnull, os.devnull) == 0


@pytest.mark.parametrize("how", ["child", "orphan", "session"])
def test_what_a_task_leaves_behind_ends_with_its_replica(project: Project, how: str) -> None:
    pid = project.call("confined.leave_behind", how)
    assert _lives(pid)
    project.send("confined.die")
    wait_until(lambda: not _lives(pid), PATIENCE, "the end of the process")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
