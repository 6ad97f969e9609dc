"""Replicas of a reusable environment: warm processes that keep what they have, with the environment's variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.projects import PATIENCE, Project

SOURCE = """
    import asyncio
    import os
    import sys
    import time
    from pathlib import Path

    import flyte_celery as flyte

    app = flyte.init()

    flyte.ReusePolicy(replicas=1, concurrency=1)
    IMPORTED_BY = os.getpid()
    VARIABLE_AT_IMPORT = os.environ.get("MODEL_NAME")
    calls = 0

    keeping = flyte.TaskEnvironment(
        "keeping",
        reusable=flyte.ReusePolicy(replicas=2, concurrency=1, idle_ttl=3600),
        env_vars={"MODEL_NAME": "small"},
    )
    packed = flyte.TaskEnvironment("packed", reusable=flyte.ReusePolicy(replicas=2, concurrency=3, idle_ttl=3600))
    on_device = flyte.TaskEnvironment(
        "on-device",
        reusable=flyte.ReusePolicy(replicas=2, concurrency=1, idle_ttl=3600),
        resources=flyte.Resources(gpu=1),
        env_vars={"MODEL_NAME": "large"},
    )


    @keeping.task
    def count() -> tuple[int, int]:
        global calls
        calls += 1
        return os.getpid(), calls


    @keeping.task
    def variables() -> list[str | None]:
        return [VARIABLE_AT_IMPORT, os.environ.get("MODEL_NAME")]


    @keeping.task
    def imported_by_parent() -> bool:
        return IMPORTED_BY == os.getppid()


    @packed.task
    async def hold(gate: str) -> int:
        while not os.path.exists(gate):
            await asyncio.sleep(0.01)
        return os.getpid()


    @packed.task
    async def variable_elsewhere() -> str | None:
        return VARIABLE_AT_IMPORT


    @on_device.task
    def describe() -> dict[str, str | bool | None]:
        return {
            "variable": VARIABLE_AT_IMPORT,
            "imported_here": IMPORTED_BY == os.getpid(),
            "fresh": sys.orig_argv[1:3] == ["-m", "flyte_celery.replica.main"],
        }


    @on_device.task
    async def on_the_loop(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1


    @on_device.task
    def crash(mark: str) -> int:
        if not os.path.exists(mark):
            Path(mark).touch()
            os._exit(5)
        return os.getpid()
"""


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    shared.write(SOURCE)
    devices = {"FLYTE_CELERY_DEVICES": "L4:2"}
    for worker in [shared.start(name, ready=False, env=devices) for name in ("keeping", "packed", "on-device")]:
        worker.wait_ready()
    return shared


def test_globals_persist_between_the_tasks_of_one_replica(project: Project) -> None:
    project.wait_for_replicas("keeping", 2)
    seen: dict[int, list[int]] = {}
    for _ in range(5):
        pid, calls = project.call("keeping.count")
        seen.setdefault(pid, []).append(calls)
    # A caller may have its result before the worker knows that the slot is free, so both may get some.
    assert all(calls == list(range(1, len(calls) + 1)) for calls in seen.values())
    assert sum(map(len, seen.values())) == 5


def test_the_application_is_imported_once_for_all_replicas(project: Project) -> None:
    assert project.call("keeping.imported_by_parent") is True


@pytest.mark.parametrize("environment", ["keeping", "on-device"])
def test_what_an_import_warns_of_is_logged_once_by_each_worker(project: Project, environment: str) -> None:
    project.wait_for_replicas(environment, 2)
    [log] = [worker.log() for worker in project.workers if f"{environment}@" in worker.log()]
    assert log.count("One replica with a concurrency of 1") == 1


def test_variables_of_an_environment_are_there_at_import_and_nowhere_else(project: Project) -> None:
    assert project.call("keeping.variables") == ["small", "small"]
    assert project.call("packed.variable_elsewhere") is None


def test_the_oldest_replica_with_a_free_slot_gets_the_next_task(project: Project, tmp_path: Path) -> None:
    """So surplus replicas fall idle and can go."""
    oldest, youngest = project.wait_for_replicas("packed", 2)
    gate = tmp_path / "gate"
    results = [project.send("packed.hold", str(gate)) for _ in range(4)]
    project.wait(
        lambda: [each["running"] for each in project.replicas("packed")] == [3, 1], description="three and one tasks"
    )
    gate.touch()
    assert sorted(result.get(timeout=PATIENCE) == youngest for result in results) == [False, False, False, True]
    project.wait(lambda: project.status("packed")["running"] == 0, description="free slots")
    assert project.call("packed.hold", str(gate)) == oldest


def test_replicas_on_devices_are_fresh_interpreters(project: Project) -> None:
    """The drivers of devices do not survive a fork."""
    project.wait_for_replicas("on-device", 2)
    assert project.call("on-device.describe") == {"variable": "large", "imported_here": True, "fresh": True}
    assert project.call("on-device.on_the_loop", 1) == 2


def test_a_device_replica_that_crashes_is_replaced_and_its_task_runs_again(project: Project, tmp_path: Path) -> None:
    before = project.wait_for_replicas("on-device", 2)
    assert project.call("on-device.crash", str(tmp_path / "mark")) in [*before, *project.pids("on-device")]
    assert project.wait_for_replicas("on-device", 2) != before
