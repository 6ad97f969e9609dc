"""What is given up is kept for an operator, and the work of a fleet that died whole comes back on request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery.exceptions import WorkerLostError

from tests.helpers.projects import PATIENCE, Project

SOURCE = """
    import os
    import signal
    import time
    from pathlib import Path

    import flyte_celery as flyte

    app = flyte.init()
    env = flyte.TaskEnvironment(
        "snc", reusable=flyte.ReusePolicy(replicas=2, idle_ttl=3600), max_attempts=2
    )
    here = Path(__file__).parent


    @env.task
    def sleep(seconds: float, n: int) -> int:
        time.sleep(seconds)
        return n


    @env.task
    def poison(secret: str) -> str:
        if not (here / "healed").exists():
            os.kill(os.getpid(), signal.SIGSEGV)
        return "healed"


    @env.task
    def takes_the_worker_with_it() -> None:
        launcher = os.getppid()
        stat = Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()
        os.kill(int(stat[1]), signal.SIGKILL)
        time.sleep(60)
"""

#: Seconds.
LEASE = 1.0


@pytest.fixture
def project(alone: Project) -> Project:
    """A project without workers."""
    alone.write(SOURCE)
    return alone


def start(project: Project) -> Any:
    """Start a worker with a short lease."""
    return project.start("snc", env={"FLYTE_CELERY_LEASE": str(LEASE)})


def dead(project: Project) -> list[dict[str, Any]]:
    """What `env dead list` says."""
    answer = project.celery("env", "dead", "list", "--json")
    assert answer.returncode == 0, answer.stderr
    found: list[dict[str, Any]] = json.loads(answer.stdout)
    return found


def test_a_dead_letter_is_listed_and_runs_again_when_it_is_requeued(project: Project) -> None:
    start(project)
    victim = project.send("snc.poison", "s3cret")
    with pytest.raises(WorkerLostError, match=r"SIGSEGV while it ran snc.poison.* attempt 2 of 2: it is given up"):
        victim.get(timeout=PATIENCE)
    project.wait(lambda: len(dead(project)) == 1)
    [letter] = dead(project)
    assert (letter["environment"], letter["task"], letter["task_id"]) == ("snc", "snc.poison", victim.id)
    assert letter["attempts"] == 2
    assert "SIGSEGV" in letter["cause"]
    assert "s3cret" not in json.dumps(letter)
    assert "1 dead letter" in project.celery("env", "status", "snc").stdout
    (project.folder / "healed").touch()
    answer = project.celery("env", "dead", "requeue", "snc", victim.id)
    assert answer.returncode == 0, answer.stderr
    assert f"{victim.id}  snc.poison  requeued" in answer.stdout
    project.wait(lambda: project.celery_app.AsyncResult(victim.id).state == "SUCCESS")
    assert dead(project) == []


def test_dead_letters_are_dropped_by_id_or_all(project: Project) -> None:
    start(project)
    victims = [project.send("snc.poison", str(n)) for n in range(3)]
    project.wait(lambda: len(dead(project)) == 3, timeout=2 * PATIENCE)
    for wrong in ((), (victims[0].id, "--all")):
        answer = project.celery("env", "dead", "drop", "snc", *wrong)
        assert answer.returncode == 2
        assert "Name the ids of tasks, or say --all." in answer.stderr
    answer = project.celery("env", "dead", "drop", "snc", "no-such-id", victims[0].id)
    assert answer.returncode == 1
    assert "No dead letter has the id no-such-id" in answer.stderr
    assert {letter["task_id"] for letter in dead(project)} == {victim.id for victim in victims[1:]}
    assert project.celery("env", "dead", "drop", "snc", "--all").stdout.count("dropped") == 2
    assert "No task was given up." in project.celery("env", "dead", "list").stdout


def test_a_task_that_takes_its_worker_with_it_is_given_up_by_the_next_one(project: Project) -> None:
    """The count is in its message: no process has survived to remember it."""
    victim = project.send("snc.takes_the_worker_with_it")
    for _ in range(2):
        worker = start(project)
        worker.process.wait(PATIENCE)
    start(project)
    with pytest.raises(WorkerLostError, match=r"The worker snc@\S+ was lost while it ran .* attempt 2 of 2"):
        victim.get(timeout=PATIENCE)
    assert project.call("snc.sleep", 0.01, 3) == 3
    assert [letter["task_id"] for letter in dead(project)] == [victim.id]


def test_the_work_of_a_dead_fleet_comes_back_by_command(project: Project) -> None:
    worker = start(project)
    results = [project.send("snc.sleep", 30.0, n) for n in range(5)]
    project.wait(lambda: project.status("snc")["running"] == 2)
    worker.kill()

    def reaped() -> bool:
        answer = project.celery("env", "reap")
        assert answer.returncode == 0, answer.stderr
        return "claim(s) are back in the queue" in answer.stdout

    project.wait(reaped)
    assert project.depth("snc") == len(results)
    assert "No dead worker holds a task." in project.celery("env", "reap").stdout
