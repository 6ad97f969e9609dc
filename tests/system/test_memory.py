"""Tasks that use more memory than their replica may: who is told what, and who runs again."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery.exceptions import WorkerLostError

from flyte_celery.errors import OOMError
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.waiting import wait_until

SOURCE = """
    import asyncio
    import datetime
    import os
    import subprocess
    import sys
    import time
    from pathlib import Path

    import flyte_celery as flyte

    app = flyte.init()
    MIB = 2**20
    leaked = []

    shared = flyte.TaskEnvironment(
        "shared",
        resources=flyte.Resources(memory=("64Mi", "256Mi")),
        reusable=flyte.ReusePolicy(replicas=1, concurrency=4, idle_ttl=3600),
        max_attempts=1,
    )
    once = flyte.TaskEnvironment("once", resources=flyte.Resources(memory="128Mi"), max_attempts=1)


    async def take(mib: int) -> list[bytearray]:
        blocks = []
        for _ in range(mib // 4):
            blocks.append(bytearray(4 * MIB))
            await asyncio.sleep(0.001)
        return blocks


    @shared.task
    async def grow(mib: int) -> int:
        return len(await take(mib))


    @shared.task
    async def leak(mib: int) -> int:
        leaked.extend(await take(mib))
        return os.getpid()


    @shared.task
    async def hold(mark: str, gate: str) -> int:
        with open(mark, "a") as file:
            file.write("+")
        while not os.path.exists(gate):
            await asyncio.sleep(0.01)
        return flyte.ctx().attempt_number


    @shared.task(retries=flyte.RetryStrategy(2, flyte.Backoff(datetime.timedelta(seconds=0.5))))
    async def grow_at_first(mark: str, attempts: int) -> int:
        attempt = flyte.ctx().attempt_number
        with open(mark, "a") as file:
            file.write(f"{attempt} {time.time()}\\n")
        if attempt < attempts:
            await take(800)
        return attempt


    @once.task
    def grow_once(mib: int) -> int:
        return len(bytearray(mib * MIB))


    @once.task
    def grow_in_children(mib: int, children: int) -> int:
        code = f"import time; x = bytearray({mib} * 2**20); time.sleep(60)"
        running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(children)]
        return max(each.wait() for each in running)


    @once.task
    def share_with_children(mib: int, children: int) -> int:
        block = bytearray(mib * MIB)
        pids = []
        for _ in range(children):
            if not (pid := os.fork()):
                time.sleep(1)
                os._exit(0)
            pids.append(pid)
        return len([os.waitpid(pid, 0) for pid in pids])


    @once.task
    def give_up() -> None:
        raise MemoryError("no more")


    @once.task
    def grow_in_group(folder: str, mib: int) -> int:
        Path(folder, "cgroup.procs").write_text(str(os.getpid()))
        return len(bytearray(mib * MIB))
"""


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    """Workers of a warm and of an ephemeral environment."""
    shared.write(SOURCE)
    shared.start("shared")
    shared.start("once", "-c", "2")
    return shared


def test_a_task_over_its_limit_is_told_what_it_used(project: Project) -> None:
    """The limit of a pair is its second part; the text names the task, the limit and the peak."""
    with pytest.raises(OOMError, match=r"shared\.grow\[.*limit of 256\.0 MiB.*: \d+\.\d MiB at its peak") as caught:
        project.call("shared.grow", 800)
    assert caught.value.code == "OOMKilled"


def test_running_out_of_memory_uses_up_retries(project: Project, tmp_path: Path) -> None:
    """Each attempt has its number, and the back-off holds, as where the body fails by itself."""
    mark = tmp_path / "mark"
    assert project.call("shared.grow_at_first", str(mark), 2) == 2
    begun = [line.split() for line in mark.read_text().splitlines()]
    assert [attempt for attempt, _ in begun] == ["0", "1", "2"]
    times = [float(at) for _, at in begun]
    assert times[1] - times[0] >= 0.5 <= times[2] - times[1]


def test_without_any_left_the_caller_is_told(project: Project, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    result = project.send("shared.grow_at_first", str(mark), 9)
    with pytest.raises(OOMError, match=r"shared\.grow_at_first"):
        result.get(timeout=PATIENCE)
    assert [line.split()[0] for line in mark.read_text().splitlines()] == ["0", "1", "2"]


def test_a_task_below_its_limit_is_left_alone(project: Project) -> None:
    assert project.call("shared.grow", 160) == 40


def test_neighbours_of_an_allocating_task_run_again_without_losing_an_attempt(project: Project, tmp_path: Path) -> None:
    """With one attempt each, a counted loss would be the end of them."""
    gate, marks = tmp_path / "gate", [tmp_path / "a", tmp_path / "b"]
    holding = [project.send("shared.hold", str(mark), str(gate)) for mark in marks]
    wait_until(lambda: all(mark.exists() for mark in marks), PATIENCE, "two neighbours that run")
    with pytest.raises(OOMError, match=r"shared\.grow"):
        project.send("shared.grow", 800).get(timeout=PATIENCE)
    wait_until(lambda: all(mark.read_text() == "++" for mark in marks), PATIENCE, "neighbours that run again")
    gate.touch()
    assert [result.get(timeout=PATIENCE) for result in holding] == [0, 0]


def test_a_task_is_not_blamed_for_what_earlier_ones_have_left_behind(project: Project) -> None:
    """200 MiB were leaked into the replica, so that 120 MiB more are too many there, and fit into a fresh one."""
    before = project.call("shared.leak", 200)
    assert project.call("shared.grow", 120) == 30
    assert project.call("shared.leak", 0) != before


def test_an_ephemeral_replica_has_the_limit_as_well(project: Project) -> None:
    with pytest.raises(OOMError, match=r"limit of 128\.0 MiB"):
        project.call("once.grow_once", 400)


def test_the_processes_that_a_task_starts_count(project: Project) -> None:
    """Each of the two is within the limit, together they are not."""
    with pytest.raises(OOMError, match=r"once\.grow_in_children"):
        project.call("once.grow_in_children", 80, 2)


def test_what_processes_share_counts_once(project: Project) -> None:
    """Four forks that have 80 MiB in common hold 80 MiB."""
    assert project.call("once.share_with_children", 80, 4) == 4


def test_a_memory_error_is_the_task_s_own(project: Project) -> None:
    """Python's exception is one like any other."""
    with pytest.raises(MemoryError, match="no more"):
        project.call("once.give_up")


def test_a_killed_replica_is_not_taken_for_one_that_ran_out_of_memory(project: Project, tmp_path: Path) -> None:
    """SIGKILL alone says nothing of memory: the task has lost its one attempt."""

    mark = tmp_path / "mark"
    result = project.send("shared.hold", str(mark), str(tmp_path / "gate"))
    wait_until(mark.exists, PATIENCE, "a running task")
    (running,) = [each for each in project.replicas("shared", "ready") if each["running"]]
    os.kill(running["pid"], signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        result.get(timeout=PATIENCE)


@pytest.fixture
def kernel_group() -> Iterator[Path]:
    """A group of processes that the kernel itself limits to 32 MiB; skips where the test may not make one."""
    if (folder := _limited_group()) is None:
        pytest.skip("this machine lets nobody limit memory by the kernel")
    yield folder
    wait_until(lambda: not (folder / "cgroup.procs").read_text(), description="an empty group")
    folder.rmdir()


def _limited_group() -> Path | None:
    for root, limit in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        folder = Path(root, f"flyte-celery-test-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(OSError):
            folder.mkdir()
            if (folder / limit).exists():
                (folder / limit).write_text(str(32 * 2**20))
                return folder
            folder.rmdir()
    return None


def test_the_kernel_s_own_killing_is_recognised(project: Project, kernel_group: Path) -> None:
    """The watchdog's limit is 128 MiB, but the kernel ends the process at 32 MiB."""
    with pytest.raises(OOMError, match="killed by the kernel"):
        project.call("once.grow_in_group", str(kernel_group), 100)
