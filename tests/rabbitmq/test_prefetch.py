"""A worker takes what it can run, so that the others get the rest."""

from __future__ import annotations

from tests.helpers.projects import PATIENCE
from tests.rabbitmq.project import RabbitProject


def test_a_worker_takes_its_capacity_and_the_next_one_gets_the_rest(project: RabbitProject) -> None:
    project.start("aio", "-n", "first@%h")
    results = [project.send("aio.hold", "gate", n) for n in range(15)]
    project.wait(lambda: len(project.begun()) == 10)
    assert project.prefetch("aio") == 10
    project.wait(lambda: (project.unacknowledged("aio"), project.depth("aio")) == (10, 5))
    project.start("aio", "-n", "second@%h")
    project.wait(lambda: len(project.begun()) == 15)
    project.wait(lambda: (project.unacknowledged("aio"), project.depth("aio")) == (15, 0))
    project.open("gate")
    assert [result.get(timeout=PATIENCE) for result in results] == list(range(15))
    assert len(project.begun()) == 15


def test_of_short_tasks_a_worker_takes_a_few_more(classic: RabbitProject) -> None:
    classic.start("aio")
    classic.wait_for_replicas("aio", 2)
    for result in [classic.send("aio.nap", 0.0, n) for n in range(200)]:
        result.get(timeout=PATIENCE)
    classic.wait(lambda: classic.prefetch("aio") > 10)


def test_quorum_queues_stay_at_the_capacity(quorum: RabbitProject) -> None:
    """RabbitMQ changes the count of a consumer that exists only where it is one for a whole channel."""
    quorum.start("aio")
    for result in [quorum.send("aio.nap", 0.0, n) for n in range(200)]:
        result.get(timeout=PATIENCE)
    assert quorum.prefetch("aio") == 10


def test_replicas_come_with_the_tasks_and_go_after_them(project: RabbitProject) -> None:
    ttl = ("--scaledown-ttl", "0.5", "--idle-ttl", "1")
    project.start("zero", *ttl, env={"FLYTE_CELERY_AUTOSCALE_INTERVAL": "0.2", "FLYTE_CELERY_LOOKAHEAD": "0"})
    for gate in ("first", "second"):
        project.wait_for_replicas("zero", 0)
        results = [project.send("zero.hold", gate, n) for n in range(5)]
        project.wait_for_replicas("zero", 3)
        assert project.depth("zero") == 2
        project.open(gate)
        assert [result.get(timeout=PATIENCE) for result in results] == list(range(5))
    project.wait_for_replicas("zero", 0)
    assert {decision["reason"] for decision in project.ask("env_explain", "zero")} == {"demand", "draining"}
