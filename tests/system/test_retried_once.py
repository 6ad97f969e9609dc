"""A retry is submitted exactly once, though the process that asks for it, or its worker, dies between any two steps."""

from __future__ import annotations

import pytest
import redis

from tests.helpers.projects import Project

SOURCE = """
    import asyncio
    import os
    import signal
    from datetime import timedelta

    import redis
    from celery import signals

    import flyte_celery as flyte

    app = flyte.init()
    notes = redis.Redis.from_url(os.environ["FLYTE_CELERY_BROKER_URL"])
    back_off = flyte.Backoff(timedelta(seconds=float(os.environ["BACKOFF"])))
    # One slot: the next attempt cannot begin where the one before it is about to die.
    aio = flyte.TaskEnvironment("aio", reusable=flyte.ReusePolicy(replicas=1), max_attempts=20)
    snc = flyte.TaskEnvironment("snc", reusable=flyte.ReusePolicy(replicas=1), max_attempts=20)


    def die(moment: str, attempt: int) -> None:
        # At the first time that each attempt comes to this moment: the worker, this process, or both.
        if os.environ["MOMENT"] != moment or not notes.sadd("died", attempt):
            return
        if "worker" in os.environ["VICTIM"]:
            os.kill(int(notes.get("worker")), signal.SIGKILL)
        if "replica" in os.environ["VICTIM"]:
            os.kill(os.getpid(), signal.SIGKILL)


    @signals.task_retry.connect  # the retry is stored, and the worker has not heard of it
    def stored(request, **_):
        die("stored", request.retries)


    def attempt() -> int:
        request = app.current_worker_task.request
        notes.rpush("attempts", request.retries)
        if request.retries == 3:
            return 3
        if os.environ["MOMENT"] == "asked":  # the retry was asked for, and is not stored
            app.current_worker_task.retry(countdown=0, throw=False)
            die("asked", request.retries)
        raise RuntimeError("again")


    @aio.task(retries=flyte.RetryStrategy(3, back_off))
    async def again() -> int:
        return attempt()


    @snc.task(retries=flyte.RetryStrategy(3, back_off))
    def again_sync() -> int:
        return attempt()


    @aio.task(retries=flyte.RetryStrategy(3, back_off), timeout=1)
    async def stubborn() -> int:
        request = app.current_worker_task.request
        notes.rpush("attempts", request.retries)
        while request.retries < 3:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass
        return 3


    @aio.task(retries=flyte.RetryStrategy(3, back_off), ignore_result=True)
    async def unheard() -> int:
        return attempt()
"""


@pytest.fixture
def project(alone: Project) -> Project:
    """A project without workers."""
    alone.write(SOURCE)
    return alone


def notes(project: Project, name: str) -> list[int]:
    """What the tasks have noted."""
    with redis.Redis.from_url(project.url) as client:
        return [int(note) for note in client.lrange(name, 0, -1)]  # type: ignore[union-attr]


def run(project: Project, task: str, moment: str, victim: str, backoff: float = 0.0) -> list[int]:
    """Run a task whose attempts lose their processes; returns the attempts that began, when nothing is left."""
    env = {"MOMENT": moment, "VICTIM": victim, "BACKOFF": str(backoff)}
    env |= {"FLYTE_CELERY_LEASE": "2", "FLYTE_CELERY_CANCEL_PATIENCE": "0.2"}
    environment = task.partition(".")[0]
    client = redis.Redis.from_url(project.url)

    def start() -> None:
        worker = project.start(environment, env=env, ready=False)
        client.set("worker", worker.pid)
        worker.wait_ready()

    start()
    project.send(task)

    def ended() -> bool:
        if project.workers[-1].process.poll() is not None:
            start()
        left = [
            key for key in client.scan_iter() if b":claims:" in key or b":later" in key or key == environment.encode()
        ]
        return 3 in notes(project, "attempts") and not left

    with client:
        project.wait(ended, 120, "the end of the last attempt")
    return notes(project, "attempts")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["replica", "worker", "worker and replica"])
@pytest.mark.parametrize("task", ["aio.again", "snc.again_sync"])
def test_an_attempt_is_over_when_its_retry_is_stored(project: Project, task: str, victim: str) -> None:
    assert run(project, task, "stored", victim) == [0, 1, 2, 3]


def test_so_is_one_whose_retry_waits_in_the_future(project: Project) -> None:
    assert run(project, "aio.again", "stored", "worker and replica", backoff=2.5) == [0, 1, 2, 3]


@pytest.mark.parametrize("victim", ["nobody", "worker"])
def test_a_worker_that_retries_by_itself_does_it_once_too(project: Project, victim: str) -> None:
    """The task goes on after its time, so its replica is replaced, and the worker alone can submit the retry."""
    assert run(project, "aio.stubborn", "stored", victim) == [0, 1, 2, 3]


@pytest.mark.parametrize("task", ["aio.again", "snc.again_sync", "aio.unheard"])
def test_an_attempt_that_has_only_asked_for_its_retry_begins_anew(project: Project, task: str) -> None:
    assert run(project, task, "asked", "replica") == [0, 0, 1, 1, 2, 2, 3]


def test_where_results_are_ignored_attempts_follow_each_other_too(project: Project) -> None:
    assert run(project, "aio.unheard", "never", "nobody") == [0, 1, 2, 3]
