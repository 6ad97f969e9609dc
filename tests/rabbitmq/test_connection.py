"""RabbitMQ goes away and comes back: replicas and what they run stay, nothing is lost, nothing runs twice here."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from tests.helpers.projects import PATIENCE
from tests.rabbitmq.project import RabbitProject
from tests.rabbitmq.server import RabbitServer


def test_a_closed_connection_leaves_running_tasks_alone(project: RabbitProject) -> None:
    """Their messages are delivered again, and acknowledged when the tasks end that they began."""
    worker = project.start("aio")
    pids = project.wait_for_replicas("aio", 2)
    results = [project.send("aio.hold", "gate", n) for n in range(14)]
    project.wait(lambda: len(project.begun()) == 10)
    project.lose_connections()
    worker.wait_for_log("Connection to broker lost")
    project.wait(lambda: sum(f"[{result.id}] received" in worker.log() for result in results[:10]))
    project.wait(lambda: project.depth("aio") == 4, description="the broker to deliver again what the worker had")
    project.open("gate")
    assert [result.get(timeout=PATIENCE) for result in results] == list(range(14))
    assert sorted(number for number, _ in project.begun()) == list(range(14))
    project.wait(lambda: (project.unacknowledged("aio"), project.depth("aio")) == (0, 0))
    assert project.wait_for_replicas("aio", 2) == pids
    assert project.call("aio.nap", 0.0, 1) == 1


def test_what_waits_in_the_worker_is_not_run_twice(project: RabbitProject) -> None:
    worker = project.start("slow", env={"FLYTE_CELERY_AUTOSCALE_INTERVAL": "600"})
    results = [project.send("slow.hold", "gate", n) for n in range(3)]
    project.wait(lambda: (status := project.status("slow"))["running"] == 1 and status["waiting"] == 2)
    project.lose_connections()
    project.wait(lambda: all(worker.log().count(f"[{result.id}] received") == 2 for result in results))
    project.open("gate")
    project.open("all-may-start")
    assert [result.get(timeout=PATIENCE) for result in results] == list(range(3))
    project.wait(lambda: (project.unacknowledged("slow"), project.depth("slow")) == (0, 0))
    assert sorted(number for number, _ in project.begun()) == list(range(3))


def test_a_task_that_a_lost_replica_had_after_a_lost_connection_runs_again(project: RabbitProject) -> None:
    """What took the place of the lost message is what goes back to the queue."""
    worker = project.start("snc")
    project.wait_for_replicas("snc", 2)
    result = project.send("snc.wait", "gate", 1)
    ((_, pid),) = project.wait(project.begun)
    project.lose_connections()
    project.wait(lambda: worker.log().count(f"[{result.id}] received") == 2)
    os.kill(pid, signal.SIGKILL)
    project.wait(lambda: len(project.begun()) == 2)
    project.open("gate")
    assert result.get(timeout=PATIENCE) == 1


def test_a_server_that_is_restarted(
    start_rabbit: Callable[..., RabbitServer], make_project: Callable[..., RabbitProject]
) -> None:
    """Some tasks end while it is away, some later, and some wait in its durable queue."""
    server = start_rabbit()
    for kind in ("classic", "quorum"):
        project = make_project(server, kind)
        worker = project.start("aio")
        pids = project.wait_for_replicas("aio", 2)
        results = [project.send("aio.hold", "early" if n < 5 else "late", n) for n in range(14)]
        project.wait(lambda p=project: len(p.begun()) == 10)
        server.stop()
        worker.wait_for_log("Connection to broker lost")
        project.open("early")
        assert [result.get(timeout=PATIENCE) for result in results[:5]] == list(range(5)), "results are in Redis"
        server.start()
        project.connect_anew()
        project.wait(lambda p=project: len(p.begun()) == 14, description="the tasks that waited in the queue")
        project.open("late")
        assert [result.get(timeout=PATIENCE) for result in results] == list(range(14))
        assert sorted(number for number, _ in project.begun()) == list(range(14))
        project.wait(lambda p=project: p.depth("aio") == 0 and p.unacknowledged("aio") == 0)
        assert project.wait_for_replicas("aio", 2) == pids


def test_a_task_may_run_longer_than_rabbitmq_waits_for_acknowledgements(
    start_rabbit: Callable[..., RabbitServer], make_project: Callable[..., RabbitProject]
) -> None:
    """It closes the channel (by default after 30 minutes), which neither ends the worker nor starts the task again."""
    project = make_project(start_rabbit("[{rabbit, [{consumer_timeout, 1000}, {channel_tick_interval, 500}]}]."))
    worker = project.start("aio")
    result = project.send("aio.hold", "gate", 1)
    project.wait(lambda: worker.log().count(f"[{result.id}] received") == 3, description="two closed channels")
    assert project.call("aio.nap", 0.0, 2) == 2
    project.open("gate")
    assert result.get(timeout=PATIENCE) == 1
    project.wait(lambda: (project.unacknowledged("aio"), project.depth("aio")) == (0, 0))
    assert len(project.begun()) == 1
