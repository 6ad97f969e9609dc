"""What kills a replica, a launcher or a worker, and what happens to their tasks: none is lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from flyte_celery.errors import RuntimeUserError
from tests.helpers import processes
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.waiting import wait_until

SOURCE = """
    import asyncio
    import contextlib
    import ctypes
    import os
    import signal
    import sys
    import time
    from pathlib import Path

    import flyte_celery as flyte

    app = flyte.init()
    here = Path(__file__).parent


    def die(how: str) -> None:
        match how:
            case "SIGKILL" | "SIGSEGV":
                os.kill(os.getpid(), signal.Signals[how])
            case "os._exit":
                os._exit(7)
            case "sys.exit":
                sys.exit("enough")


    def is_first(mark: str) -> bool:
        try:
            open(mark, "x").close()
        except FileExistsError:
            return False
        return True


    on_main = flyte.TaskEnvironment("on-main", reusable=flyte.ReusePolicy(replicas=2, concurrency=1, idle_ttl=3600))
    on_loop = flyte.TaskEnvironment("on-loop", reusable=flyte.ReusePolicy(replicas=2, concurrency=4, idle_ttl=3600))


    @on_main.task
    def crash_main(how: str, mark: str) -> int:
        if is_first(mark):
            die(how)
        return os.getpid()


    @on_loop.task
    async def crash_loop(how: str, mark: str) -> int:
        await asyncio.sleep(0)
        if is_first(mark):
            die(how)
        return os.getpid()


    @on_loop.task
    async def hold(gate: str, log: str) -> int:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\\n")
        while not os.path.exists(gate):
            await asyncio.sleep(0.01)
        return os.getpid()


    @on_loop.task
    async def block(gate: str, log: str) -> int:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\\n")
        while not os.path.exists(gate):
            time.sleep(0.01)
        return os.getpid()


    @on_main.task
    def hide(mark: str) -> int:
        "Runs for ever in a process group of its own, deaf to what can be ignored."
        with contextlib.suppress(PermissionError):  # the kernel lets no leader of a group have a session of its own
            os.setsid()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        open(mark, "x").close()
        while True:
            pass


    one_by_one = flyte.TaskEnvironment(
        "one-by-one", reusable=flyte.ReusePolicy(replicas=(0, 3), concurrency=1, idle_ttl=3600)
    )


    @one_by_one.on_startup
    async def only_the_first_is_quick() -> None:
        while os.environ["FLYTE_CELERY_REPLICA"] != "1" and not (here / "all-may-start").exists():
            await asyncio.sleep(0.01)


    @one_by_one.on_shutdown
    async def say_goodbye() -> None:
        (here / f"goodbye-{os.getpid()}").touch()


    @one_by_one.task
    async def wait_for(gate: str) -> int:
        try:
            while not os.path.exists(gate):
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            (here / f"cancelled-{os.getpid()}").touch()
            raise
        return os.getpid()
"""

#: What only a look of the autoscaler would mend stays broken for the time of a test.
NO_LOOKS = {"FLYTE_CELERY_AUTOSCALE_INTERVAL": "600"}


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    shared.write(SOURCE)
    for worker in [shared.start(name, env=NO_LOOKS, ready=False) for name in ("on-main", "on-loop")]:
        worker.wait_ready()
    return shared


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "os._exit"])
@pytest.mark.parametrize("task", ["on-main.crash_main", "on-loop.crash_loop"])
def test_a_task_whose_replica_dies_runs_again_in_another_one(
    project: Project, tmp_path: Path, task: str, how: str
) -> None:
    environment = task.partition(".")[0]
    before = project.wait_for_replicas(environment, 2)
    mark = tmp_path / "mark"
    survivor = project.send(task, how, str(mark)).get(timeout=PATIENCE)
    after = project.wait_for_replicas(environment, 2)
    assert mark.exists()
    assert len(set(before) & set(after)) == 1, "one died and was replaced at once"
    assert survivor in after


@pytest.mark.parametrize("task", ["on-main.crash_main", "on-loop.crash_loop"])
def test_sys_exit_fails_the_task_and_spares_the_replica(project: Project, tmp_path: Path, task: str) -> None:
    environment = task.partition(".")[0]
    before = project.wait_for_replicas(environment, 2)
    with pytest.raises(RuntimeUserError, match=r"sys\.exit\(enough\)") as caught:
        project.send(task, "sys.exit", str(tmp_path / "mark")).get(timeout=PATIENCE)
    assert caught.value.code == "SystemExit"
    assert project.wait_for_replicas(environment, 2) == before


def test_tasks_that_ran_beside_the_one_that_crashed_run_again(project: Project, tmp_path: Path) -> None:
    oldest, _ = project.wait_for_replicas("on-loop", 2)
    gate, log = tmp_path / "gate", tmp_path / "log"
    neighbours = [project.send("on-loop.hold", str(gate), str(log)) for _ in range(3)]
    project.wait(lambda: lines(log) == [str(oldest)] * 3, description="three neighbours in the oldest replica")
    crash = project.send("on-loop.crash_loop", "SIGKILL", str(tmp_path / "mark"))
    project.wait(lambda: len(lines(log)) == 6, description="three neighbours that run again")
    gate.touch()
    results = [each.get(timeout=PATIENCE) for each in (*neighbours, crash)]
    assert oldest not in results
    assert len(lines(log)) == 6


def test_tasks_that_had_not_begun_go_elsewhere_and_run_once(project: Project, tmp_path: Path) -> None:
    """They were sent to a replica whose loop is blocked, so when it is killed nothing of them has happened."""
    oldest, _ = project.wait_for_replicas("on-loop", 2)
    gate, log = tmp_path / "gate", tmp_path / "log"
    blocked = project.send("on-loop.block", str(gate), str(log))
    project.wait(lambda: lines(log) == [str(oldest)], description="a blocked loop")
    gate_of_others, log_of_others = tmp_path / "open", tmp_path / "others"
    gate_of_others.touch()
    others = [project.send("on-loop.hold", str(gate_of_others), str(log_of_others)) for _ in range(3)]
    project.wait(lambda: project.replicas("on-loop")[0]["running"] == 4, description="three tasks behind it")
    gate.touch()
    os.kill(oldest, signal.SIGKILL)
    assert oldest not in [each.get(timeout=PATIENCE) for each in others]
    assert blocked.get(timeout=PATIENCE) != oldest
    assert len(lines(log_of_others)) == 3


def test_a_launcher_that_is_killed_is_replaced_with_all_its_replicas(project: Project, tmp_path: Path) -> None:
    before = project.wait_for_replicas("on-loop", 2)
    gate, log = tmp_path / "gate", tmp_path / "log"
    result = project.send("on-loop.hold", str(gate), str(log))
    project.wait(lambda: lines(log), description="a running task")
    (launcher,) = {processes.parent(pid) for pid in before}
    os.kill(launcher, signal.SIGKILL)
    project.wait(lambda: not set(before) & set(project.pids("on-loop")), description="other replicas")
    after = project.wait_for_replicas("on-loop", 2)
    assert not any(processes.alive(pid) for pid in before)
    gate.touch()
    assert result.get(timeout=PATIENCE) in after


def test_nothing_outlives_a_killed_worker_for_long(project: Project, tmp_path: Path) -> None:
    """The replicas are busy in sync bodies that never let go, in process groups of their own."""
    worker = project.workers[0]
    marks = [tmp_path / "first", tmp_path / "second"]
    for mark in marks:
        project.send("on-main.hide", str(mark))
    project.wait(lambda: all(mark.exists() for mark in marks), description="two replicas in hiding")
    assert len(worker.processes()) == 4, "the worker, its launcher, two replicas"
    worker.kill()
    wait_until(lambda: not worker.processes(), timeout=2.0, description="the end of every process of the worker")


class TestAWorkerThatIsToldToStop:
    """One task runs; two are claimed and wait for replicas that are still starting."""

    @pytest.fixture
    def folder(self, project: Project) -> Path:
        (project.folder / "all-may-start").unlink(missing_ok=True)
        return project.folder

    def test_hands_back_at_once_and_lets_running_tasks_finish(self, project: Project, folder: Path) -> None:
        worker = project.start("one-by-one", env=NO_LOOKS)
        gate = folder / "finish"
        running, *waiting = [project.send("one-by-one.wait_for", str(gate)) for _ in range(3)]
        project.wait(lambda: project.status("one-by-one")["running"] == 1, description="a running task")
        project.wait(lambda: project.status("one-by-one")["waiting"] == 2, description="two that wait")
        worker.terminate()
        project.wait(lambda: project.depth("one-by-one") == 2, 5.0, "two tasks that are back in the queue")
        gate.touch()
        pid = running.get(timeout=PATIENCE)
        assert worker.wait() == 0
        assert (folder / f"goodbye-{pid}").exists()
        assert project.depth("one-by-one") == 2
        (folder / "all-may-start").touch()
        worker = project.start("one-by-one")
        assert len([each.get(timeout=PATIENCE) for each in waiting]) == 2
        worker.terminate()
        assert worker.wait() == 0

    def test_hands_back_what_exceeds_the_grace_period_and_leaves(self, project: Project, folder: Path) -> None:
        grace = 0.5
        worker = project.start("one-by-one", "--grace", str(grace), env=NO_LOOKS)
        gate = folder / "never"
        results = [project.send("one-by-one.wait_for", str(gate)) for _ in range(3)]
        project.wait(lambda: project.status("one-by-one")["running"] == 1, description="a running task")
        began = time.monotonic()
        worker.terminate()
        assert worker.wait() == 0
        assert grace <= time.monotonic() - began < grace + 10  # it is 2 by promise; more for a busy machine
        assert project.depth("one-by-one") == 3
        assert list(folder.glob("cancelled-*")), "the coroutine was cancelled and could clean up"
        (folder / "all-may-start").touch()
        gate.touch()
        worker = project.start("one-by-one")
        assert len([each.get(timeout=PATIENCE) for each in results]) == 3
        worker.kill()

    def test_twice_does_not_wait_for_the_grace_period(self, project: Project, folder: Path) -> None:
        worker = project.start("one-by-one", env=NO_LOOKS)
        project.send("one-by-one.wait_for", str(folder / "later"))
        project.wait(lambda: project.status("one-by-one")["running"] == 1, description="a running task")
        worker.terminate()
        worker.wait_for_log("waiting up to")
        worker.terminate()
        assert worker.wait(timeout=20.0) == 0
        assert project.depth("one-by-one") == 1
