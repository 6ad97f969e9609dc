"""Retries with a back-off, `countdown` and `eta` wait in Redis: a worker that dies or has no replica forgets none."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from celery.exceptions import TaskRevokedError

from flyte_celery import names
from flyte_celery.fleet.later import Later
from tests.helpers.projects import PATIENCE, Project

SOURCE = """
    import datetime
    import os
    import time
    from pathlib import Path

    import redis

    import flyte_celery as flyte

    app = flyte.init()
    app.conf.timezone = os.environ.get("APP_TIMEZONE", "UTC")
    notes = redis.Redis.from_url(os.environ["FLYTE_CELERY_BROKER_URL"])
    aio = flyte.TaskEnvironment("aio", reusable=flyte.ReusePolicy(replicas=(0, 1), concurrency=200, idle_ttl=3600))
    snc = flyte.TaskEnvironment("snc", reusable=flyte.ReusePolicy(replicas=(0, 1), idle_ttl=3600))


    @aio.task(retries=flyte.RetryStrategy(1, flyte.Backoff(datetime.timedelta(seconds=float(os.environ["BACKOFF"])))))
    async def second_time(n: int) -> int:
        attempt = flyte.ctx().attempt_number
        notes.hincrby(f"attempt-{attempt}", n, 1)
        if attempt == 0:
            raise RuntimeError("the first attempt fails")
        return n


    @snc.task
    def now() -> float:
        return time.time()


    @aio.task
    async def pid() -> int:
        return os.getpid()
"""


@pytest.fixture
def project(alone: Project) -> Project:
    """A project without workers."""
    alone.write(SOURCE)
    return alone


def start(project: Project, environment: str, backoff: float = 1.0, *options: str, **env: str) -> Any:
    """Start a worker of an environment."""
    env = {"BACKOFF": str(backoff), **env}
    return project.start(environment, *options, env=env)


def parked(project: Project, environment: str) -> int:
    """How many tasks wait in Redis for their time."""
    with redis.Redis.from_url(project.url) as client:
        return int(client.zcard(names.later_key(environment)))


def make_due(project: Project, environment: str) -> None:
    """Let the time of all that is parked be over."""
    with redis.Redis.from_url(project.url) as client:
        later = Later(client, environment)
        assert later.hurry([entry for entry, _ in later.entries()])


def runs(project: Project, attempt: int) -> dict[int, int]:
    """How often each number's attempt began."""
    with redis.Redis.from_url(project.url) as client:
        return {int(n): int(times) for n, times in client.hgetall(f"attempt-{attempt}").items()}  # type: ignore[union-attr]


def begun(project: Project, attempt: int) -> int:
    """How many numbers' attempts have begun."""
    with redis.Redis.from_url(project.url) as client:
        return int(client.hlen(f"attempt-{attempt}"))


def claimed(project: Project) -> bool:
    """Whether some worker holds a claim."""
    with redis.Redis.from_url(project.url) as client:
        return any(client.scan_iter(names.claims_key("*", "*")))


def publish_many(project: Project, task: str, number: int) -> None:
    """Submit by name, without results: this is about the messages."""
    with project.celery_app.producer_pool.acquire() as producer:
        for n in range(number):
            project.send(task, n, producer=producer, ignore_result=True)


def wait_while_it_grows(project: Project, count: Callable[[], int], number: int) -> None:
    """Wait for a count to reach a number, however long that takes a busy machine."""
    while (before := count()) < number:
        project.wait(lambda before=before: count() > before, 60, f"more than {before} of {number}")  # type: ignore[misc]


#: Retries that wait when their worker goes; `RETRIES=10000` by hand, which takes minutes.
RETRIES = int(os.environ.get("RETRIES", "400"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("ending", "number"), [("kill", RETRIES), ("terminate", RETRIES // 4)])
def test_many_retries_survive_their_worker(project: Project, ending: str, number: int) -> None:
    """Every first attempt fails, the worker goes while all of them wait, and the next one runs each once more."""
    patient = {"FLYTE_CELERY_LEASE": "300"}  # no busy machine is to make a worker lose its lease here
    first = start(project, "aio", 3600.0, **patient)
    publish_many(project, "aio.second_time", number)
    wait_while_it_grows(project, lambda: parked(project, "aio"), number)
    project.wait(lambda: project.status("aio")["running"] == 0, 60, "the first attempts' ends")
    project.wait(lambda: not claimed(project), 60, "their acknowledgements")
    getattr(first, ending)()
    first.wait()
    assert parked(project, "aio") == number
    with redis.Redis.from_url(project.url) as client:  # not to wait for an hour
        later = Later(client, "aio")
        assert later.hurry(entry for entry, _ in later.entries()) == number
    start(project, "aio", **patient)
    wait_while_it_grows(project, lambda: begun(project, 1), number)
    assert runs(project, 0) == dict.fromkeys(range(number), 1)
    assert runs(project, 1) == dict.fromkeys(range(number), 1)
    assert parked(project, "aio") == 0


def test_a_back_off_waits_in_redis_and_holds_no_claim(project: Project) -> None:
    start(project, "aio", 5.0)
    begun = time.time()
    result = project.send("aio.second_time", 1)

    def resting() -> dict[str, Any] | None:
        status = project.status("aio")
        return status if status["later"] and not status["running"] else None

    status = project.wait(resting, description="the retry in Redis and the first attempt's end")
    assert status is not None
    assert (status["later"], status["waiting"], status["ready"]) == (1, 0, 0)
    assert begun + 5 <= status["next_due"] < time.time() + 5
    assert result.state == "RETRY"
    assert result.get(timeout=PATIENCE) == 1
    assert time.time() - begun >= 5.0


@pytest.mark.parametrize(
    "when", ["countdown", "eta", "eta without a zone", "eta with another zone"], ids=lambda when: when.replace(" ", "-")
)
def test_the_time_of_any_client_is_kept(project: Project, when: str) -> None:
    start(project, "snc", APP_TIMEZONE="Europe/Athens")
    at = datetime.now(UTC) + timedelta(seconds=1.2)
    options: dict[str, Any] = {
        "countdown": {"countdown": 1.2},
        "eta": {"eta": at},
        "eta without a zone": {"headers": {"eta": at.replace(tzinfo=None).isoformat()}},
        "eta with another zone": {"headers": {"eta": at.isoformat().replace("+00:00", "Z")}},
    }[when]
    result = project.send("snc.now", **options)
    project.wait(lambda: parked(project, "snc") == 1)
    ran = result.get(timeout=PATIENCE)
    assert at.timestamp() - 0.05 <= ran < at.timestamp() + PATIENCE


def test_an_environment_with_only_future_work_goes_to_zero_and_wakes_in_time(project: Project) -> None:
    start(project, "aio", 1.0, "--idle-ttl", "0.5")
    result = project.send("aio.pid", countdown=8)
    project.wait(lambda: parked(project, "aio") == 1)
    project.wait(lambda: not project.replicas("aio"), 7.0, "no replica while nothing is due")
    assert result.get(timeout=PATIENCE) > 0
    assert project.replicas("aio")


def test_future_work_outlives_all_workers(project: Project) -> None:
    worker = start(project, "snc")
    result = project.send("snc.now", countdown=600)
    project.wait(lambda: parked(project, "snc") == 1)
    worker.kill()
    worker.wait()
    answer = project.celery("env", "status", "snc", env={"BACKOFF": "1"})
    assert "1 task whose time has not come" in answer.stdout, answer.stdout + answer.stderr
    start(project, "snc")
    make_due(project, "snc")
    assert result.get(timeout=PATIENCE) > 0


def test_a_worker_of_another_environment_shows_what_is_due(project: Project) -> None:
    """So that whoever starts workers by the depth of a queue sees it."""
    worker = start(project, "snc")
    project.send("snc.now", countdown=600)
    project.wait(lambda: parked(project, "snc") == 1)
    worker.kill()
    worker.wait()
    start(project, "aio")
    make_due(project, "snc")
    project.wait(lambda: project.depth("snc") == 1, description="the task in its queue")


def test_a_task_that_is_revoked_before_its_time_ends_at_once(project: Project) -> None:
    start(project, "snc")
    results = [project.send("snc.now", countdown=600) for _ in range(3)]
    project.wait(lambda: parked(project, "snc") == 3)
    results[1].revoke()
    with pytest.raises(TaskRevokedError):
        results[1].get(timeout=PATIENCE)
    project.wait(lambda: parked(project, "snc") == 2, description="the revoked task's end")
    project.wait(lambda: "Discarding revoked task: snc.now" in project.workers[0].log())


def test_a_task_that_expires_before_its_time_never_runs(project: Project) -> None:
    start(project, "snc")
    result = project.send("snc.now", countdown=0.6, expires=0.3)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)


def test_a_time_that_cannot_be_read_leaves_the_worker_alone(project: Project) -> None:
    start(project, "snc")
    for eta in ("soon", 5, {"a": 1}, "9999-12-31T23:59:59.999999+00:00x"):
        project.send("snc.now", headers={"eta": eta})
    assert project.call("snc.now") > 0


def test_an_operator_lists_hurries_and_forgets_future_work(project: Project) -> None:
    start(project, "snc")
    results = [project.send("snc.now", countdown=600 + n) for n in range(4)]
    project.wait(lambda: parked(project, "snc") == 4)

    def later(*arguments: str) -> str:
        answer = project.celery("env", "later", *arguments, env={"BACKOFF": "1"})
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    listed = json.loads(later("list", "snc", "--json"))
    assert [row["task_id"] for row in listed] == [result.id for result in results]
    assert all(500 < row["due"] - time.time() < 700 for row in listed)
    later("now", "snc", results[2].id)
    assert results[2].get(timeout=PATIENCE) < time.time()
    later("drop", "snc", results[0].id)
    assert results[1].id in later("list")
    assert parked(project, "snc") == 2
    later("drop", "snc", "--all")
    assert "No task waits" in later("list", "snc")


def test_future_work_that_cannot_be_moved_is_told_of_and_holds_up_no_call(project: Project) -> None:
    worker = start(project, "snc")
    with redis.Redis.from_url(project.url) as client:
        client.set(names.later_messages_key("snc"), "no hash")
        client.zadd(names.later_key("snc"), {"task": 0})
    worker.wait_for_log("snc: what is due cannot be moved into the queue: ")
    assert project.call("snc.now")
