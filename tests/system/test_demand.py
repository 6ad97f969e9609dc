"""Calls with overrides start replicas of their own, wherever there is room, and none of the environment's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.projects import PATIENCE, Project

SOURCE = """
    import os, pathlib, time
    import flyte_celery as flyte

    app = flyte.init()
    env = flyte.TaskEnvironment("%s", reusable=flyte.ReusePolicy(replicas=%s, idle_ttl=3600))

    @env.task
    def hold(folder: str, gate: str) -> str:
        pathlib.Path(folder, f"{os.environ['WHERE']}-{os.getpid()}").touch()
        while not pathlib.Path(gate).exists():
            time.sleep(0.01)
        return os.environ["WHERE"]
"""

#: Seconds for what takes a few, on a busy machine.
LONG = 3 * PATIENCE

#: A worker has room for three calls with overrides at once; a decision per fifth of a second.
QUICK = {"FLYTE_CELERY_AUTOSCALE_INTERVAL": "0.2", "FLYTE_CELERY_MAX_EPHEMERAL": "3"}


class Hosts(Project):
    """A project whose workers are hosts of their own."""

    def host(self, environment: str, name: str) -> None:
        """Start the worker of an environment on a host of this name."""
        self.start(environment, "-n", f"{environment}@{name}", env={**QUICK, "WHERE": name})

    def statuses(self, environment: str, workers: int) -> list[dict[str, Any]]:
        """What all workers of an environment say about themselves."""

        def answers() -> list[dict[str, Any]] | None:
            replies = self.celery_app.control.broadcast(
                "env_status", reply=True, timeout=5.0, limit=workers, pattern=f"{environment}@*", matcher="glob"
            )
            found = [value for reply in replies or () for value in reply.values()]
            return found if len(found) == workers else None

        return self.wait(answers, LONG, f"answers of all workers of {environment}") or []


@pytest.fixture
def hosts(tmp_path: Path, redis_url: str) -> Iterator[Hosts]:
    """Hosts for one test."""
    hosts = Hosts(tmp_path, redis_url)
    yield hosts
    hosts.close()


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """Where tasks note that they run, and where."""
    folder = tmp_path / "running"
    folder.mkdir()
    return folder


def own_replicas(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The environment's own replicas of a worker."""
    return [replica for replica in status["replicas"] if not replica["beside"]]


def test_they_are_no_demand_for_warm_replicas(hosts: Hosts, running: Path, tmp_path: Path) -> None:
    """Twenty wait for two workers; neither starts a warm replica, and what waits is told apart."""
    gate = tmp_path / "gate"
    hosts.write(SOURCE % ("warm", (0, 4)))
    for name in ("left", "right"):
        hosts.host("warm", name)
    with hosts.imported() as module:
        results = [module.hold.override(reusable="off").delay(str(running), str(gate)) for _ in range(20)]
        hosts.wait(lambda: len(list(running.iterdir())) == 6, LONG, "three calls on each host")
        statuses = hosts.statuses("warm", 2)
        assert [(status["target"], own_replicas(status)) for status in statuses] == [(0, []), (0, [])]
        assert sum(status["waiting"] for status in statuses) == 14
        assert "wait for replicas of their own" in hosts.celery("env", "status", "warm").stdout
        gate.touch()
        assert len([result.get(timeout=LONG) for result in results]) == 20


def test_they_run_on_hosts_that_may_have_no_warm_replica(hosts: Hosts, running: Path, tmp_path: Path) -> None:
    """The one warm replica is on the first host; the second one runs calls with overrides all the same."""
    gate = tmp_path / "gate"
    hosts.write(SOURCE % ("one", (1, 1)))
    hosts.host("one", "left")
    hosts.wait(
        lambda: any(replica["state"] == "ready" for replica in hosts.status("one")["replicas"]),
        LONG,
        "the warm replica",
    )
    with hosts.imported() as module:
        kept = [module.hold.delay(str(running), str(gate)) for _ in range(20)]
        hosts.wait(lambda: len(list(running.iterdir())) == 1, LONG, "the warm replica at work")
        hosts.host("one", "right")
        calls = [module.hold.override(reusable="off").delay(str(running), str(gate)) for _ in range(8)]
        hosts.wait(
            lambda: len([path for path in running.iterdir() if path.name.startswith("right-")]) == 3,
            LONG,
            "three calls on the second host",
        )
        assert not any(own_replicas(status) for status in hosts.statuses("one", 2) if "right" in status["hostname"])
        gate.touch()
        assert "right" in [result.get(timeout=LONG) for result in calls]
        assert {result.get(timeout=LONG) for result in kept} == {"left"}
