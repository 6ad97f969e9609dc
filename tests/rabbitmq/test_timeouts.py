"""A task's `timeout` on RabbitMQ: every limit holds; what waits in the broker hears of it when a worker has it."""

from __future__ import annotations

import pytest

from tests.helpers.workers import run_python
from tests.rabbitmq.project import RabbitProject


@pytest.mark.parametrize("limit", ["max_runtime", "deadline"])
def test_a_body_that_runs_too_long_ends(project: RabbitProject, limit: str) -> None:
    for environment in ("aio", "snc"):
        project.start(environment, ready=False)
    printed = run_python(
        project.folder,
        f"""
        from proj import flyte, nap, snc

        limit, stay = flyte.Timeout({limit}=4), snc.tasks["snc.wait"]
        for result in [nap.delay(0.0, 0), stay.delay("proj.py", 0)]:  # replicas are ready
            result.get(timeout=20)
        running = [nap.override(timeout=limit).delay(60.0, 1), stay.override(timeout=limit).delay("never", 1)]
        for result in running:
            try:
                result.get(timeout=20)
            except flyte.errors.TaskTimeoutError as error:
                print(type(error).__name__)
        print(nap.override(timeout=flyte.Timeout({limit}=30)).delay(0.0, 2).get(timeout=20))
        """,
        project.variables,
    )
    expected = {"max_runtime": "MaxRuntimeExceededError", "deadline": "DeadlineExceededError"}[limit]
    assert printed.split("\n") == [expected, expected, "2", ""]
    assert [number for number, _ in project.begun()] == [0, 1]


def test_an_attempt_that_ran_too_long_is_retried(project: RabbitProject) -> None:
    project.start("aio")
    printed = run_python(
        project.folder,
        """
        from proj import flyte, aio

        hold = aio.tasks["aio.hold"].override(timeout=1, retries=2)
        try:
            hold.delay("never", 1).get(timeout=30)
        except flyte.errors.MaxRuntimeExceededError as error:
            print(error.code)
        """,
        project.variables,
    )
    assert printed == "MaxRuntimeExceededError\n"
    assert [number for number, _ in project.begun()] == [1, 1, 1]


@pytest.mark.parametrize("limit", ["max_queued_time", "deadline"])
def test_what_has_waited_too_long_in_the_broker_never_begins(project: RabbitProject, limit: str) -> None:
    project.start("one")
    holder = project.send("one.wait", "gate", 1)
    project.wait(lambda: project.begun(), description="a task that holds the only slot")
    printed = run_python(
        project.folder,
        f"""
        from pathlib import Path
        import time
        from proj import flyte, one

        task = one.tasks["one.wait"]
        late = task.override(timeout=flyte.Timeout({limit}=1)).delay("gate", 2)
        patient = task.override(timeout=flyte.Timeout({limit}=600)).delay("gate", 3)
        time.sleep(1.2)
        Path("gate").touch()
        try:
            late.get(timeout=20)
        except flyte.errors.TaskTimeoutError as error:
            print(type(error).__name__)
        print(patient.get(timeout=20))
        """,
        project.variables,
    )
    name = {"max_queued_time": "MaxQueuedTimeExceededError", "deadline": "DeadlineExceededError"}[limit]
    assert printed.split("\n") == [name, "3", ""]
    assert holder.get(timeout=20) == 1
    assert [number for number, _ in project.begun()] == [1, 3]
