"""Tasks that have waited too long for an environment without a worker: their callers are told all the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import redis

from flyte_celery import names
from flyte_celery.errors import DeadlineExceededError, MaxQueuedTimeExceededError
from flyte_celery.worker.unattended import Unattended
from tests.helpers.projects import PATIENCE, Project

SOURCE = """
    import flyte_celery as flyte

    app = flyte.init()
    alive = flyte.TaskEnvironment("%s-alive", reusable=flyte.ReusePolicy(replicas=(0, 1)))
    lone = flyte.TaskEnvironment("%s-lone", reusable=flyte.ReusePolicy(replicas=(0, 1)))

    @lone.task(timeout=flyte.Timeout(max_queued_time=1))
    def hurried(x: int) -> int:
        return x

    @lone.task(timeout=flyte.Timeout(deadline=1))
    def ending(x: int) -> int:
        return x

    @lone.task
    def patient(x: int) -> int:
        return x

    @lone.task
    def told(task_id: str) -> None: ...
"""

#: Seconds for what takes a few, on a busy machine.
LONG = 3 * PATIENCE


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the test's database."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def project(alone: Project, request: pytest.FixtureRequest) -> Project:
    """A project for one test."""
    name = request.function.__name__.replace("_", "-")
    alone.write(SOURCE % (name, name))
    return alone


def test_a_worker_of_another_environment_fails_them(project: Project, server: redis.Redis) -> None:
    """With the typed errors, and in chains and groups, too; what may wait waits."""
    with project.imported() as module:
        lone = module.lone.name
        project.start(module.alive.name)
        kept = [module.patient.delay(n) for n in range(3)]
        results = [module.hurried.delay(n) for n in range(150)]
        late = module.ending.delay(1)
        linked = module.hurried.apply_async((7,), link_error=module.told.s())
        after = (module.hurried.s(1) | module.patient.s()).apply_async()
        awaited = module.flyte.run(module.hurried, 1)
        for result in [*results, linked, after]:
            with pytest.raises(MaxQueuedTimeExceededError, match="1 s, its max_queued_time"):
                result.get(timeout=LONG)
        with pytest.raises(DeadlineExceededError, match="which is its deadline"):
            late.get(timeout=LONG)
        awaited.wait(timeout=LONG)
        with pytest.raises(MaxQueuedTimeExceededError):
            awaited.outputs()
        project.wait(lambda: project.depth(lone) == 4, LONG, "those that may wait, and the error's callback")
        project.wait(lambda: not server.keys(f"{names.PREFIX}claims:{lone}:*"), LONG, "no claim")
        project.start(lone)
        assert [result.get(timeout=LONG) for result in kept] == [0, 1, 2]


def test_an_attempt_that_waited_too_long_is_followed_by_the_next(project: Project) -> None:
    """It waits its own time; there is a worker for the second attempt, but not for the first."""
    with project.imported() as module:
        project.start(module.alive.name)
        again = module.hurried.override(retries=1, timeout=module.flyte.Timeout(max_queued_time=3)).delay(5)
        project.wait(lambda: again.state == "RETRY", LONG, "the end of the first attempt")
        begun = time.monotonic()
        with pytest.raises(MaxQueuedTimeExceededError, match="3 s, its max_queued_time"):
            again.get(timeout=LONG)
        assert time.monotonic() - begun > 1


def test_the_command_fails_them_where_nothing_runs(project: Project) -> None:
    with project.imported() as module:
        lone = module.lone.name
        kept, result = module.patient.delay(1), module.hurried.delay(1)
        project.wait(
            lambda: f"{lone}: no worker serves it; 1 task" in project.celery("env", "reap").stdout, LONG, "an end of it"
        )
        with pytest.raises(MaxQueuedTimeExceededError):
            result.get(timeout=LONG)
        assert not kept.ready()
        assert "have ended" not in project.celery("env", "reap").stdout


def test_whose_clock_is_slow_fails_them_as_well(
    project: Project, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is over is said by the server's clock."""
    with project.imported() as module:
        lone, result = module.lone.name, module.hurried.delay(1)
        unattended = Unattended(module.app, server, "slow@here", lease=15.0)
        project.wait(lambda: unattended.queues() == [lone], LONG, "the end of its time")
        with monkeypatch.context() as patch:
            slow = time.time
            patch.setattr(time, "time", lambda: slow() - 30)
            assert unattended.end_some(lone)[0] == 1
        with pytest.raises(MaxQueuedTimeExceededError):
            result.get(timeout=LONG)


def test_two_workers_and_the_command_fail_each_task_once(project: Project) -> None:
    with project.imported() as module:
        for name in ("left", "right"):
            project.start(module.alive.name, "-n", f"{module.alive.name}@{name}")
        told = module.told.s()
        results = [module.hurried.apply_async((n,), link_error=told) for n in range(300)]
        commands = [threading.Thread(target=project.celery, args=("env", "reap")) for _ in range(2)]
        for command in commands:
            command.start()
        for result in results:
            with pytest.raises(MaxQueuedTimeExceededError):
                result.get(timeout=LONG)
        for command in commands:
            command.join(LONG)
        # A caller may know of a failure a moment before its callback is in the queue.
        project.wait(lambda: project.depth(module.lone.name) >= 300, LONG, "the callbacks")
        assert project.depth(module.lone.name) == 300, "one callback for each"
