"""Environments work with RabbitMQ as their broker as with any other."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.helpers.projects import PATIENCE
from tests.helpers.workers import run_python
from tests.rabbitmq.project import RabbitProject
from tests.rabbitmq.server import RabbitServer


def test_async_and_sync_tasks_run(project: RabbitProject) -> None:
    for environment in ("aio", "snc"):
        project.start(environment, ready=False)
    project.open("gate")
    results = [project.send("aio.nap", 0.0, n) for n in range(30)]
    results += [project.send("snc.wait", "gate", n) for n in range(30)]
    assert [result.get(timeout=PATIENCE) for result in results] == [*range(30), *range(30)]
    assert project.call("aio.fail_once", "mark") == 7
    with pytest.raises(ValueError, match="words"):
        project.call("aio.fail", "words")


def test_the_callers_face_is_the_same(project: RabbitProject) -> None:
    project.start("aio")
    printed = run_python(
        project.folder,
        """
        import asyncio
        from proj import app, flyte, nap

        async def main():
            print(await nap.delay(0.0, 2))
            print(await (await flyte.run.aio(nap, 0.0, 3)))

        print(nap.delay(0.0, 1).get(timeout=20))
        asyncio.run(main())
        print(list(flyte.map(nap, [0.0] * 3, [4, 5, 6])))
        print(app.send_task("aio.nap", [0.0, 7]).get(timeout=20))
        """,
        project.variables,
    )
    assert printed.split("\n") == ["1", "2", "3", "[4, 5, 6]", "7", ""]


def test_the_cache_is_where_the_results_are(project: RabbitProject) -> None:
    """In Redis; a hit makes no message, and of many callers one computes."""
    project.start("aio")
    printed = run_python(
        project.folder,
        """
        from proj import flyte, nap

        cached = nap.override(cache=flyte.Cache("auto", serialize=True))
        results = [cached.delay(0.5, 1) for _ in range(10)]
        print([result.get(timeout=20) for result in results], sum(result.cached for result in results))
        hit = cached.delay(0.5, 1)
        print(hit.hit, hit.get())
        """,
        project.variables,
    )
    assert printed.split("\n") == [f"{[1] * 10} 9", "True 1", ""]


def test_results_may_go_the_same_way_back(rabbit: RabbitServer, make_project: Callable[..., RabbitProject]) -> None:
    """Celery's `rpc://` backend: only the thread that called can read a result; what waits elsewhere says so."""
    project = make_project(rabbit, backend="rpc://")
    for environment in ("aio", "snc"):
        project.start(environment, ready=False)
    printed = run_python(
        project.folder,
        """
        import asyncio
        from proj import crash_once, fail, flyte, nap, poison

        async def wait_for(result):
            return await result

        print([result.get(timeout=20) for result in [nap.delay(0.0, n) for n in range(20)]][-1])
        crash_once.delay("mark").get(timeout=20)
        for call in (
            lambda: fail.delay("words").get(timeout=20),
            lambda: poison.delay().get(timeout=20),
            lambda: asyncio.run(wait_for(nap.delay(0.0, 1))),
            lambda: sum(flyte.map(nap, [0.0], [1])),
            lambda: flyte.run(nap, 0.0, 1).outputs(),
        ):
            try:
                call()
            except Exception as error:
                print(type(error).__name__, error)
        """,
        project.variables,
    )
    lines = printed.splitlines()
    assert lines[:2] == ["19", "ValueError words"]
    assert re.fullmatch(r"WorkerLostError .*SIGSEGV.*attempt 3 of 3.*", lines[2])
    assert len(lines) == 6
    for line in lines[3:]:
        assert "rpc:// has a reply queue for each thread" in line


def test_the_commands_tell_of_it(project: RabbitProject) -> None:
    project.start("aio")
    project.wait_for_replicas("aio", 2)
    status = project.celery("env", "status").stdout
    assert re.search(r"aio +on aio@.*\n +replicas +2 ready \(between 2 and 2\)\n +tasks +0 running, 0 waiting", status)
    assert re.search(r"snc +no worker answers\n", status), "nobody has declared its queue"
    assert "queue aio" in project.celery("env", "list").stdout
    assert "Goes to 2 replicas" in project.celery("env", "explain", "aio").stdout
    for number in range(12):
        project.send("aio.hold", "gate", number)
    project.wait(lambda: project.status("aio")["running"] == 10)
    assert "10 running, 0 waiting, 2 in the queue" in project.celery("env", "status", "aio").stdout
    project.send("snc.wait", "gate", 1)
    assert re.search(r"snc +no worker answers\n +tasks +1 in the queue", project.celery("env", "status", "snc").stdout)
    assert "No worker serves 'snc' now" in project.celery("env", "explain", "snc").stderr


def test_the_worker_says_once_what_is_weaker(project: RabbitProject) -> None:
    worker = project.start("aio")
    said = [line for line in worker.log().splitlines() if "WARNING" in line and "leases" in line]
    assert len(said) == 1
    for words in ("RabbitMQ", "memory", "bounds hold for each worker", "must name its queue"):
        assert words in said[0]
    endless = "21 times" if project.queue_type("aio") == "quorum" else "without end"
    assert endless in said[0]


def test_urgent_tasks_overtake(rabbit: RabbitServer, make_project: Callable[..., RabbitProject]) -> None:
    """Clients and the worker declare the same priorities, and a worker holds back no message that it cannot run."""
    project = make_project(rabbit, task_queue_max_priority=9)
    project.start("one")
    project.wait_for_replicas("one", 1)
    project.send("one.wait", "first", 0)
    project.wait(project.begun)
    later = [project.send("one.wait", "rest", n, priority=n) for n in (1, 5, 9)]
    project.wait(lambda: project.depth("one") == 3)
    project.open("rest")
    project.open("first")
    assert [result.get(timeout=PATIENCE) for result in later] == [1, 5, 9]
    assert [number for number, _ in project.begun()] == [0, 9, 5, 1]


def test_a_queue_of_another_kind_is_refused_with_words(rabbit: RabbitServer, project: RabbitProject) -> None:
    """As it would be refused for ever, the worker does not start."""
    kind = "classic" if "quorum" in project.variables["SETTINGS"] else "quorum"
    with project.celery_app.connection_for_write() as connection:
        connection.default_channel.queue_declare(
            "aio", durable=True, auto_delete=False, arguments={"x-queue-type": kind}
        )
    worker = project.start("aio", ready=False)
    assert worker.wait() == 1
    assert "RabbitMQ refuses the queue 'aio'" in worker.log()
