"""The autoscaler in real workers: from zero, under a burst, back down, and to rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.projects import PATIENCE, Project

#: Short, so that a test can wait for them, and long beside everything else that happens here.
SCALEDOWN_TTL = 1.0
IDLE_TTL = 3.0

SOURCE = """
    import asyncio
    import os

    import flyte_celery as flyte

    app = flyte.init()


    async def hold(gate: str) -> int:
        while not os.path.exists(gate):
            await asyncio.sleep(0.01)
        return os.getpid()


    async def pid() -> int:
        return os.getpid()


    for name, replicas in {"scaled": (0, 4), "kept": (1, 3), "fixed": 2}.items():
        environment = flyte.TaskEnvironment(name, reusable=flyte.ReusePolicy(replicas=replicas, idle_ttl=30))
        environment.task(hold)
        environment.task(pid)
"""


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    """A worker for each of three policies."""
    shared.write(SOURCE)
    ttl = ("--scaledown-ttl", str(SCALEDOWN_TTL), "--idle-ttl", str(IDLE_TTL))
    env = {"FLYTE_CELERY_AUTOSCALE_INTERVAL": "0.2"}
    for worker in [shared.start(name, *ttl, env=env, ready=False) for name in ("fixed", "kept", "scaled")]:
        worker.wait_ready()
    return shared


def history(project: Project, environment: str) -> list[tuple[int, str]]:
    """Every change of the number of replicas, as (target, reason)."""
    return [(decision["target"], decision["reason"]) for decision in project.ask("env_explain", environment)]


def running(project: Project, environment: str) -> int:
    return int(project.status(environment)["running"])


def gates(folder: Path, number: int) -> list[Path]:
    return [folder / f"gate-{index}" for index in range(number)]


def test_a_fixed_number_of_replicas_is_there_from_the_start_and_never_changes(project: Project, tmp_path: Path) -> None:
    """`replicas=2` neither follows a burst nor the quiet after it, until the environment goes to rest as a whole."""
    project.wait_for_replicas("fixed", 2)
    (gate,) = gates(tmp_path, 1)
    results = [project.send("fixed.hold", str(gate)) for _ in range(6)]
    project.wait(lambda: running(project, "fixed") == 2, description="two running tasks")
    assert project.status("fixed")["waiting"] + project.depth("fixed") == 4
    gate.touch()
    assert len({result.get(timeout=PATIENCE) for result in results}) == 2
    project.wait_for_replicas("fixed", 0)
    assert history(project, "fixed") == [(2, "bounds"), (0, "idle")]


def test_a_resting_environment_comes_back_with_the_next_task_and_its_whole_minimum(project: Project) -> None:
    project.wait_for_replicas("fixed", 0)
    assert isinstance(project.call("fixed.pid"), int)
    project.wait_for_replicas("fixed", 2)


def test_the_minimum_is_kept_after_a_burst_and_rests_only_when_idle(project: Project, tmp_path: Path) -> None:
    (gate,) = gates(tmp_path, 1)
    project.wait(lambda: not project.replicas("kept"), description="the first rest")
    assert history(project, "kept") == [(1, "bounds"), (0, "idle")]
    results = [project.send("kept.hold", str(gate)) for _ in range(5)]
    project.wait_for_replicas("kept", 3)
    gate.touch()
    assert len({result.get(timeout=PATIENCE) for result in results}) == 3
    project.wait_for_replicas("kept", 0)
    down = [decision for decision in history(project, "kept")[2:] if decision[1] != "demand"]
    assert down[-2:] == [(1, "draining"), (0, "idle")]


def test_zero_goes_to_the_first_result(project: Project) -> None:
    project.wait_for_replicas("scaled", 0)
    assert project.call("scaled.pid") == project.wait_for_replicas("scaled", 1)[0]


def test_a_burst_scales_to_the_maximum_at_once(project: Project, tmp_path: Path) -> None:
    """All replicas are asked for together, not one per look of the autoscaler."""
    project.wait_for_replicas("scaled", 0)
    (gate,) = gates(tmp_path, 1)
    results = [project.send("scaled.hold", str(gate)) for _ in range(12)]
    project.wait_for_replicas("scaled", 4)
    ages = [each["age"] for each in project.replicas("scaled")]
    assert max(ages) - min(ages) < 0.2 * 3, "three looks apart at least, had each look asked for one"
    assert project.status("scaled")["running"] == 4
    gate.touch()
    assert len({result.get(timeout=PATIENCE) for result in results}) == 4


def test_a_steady_trickle_goes_to_the_oldest_replica_and_keeps_no_surplus_alive(
    project: Project, tmp_path: Path
) -> None:
    (gate,) = gates(tmp_path, 1)
    for _ in range(4):
        project.send("scaled.hold", str(gate))
    oldest = project.wait_for_replicas("scaled", 4)[0]
    gate.touch()
    project.wait(lambda: running(project, "scaled") == 0, description="the end of the burst")
    served: set[Any] = set()

    def surplus_is_gone() -> bool:
        served.add(project.call("scaled.pid"))
        # A caller may have its result before the worker knows that the slot is free.
        project.wait(lambda: running(project, "scaled") == 0, description="a free slot")
        return len(project.replicas("scaled")) == 1

    project.wait(surplus_is_gone, description="one replica")
    assert served == {oldest}


def test_surplus_replicas_go_after_their_time_and_a_busy_one_never(project: Project, tmp_path: Path) -> None:
    first, *others = gates(tmp_path, 4)
    busy = [project.send("scaled.hold", str(gate)) for gate in (*others, first)]
    project.wait_for_replicas("scaled", 4)
    before = project.ask("env_explain", "scaled")
    for gate in others:
        gate.touch()
    *done, last = busy
    pids = [result.get(timeout=PATIENCE) for result in done]
    (left,) = project.wait_for_replicas("scaled", 1)
    downs = project.ask("env_explain", "scaled")[len(before) :]
    assert {decision["reason"] for decision in downs} == {"draining"}
    assert downs[0]["at"] - before[-1]["at"] >= SCALEDOWN_TTL
    first.touch()
    assert last.get(timeout=PATIENCE) == left
    assert left not in pids
