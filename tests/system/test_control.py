"""Celery's own remote control on an environment's worker, and `env status`, `env explain`, `env list`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.projects import PATIENCE, Project

SOURCE = """
    import asyncio
    import os

    import flyte_celery as flyte

    app = flyte.init()
    steered = flyte.TaskEnvironment(
        "steered",
        reusable=flyte.ReusePolicy(replicas=(1, 3), concurrency=2, idle_ttl=3600, scaledown_ttl=3600),
        resources=flyte.Resources(cpu=2, memory="1Gi"),
    )
    once = flyte.TaskEnvironment("once")


    @steered.task
    async def hold(gate: str) -> int:
        while not os.path.exists(gate):
            await asyncio.sleep(0.01)
        return os.getpid()


    @once.task
    def alone() -> None: ...
"""


#: Room for four replicas of two cores each, whatever machine this is.
ROOM = {"FLYTE_CELERY_HOST_CORES": "8", "FLYTE_CELERY_HOST_MEMORY": "8Gi"}


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    shared.write(SOURCE)
    shared.start("steered", "--scaledown-ttl", "0.5", env={"FLYTE_CELERY_AUTOSCALE_INTERVAL": "0.1", **ROOM})
    shared.wait_for_replicas("steered", 1)
    return shared


def inspect(project: Project, command: str) -> Any:
    """What the one worker answers to `celery inspect COMMAND`."""
    replies = getattr(project.celery_app.control.inspect(timeout=PATIENCE, limit=1), command)()
    return next(iter(replies.values()))


def bounds(project: Project) -> tuple[int, int]:
    status = project.status("steered")
    return status["minimum"], status["maximum"]


def test_inspect_sees_the_worker_its_tasks_and_what_runs(project: Project, tmp_path: Path) -> None:
    assert inspect(project, "ping") == {"ok": "pong"}
    assert inspect(project, "registered") == ["once.alone", "steered.hold"]
    gate = tmp_path / "gate"
    result = project.send("steered.hold", str(gate))
    project.wait(lambda: inspect(project, "active"), description="an active task")
    (active,) = inspect(project, "active")
    (replica,) = project.wait_for_replicas("steered", 1)
    assert (active["id"], active["name"], active["worker_pid"]) == (result.id, "steered.hold", replica)
    gate.touch()
    assert result.get(timeout=PATIENCE) == replica
    project.wait(lambda: not inspect(project, "active"), description="no active task")


def test_inspect_stats_tells_of_the_pool_and_the_autoscaler(project: Project) -> None:
    (replica,) = project.wait_for_replicas("steered", 1)
    stats = inspect(project, "stats")
    assert stats["pool"]["environment"] == "steered"
    assert stats["pool"]["processes"] == [replica]
    assert stats["pool"]["max-concurrency"] == 6
    assert {name: stats["autoscaler"][name] for name in ("min", "max", "current")} == {"min": 1, "max": 3, "current": 1}


def test_the_bounds_can_be_set(project: Project) -> None:
    """`celery control autoscale MAX MIN`, which Flower's form sends."""
    project.celery_app.control.autoscale(max=4, min=2)
    project.wait_for_replicas("steered", 2)
    assert bounds(project) == (2, 4)
    project.celery_app.control.autoscale(max=3, min=1)
    project.wait_for_replicas("steered", 1)
    assert bounds(project) == (1, 3)


def test_bounds_that_are_none_are_refused_and_change_nothing(project: Project) -> None:
    (reply,) = project.celery_app.control.autoscale(max=1, min=5, reply=True, timeout=PATIENCE, limit=1)
    assert "are no bounds" in str(reply)
    assert bounds(project) == (1, 3)


def test_the_pool_can_be_grown_and_shrunk(project: Project) -> None:
    """Flower's buttons; in Celery they are refused beside an autoscaler."""
    project.celery_app.control.pool_grow(1)
    project.wait_for_replicas("steered", 2)
    project.celery_app.control.pool_shrink(1)
    project.wait_for_replicas("steered", 1)
    (reply,) = project.celery_app.control.pool_shrink(5, reply=True, timeout=PATIENCE, limit=1)
    assert "cannot shrink by 5" in str(reply)
    project.celery_app.control.autoscale(max=3, min=1)
    project.wait(lambda: bounds(project) == (1, 3), description="the old bounds")


def test_status_shows_replicas_tasks_and_the_queue(project: Project, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    results = [project.send("steered.hold", str(gate)) for _ in range(8)]
    project.wait(lambda: project.status("steered")["running"] == 6, description="six running tasks")
    shown = project.celery("env", "status", "--json")
    assert shown.returncode == 0, shown.stderr
    (status,) = [each for each in json.loads(shown.stdout) if each["hostname"] is not None]
    assert status["environment"] == "steered"
    assert [(each["state"], each["running"]) for each in status["replicas"]] == [("ready", 2)] * 3
    assert (status["running"], status["waiting"] + status["ready"]) == (6, 2)
    assert status["failure"] is None
    words = project.celery("env", "status", "steered").stdout
    assert "3 ready (between 1 and 3)" in words
    gate.touch()
    assert len([result.get(timeout=PATIENCE) for result in results]) == 8


def test_explain_tells_why_the_number_of_replicas_changed(project: Project) -> None:
    project.wait_for_replicas("steered", 1)
    explained = project.celery("env", "explain", "steered")
    assert explained.returncode == 0, explained.stderr
    first, *_, last = re.findall(r"^  \d{4}-.*", explained.stdout, re.MULTILINE)
    assert "Goes to 1 replica: the policy asks for 1 to 3." in first
    assert "Goes down to 1 replica: more were not wanted for 0.5 s." in last


def test_list_shows_what_is_defined(project: Project) -> None:
    listed = project.celery("env", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    once, steered = json.loads(listed.stdout)
    assert once["name"] == "once"
    assert once["policy"] == "ephemeral, one process per task"
    assert (steered["queue"], steered["tasks"]) == ("steered", ["steered.hold"])
    assert steered["policy"].startswith("1 to 3, 2 task(s) each")
    assert "cpu=2" in steered["resources"]


@pytest.mark.parametrize("command", ["status", "explain", "worker"])
def test_an_environment_that_does_not_exist_is_an_error_that_names_those_that_do(
    project: Project, command: str
) -> None:
    ended = project.celery("env", command, "sterred")
    assert ended.returncode != 0
    assert "no environment 'sterred'" in ended.stderr
    assert "once, steered" in ended.stderr
