"""`ReusePolicy(scope="run")`: every run has replicas of its own, within the bounds, which go with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from tests.helpers import processes
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.waiting import wait_until

SOURCE = """
    import asyncio
    import os
    from pathlib import Path

    import flyte_celery as flyte

    app = flyte.init()


    def define(name: str, **policy) -> None:
        env = flyte.TaskEnvironment(name, reusable=flyte.ReusePolicy(scope="run", idle_ttl=3600, **policy))

        @env.task
        async def who(seconds: float = 0.0) -> int:
            await asyncio.sleep(seconds)
            return os.getpid()

        @env.task
        async def hold(gate: str) -> int:
            Path(f"{gate}.{os.getpid()}").touch()
            while not os.path.exists(gate):
                await asyncio.sleep(0.01)
            return os.getpid()

        @env.task
        async def parent(children: int, seconds: float = 0.0, gate: str = "") -> list[int]:
            if gate:
                Path(f"{gate}.{os.getpid()}").touch()
            while gate and not os.path.exists(gate):
                await asyncio.sleep(0.01)
            return [os.getpid(), *await asyncio.gather(*[who(seconds) for _ in range(children)])]

        if policy.get("concurrency", 1) == 1:

            @env.task
            def sync_parent(children: int) -> list[int]:
                return [os.getpid(), *[who.delay().get() for _ in range(children)]]

        @env.task
        async def deep(n: int) -> list[int]:
            return [os.getpid(), *(await deep(n - 1) if n else [])]

        @env.task
        async def leaves_behind(gate: str) -> int:
            hold.delay(gate)
            return os.getpid()


    define("many", replicas=(0, 4))
    define("one", replicas=1)
    define("two", replicas=2)
    define("kept", replicas=(1, 2))
    define("pair", replicas=1, concurrency=2)
    define("wide", replicas=(0, 2), concurrency=4)
    roots = flyte.TaskEnvironment("roots", reusable=flyte.ReusePolicy(replicas=1, concurrency=50, idle_ttl=3600))


    @roots.task
    async def calls(env: str, number: int, gate: str = "", at_once: int = 1) -> list[int]:
        who = app.tasks[f"{env}.who"]
        pids = []
        while number:
            some = [who.delay(0.005) for _ in range(min(at_once, number))]
            pids += await asyncio.gather(*some)
            number -= len(some)
        if gate:
            Path(gate + ".reached").touch()
        while gate and not os.path.exists(gate):
            await asyncio.sleep(0.01)
        return pids
"""


@pytest.fixture
def project(alone: Project) -> Project:
    """A project without workers."""
    alone.write(SOURCE)
    return alone


def of_the_run(project: Project, environment: str, run: str) -> list[dict[str, Any]]:
    """The replicas of an environment that belong to a run."""
    return [each for each in project.replicas(environment) if each["run"] == run]


def wait_for_end(project: Project, *pids: int) -> None:
    """Wait until processes are gone."""
    project.wait(lambda: not any(map(lives, pids)), PATIENCE, f"the end of {pids}")


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_runs_share_no_process_though_they_share_the_bounds(project: Project) -> None:
    """Four runs at once, each with many children beside each other, on four replicas at most."""
    project.start("many")
    project.start("roots")
    runs = [project.send("roots.calls", "many", 40, "", 4) for _ in range(4)]
    found = [set(run.get(timeout=3 * PATIENCE)) for run in runs]
    assert sum(map(len, found)) == len(set.union(*found)), "no process in two runs"


def test_a_run_keeps_its_replica_and_the_next_run_gets_a_fresh_one(project: Project) -> None:
    project.start("many")
    first, second = (project.call("many.parent", 3) for _ in range(2))
    assert len(set(first)) <= 4
    assert not set(first) & set(second)


@pytest.mark.parametrize(("environment", "left"), [("many", 0), ("kept", 1)])
def test_replicas_go_with_their_run(project: Project, environment: str, left: int, tmp_path: Path) -> None:
    """The run's root is elsewhere; its replica stays while it goes on, and is replaced up to the minimum after it."""
    project.start(environment)
    project.start("roots")
    gate = tmp_path / "gate"
    run = project.send("roots.calls", environment, 1, str(gate))  # several calls may be seen beside each other
    project.wait(Path(f"{gate}.reached").exists, description="the call of the run")
    [replica] = of_the_run(project, environment, run.id)
    for _ in range(3):
        assert lives(replica["pid"]), "the run goes on"
        project.status(environment)
    gate.touch()
    assert set(run.get(timeout=PATIENCE)) == {replica["pid"]}
    wait_for_end(project, replica["pid"])
    fresh = project.wait_for_replicas(environment, left)
    assert replica["pid"] not in fresh
    assert [each["run"] for each in project.replicas(environment)] == [None] * left


def test_what_a_root_leaves_behind_keeps_the_replica(project: Project, tmp_path: Path) -> None:
    project.start("one")
    gate = tmp_path / "gate"
    root = project.send("one.leaves_behind", str(gate))
    pid = root.get(timeout=PATIENCE)
    project.wait(Path(f"{gate}.{pid}").exists, description="the child in the replica of its run")
    gate.touch()
    wait_for_end(project, pid)


def test_two_runs_with_many_tasks_on_one_replica_both_end_in_order_of_arrival(project: Project) -> None:
    project.start("one")
    project.start("roots")
    runs = [project.send("roots.calls", "one", 60, "", 20) for _ in range(2)]
    found = [run.get(timeout=3 * PATIENCE) for run in runs]
    assert not set(found[0]) & set(found[1])


def test_single_calls_take_turns_on_one_replica(project: Project) -> None:
    """Every call from outside of tasks is a run: each has a process of its own, in order."""
    project.start("one")
    pids = [result.get(timeout=PATIENCE) for result in [project.send("one.who") for _ in range(20)]]
    assert len(set(pids)) == 20


@pytest.mark.parametrize("environment", ["one", "two"])
@pytest.mark.parametrize("task", ["parent", "sync_parent", "deep"])
def test_parents_and_children_of_several_runs_share_a_small_environment(
    project: Project, environment: str, task: str
) -> None:
    """Suspended parents hold every replica while tasks of other runs stand before their children in the queue."""
    runs = [project.send(f"{environment}.{task}", 3) for _ in range(12)]
    project.start(environment)
    found = [set(run.get(timeout=3 * PATIENCE)) for run in runs]
    assert sum(map(len, found)) == len(set.union(*found))


def test_a_replica_that_was_to_make_way_stays_for_a_parent_that_begins_to_wait(
    project: Project, tmp_path: Path
) -> None:
    """The parent runs while another run is waiting for its turn, and only then calls its children."""
    project.start("pair")
    gate = tmp_path / "gate"
    first = project.send("pair.parent", 2, 0.0, str(gate))
    project.wait(lambda: list(tmp_path.glob("gate.*")), description="the parent")
    others = [project.send("pair.parent", 1) for _ in range(3)]
    project.wait(lambda: project.replicas("pair", "draining"), description="a replica that makes way")
    gate.touch()
    found = [set(run.get(timeout=PATIENCE)) for run in (first, *others)]
    assert sum(map(len, found)) == len(set.union(*found))


def test_tasks_of_a_run_share_a_replica_up_to_its_concurrency(project: Project, tmp_path: Path) -> None:
    """Six tasks of a run of four slots each are two replicas; another run then waits for its turn."""
    project.start("wide")
    gate = tmp_path / "gate"
    run = project.send("wide.parent", 6, 0.3)
    pids = run.get(timeout=PATIENCE)
    assert 1 <= len(set(pids)) <= 2
    held = [project.send("wide.hold", str(gate)) for _ in range(2)]
    project.wait(lambda: len(list(tmp_path.glob("gate.*"))) == 2, description="two runs beside each other")
    gate.touch()
    assert len({result.get(timeout=PATIENCE) for result in held}) == 2


def test_a_busy_replica_makes_way_and_explain_says_so(project: Project) -> None:
    """A run that has both replicas busy all the time lets one go for a call that comes in between."""
    project.start("two")
    project.start("roots")
    run = project.send("roots.calls", "two", 800, "", 20)
    project.wait(lambda: len(of_the_run(project, "two", run.id)) == 2, description="two replicas of the run")
    shown = project.celery("env", "status", "two").stdout
    assert f"{run.id[:8]} has 2" in shown
    other = project.send("two.who")
    pid = other.get(timeout=PATIENCE)
    explained = project.celery("env", "explain", "two").stdout
    assert f"of run {run.id[:8]} makes way for run {other.id[:8]}" in explained
    assert pid not in set(run.get(timeout=3 * PATIENCE))


def test_a_killed_replica_is_replaced_and_its_tasks_run_again_in_their_run(project: Project, tmp_path: Path) -> None:
    project.start("two")
    gate = tmp_path / "gate"
    held = [project.send("two.hold", str(gate)) for _ in range(2)]
    marks = project.wait(
        lambda: found if len(found := list(tmp_path.glob("gate.*"))) == 2 else [], description="two runs"
    )
    for mark in marks:
        os.kill(int(mark.suffix[1:]), signal.SIGKILL)
    gate.touch()
    again = {result.get(timeout=PATIENCE) for result in held}
    assert len(again) == 2
    assert not again & {int(mark.suffix[1:]) for mark in marks}


def test_a_used_up_replica_goes_on_in_place_of_one_that_has_no_task(project: Project) -> None:
    """Three tasks wait in it, and the fourth has run in another one, which then has nothing to do."""
    project.start("one", "--max-tasks-per-child", "3")
    first, *others = project.call("one.deep", 3)
    assert others[:2] == [first, first]
    assert others[2] != first


def test_replicas_that_are_used_up_are_replaced_in_their_runs(project: Project) -> None:
    """With parents that wait in them: a run then has another replica beside the one that takes no more."""
    project.start("one", "--max-tasks-per-child", "3")
    runs = [project.send("one.deep", 7) for _ in range(3)]
    found = [set(run.get(timeout=3 * PATIENCE)) for run in runs]
    assert sum(map(len, found)) == len(set.union(*found))
    assert min(map(len, found)) > 1


def test_a_waiting_run_that_is_revoked_leaves_no_trace(project: Project, tmp_path: Path) -> None:
    project.start("one")
    gate = tmp_path / "gate"
    held = project.send("one.hold", str(gate))
    project.wait(lambda: list(tmp_path.glob("gate.*")), description="the first run")
    waiting = project.send("one.who")
    waiting.revoke()
    gate.touch()
    with pytest.raises(TaskRevokedError):
        waiting.get(timeout=PATIENCE)
    first, last = held.get(timeout=PATIENCE), project.call("one.who")
    assert first != last


def test_an_override_with_the_scope_has_its_own_replicas_for_each_run(project: Project) -> None:
    from flyte_celery.names import OVERRIDES_HEADER

    project.start("roots")
    policy = {"replicas": [0, 1], "idle_ttl": 30, "concurrency": 2, "scaledown_ttl": 30, "scope": "run"}
    headers = {OVERRIDES_HEADER: {"reusable": policy}}
    project.start("one")
    pids = [
        result.get(timeout=PATIENCE)
        for result in [project.send("one.who", headers=headers) for _ in range(5)]
    ]  # fmt: skip
    assert len(set(pids)) == 5


@pytest.fixture
def two_hosts(project: Project) -> Callable[[str], None]:
    """Start two workers of an environment, each as if on a host of its own."""

    def start(environment: str) -> None:
        for host in ("h1", "h2"):
            project.start(environment, "-n", f"{environment}@{host}", ready=False)
        for worker in project.workers:
            worker.wait_ready()

    return start


def test_parents_on_two_hosts_find_their_children(project: Project, two_hosts: Callable[[str], None]) -> None:
    """Each host has one of two replicas, both with parents that wait; children that came to the wrong host move on."""
    two_hosts("two")
    runs: list[AsyncResult] = [project.send("two.parent", 3, 0.05) for _ in range(8)]
    found = [set(run.get(timeout=4 * PATIENCE)) for run in runs]
    assert sum(map(len, found)) == len(set.union(*found))


def test_the_bounds_hold_while_runs_take_turns(project: Project) -> None:
    """Processes are counted from outside: one in the place of another comes when that one is gone."""
    worker = project.start("two")
    results = [project.send("two.who", 0.01) for _ in range(20)]
    most = 0
    while not all(result.ready() for result in results):
        launchers = [pid for pid in processes.descendants(worker.pid) if ".preload" in processes.command_line(pid)]
        most = max(most, len(launchers) - 1)
    assert most <= 2
    wait_until(lambda: all(result.ready() for result in results), PATIENCE)
