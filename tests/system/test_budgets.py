"""User failures use up `retries`, lost starts use up `max_attempts`: neither budget pays for the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery.exceptions import WorkerLostError

from tests.helpers.projects import PATIENCE, Project

SOURCE = """
    import asyncio
    import os
    import signal
    from pathlib import Path

    import flyte_celery as flyte

    app = flyte.init()
    here = Path(__file__).parent
    env = flyte.TaskEnvironment("aio", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600))


    @env.task(retries=2, max_attempts=2)
    async def stumble(key: str, story: str) -> str:
        path = here / f"{key}.txt"
        with path.open("a") as file:
            file.write(f"{flyte.ctx().attempt_number}\\n")
        attempt = len(path.read_text().split())
        match story[attempt - 1]:
            case "c":
                os.kill(os.getpid(), signal.SIGKILL)
                await asyncio.sleep(60)
            case "f":
                raise ValueError(f"attempt {attempt}")
            case "n":
                raise flyte.errors.NonRecoverableError(f"attempt {attempt}")
        return f"attempt {attempt}"


    @env.task(retries=2, autoretry_for=(Exception,), retry_backoff=False)
    async def final(key: str) -> None:
        with (here / f"{key}.txt").open("a") as file:
            file.write(f"{flyte.ctx().attempt_number}\\n")
        raise flyte.errors.NonRecoverableError("at once")
"""


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    """A project with one worker."""
    shared.write(SOURCE)
    shared.start("aio")
    return shared


def attempts(project: Project, key: str) -> list[int]:
    """The attempt numbers that the task has seen."""
    return [int(line) for line in Path(project.folder, f"{key}.txt").read_text().split()]


@pytest.mark.parametrize(
    ("story", "result"),
    [
        ("ffs", "attempt 3"),
        ("cs", "attempt 2"),
        ("cffs", "attempt 4"),
        ("fcfs", "attempt 4"),
        ("cfcfcs", "attempt 6"),  # each retry is a message of its own, with all its starts
    ],
)
def test_a_task_that_stumbles_ends_well_within_both_budgets(project: Project, story: str, result: str) -> None:
    assert project.call("aio.stumble", story, story) == result
    assert attempts(project, story) == list(range(len(story)))


def test_the_retries_are_used_up_by_failures_alone(project: Project) -> None:
    with pytest.raises(ValueError, match="attempt 5"):
        project.call("aio.stumble", "failures", "cffcf")
    assert attempts(project, "failures") == [0, 1, 2, 3, 4]


def test_the_attempts_are_used_up_by_losses_alone(project: Project) -> None:
    with pytest.raises(WorkerLostError, match="attempt 2 of 2"):
        project.call("aio.stumble", "losses", "ffcc")
    assert attempts(project, "losses") == [0, 1, 2, 3]


def test_a_non_recoverable_error_ends_the_retries(project: Project) -> None:
    with pytest.raises(Exception, match="attempt 2"):
        project.call("aio.stumble", "final", "fn")
    assert attempts(project, "final") == [0, 1]


def test_it_ends_celerys_own_retries_as_well(project: Project) -> None:
    with pytest.raises(Exception, match="at once"):
        project.call("aio.final", "autoretry")
    assert attempts(project, "autoretry") == [0]


def test_max_attempts_of_a_call(project: Project) -> None:
    """The header is what `task.override(max_attempts=...)` sends."""
    result = project.send("aio.stumble", "more", "cccs", headers={"flyte_celery_overrides": {"max_attempts": 4}})
    assert result.get(timeout=PATIENCE) == "attempt 4"
