"""A worker that was given up for dead, and goes on, reports no failure of tasks that others run by then."""

from __future__ import annotations

import os
import re
import signal

import pytest
from celery import states

from tests.helpers.projects import PATIENCE, Project

SOURCE = """
    import asyncio
    import os

    import flyte_celery as flyte

    app = flyte.init()
    kept = flyte.TaskEnvironment("kept", reusable=flyte.ReusePolicy(replicas=(1, 2), concurrency=100, idle_ttl=3600))


    def note(file: str, task_id: str) -> int:
        with open(file, "a+") as lines:
            lines.write(task_id + "\\n")
            lines.flush()
            lines.seek(0)
            return lines.read().split().count(task_id)


    @kept.task
    async def nap() -> str:
        if note("starts", flyte.ctx().task_id) == 1:
            await asyncio.sleep(600)
        return "done"


    @kept.task
    async def blame(task_id: str) -> None:
        note("blamed", task_id)
"""

#: Seconds. Renewals are a third of it apart, and for that long a worker that wakes up has not noticed its loss.
LEASE = 4.5

#: Hard time limits of the tasks, in seconds: some end while the worker is stopped, before its next renewal is due.
LIMITS = [2 + 0.05 * number for number in range(60)]


@pytest.fixture
def project(alone: Project) -> Project:
    """A project without workers."""
    alone.write(SOURCE)
    return alone


def over_their_limit(log: str) -> set[str]:
    """Ids of the tasks that a worker has ended."""
    return set(re.findall(r"Hard time limit \(.*?\) exceeded for kept\.nap\[(.*?)\]", log))


def test_a_limit_that_ends_while_its_worker_is_stopped_is_not_reported(project: Project) -> None:
    """Results and leases are on one server, which has two names here."""
    results = project.url.replace("127.0.0.1", "localhost")
    env = {"FLYTE_CELERY_LEASE": str(LEASE), "FLYTE_CELERY_RESULT_BACKEND": results}
    workers = [project.start("kept", "-n", f"kept@{name}", env=env, ready=False) for name in "ab"]
    for worker in workers:
        worker.wait_ready()
        assert "fencing is off" not in worker.log()

    blame = project.celery_app.signature("kept.blame", queue="kept")
    tasks = [project.send("kept.nap", time_limit=limit, link_error=blame) for limit in LIMITS]
    project.wait(lambda: tasks[0].state == states.FAILURE, description="the first limit")
    victim = next(worker for worker in workers if tasks[0].id in over_their_limit(worker.log()))
    other = next(worker for worker in workers if worker is not victim)
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        ended = over_their_limit(victim.log())
        project.wait(lambda: all(task.ready() for task in tasks), LEASE + 3 * PATIENCE, "the end of all tasks")
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    victim.wait_for_log("The lease of")

    project.call("kept.blame", "nobody")  # behind all that was submitted before
    ended |= over_their_limit(other.log())
    assert {task.id for task in tasks if task.state == states.FAILURE} <= ended
    assert set((project.folder / "blamed").read_text().split()) - {"nobody"} <= ended
