"""Nothing is lost when a worker or a replica dies or stops, and what kills its replica each time is given up."""

from __future__ import annotations

import time

import pytest
from celery.exceptions import WorkerLostError

from tests.helpers.projects import PATIENCE
from tests.rabbitmq.project import RabbitProject

#: What only a look of the autoscaler would mend stays broken for the time of a test.
NO_LOOKS = {"FLYTE_CELERY_AUTOSCALE_INTERVAL": "600"}


def test_a_task_is_acknowledged_when_it_has_ended(project: RabbitProject) -> None:
    project.start("aio")
    result = project.send("aio.hold", "gate", 1)
    project.wait(project.begun)
    project.wait(lambda: (project.depth("aio"), project.unacknowledged("aio")) == (0, 1))
    project.open("gate")
    assert result.get(timeout=PATIENCE) == 1
    project.wait(lambda: project.unacknowledged("aio") == 0)
    assert project.depth("aio") == 0


def test_the_tasks_of_a_killed_worker_run_in_the_next_one(project: RabbitProject) -> None:
    workers = [project.start(environment, ready=False) for environment in ("aio", "snc")]
    results = [project.send("aio.hold", "gate", n) for n in range(25)]
    results += [project.send("snc.wait", "gate", n) for n in range(100, 106)]
    project.wait(lambda: len(project.begun()) == 10 + 2)
    for worker in workers:
        worker.kill()
    project.wait(lambda: (project.depth("aio"), project.depth("snc")) == (25, 6), description="all of them back")
    project.open("gate")
    for environment in ("aio", "snc"):
        project.start(environment, ready=False)
    assert [result.get(timeout=PATIENCE) for result in results] == [*range(25), *range(100, 106)]


def test_a_task_whose_replica_dies_runs_again_in_another_one(project: RabbitProject) -> None:
    project.start("snc")
    before = project.wait_for_replicas("snc", 2)
    survivor = project.call("snc.crash_once", "mark")
    after = project.wait_for_replicas("snc", 2)
    assert len(set(before) & set(after)) == 1, "one died and was replaced"
    assert survivor in after


def test_a_task_that_kills_its_replica_each_time_is_given_up_and_its_neighbours_are_unharmed(
    project: RabbitProject,
) -> None:
    project.start("snc")
    project.open("gate")
    victim = project.send("snc.poison")
    others = [project.send("snc.wait", "gate", n) for n in range(1, 11)]
    with pytest.raises(WorkerLostError, match=r"SIGSEGV while it ran snc.poison.* attempt 3 of 3"):
        victim.get(timeout=PATIENCE)
    assert [result.get(timeout=PATIENCE) for result in others] == list(range(1, 11))
    assert len([number for number, _ in project.begun() if number == 0]) == 3
    project.wait(lambda: project.unacknowledged("snc") == 0)
    assert project.depth("snc") == 0


def test_what_a_quorum_queue_took_back_too_often_is_given_up(quorum: RabbitProject) -> None:
    """As if its task had ended its worker each time, where nobody is left to count: the queue itself does."""
    worker = quorum.start("snc")
    worker.terminate()
    worker.wait()
    result = quorum.send("snc.poison")
    with quorum.celery_app.connection_for_read() as connection:
        channel = connection.default_channel
        for _ in range(20):
            message = quorum.wait(lambda: channel.basic_get("snc"))
            channel.basic_reject(message.delivery_tag, requeue=True)
    quorum.start("snc")
    with pytest.raises(WorkerLostError, match=r"snc.poison.* was delivered 21 times and never ended"):
        result.get(timeout=PATIENCE)
    assert not quorum.begun()


def test_tasks_for_later_wait_and_take_no_place(project: RabbitProject) -> None:
    worker = project.start("snc")
    project.open("gate")
    far = [project.send("snc.wait", "gate", n, countdown=600) for n in range(5)]
    before = time.time()
    soon = project.send("snc.wait", "gate", 7, countdown=1)
    assert project.call("snc.wait", "gate", 8) == 8
    assert soon.get(timeout=PATIENCE) == 7
    assert time.time() - before >= 1
    assert {result.state for result in far} == {"PENDING"}
    assert sorted(number for number, _ in project.begun()) == [7, 8]
    assert "Traceback" not in worker.log()
    assert "CRITICAL" not in worker.log()


class TestAWorkerThatIsToldToStop:
    """One task runs; two wait in the worker, for replicas that are still starting."""

    @pytest.fixture
    def three(self, project: RabbitProject) -> list[int]:
        project.start("slow", "--grace", "4", env=NO_LOOKS)
        self.results = [project.send("slow.hold", "gate", n) for n in range(3)]
        project.wait(lambda: (s := project.status("slow"))["running"] == 1 and s["waiting"] == 2)
        return [0, 1, 2]

    def test_hands_back_at_once_and_lets_running_tasks_finish(self, project: RabbitProject, three: list[int]) -> None:
        (worker,) = project.workers
        worker.terminate()
        project.wait(lambda: project.depth("slow") == 2, 2.0, "two tasks that are back in the queue")
        assert worker.process.poll() is None
        project.open("gate")
        assert worker.wait() == 0
        assert project.depth("slow") == 2
        assert len(project.begun()) == 1
        project.open("all-may-start")
        project.start("slow")
        assert [result.get(timeout=PATIENCE) for result in self.results] == three
        assert len(project.begun()) == 3

    def test_hands_back_what_exceeds_the_grace_period_and_leaves(
        self, project: RabbitProject, three: list[int]
    ) -> None:
        (worker,) = project.workers
        began = time.monotonic()
        worker.terminate()
        assert worker.wait() == 0
        assert 4 <= time.monotonic() - began < 4 + 10
        project.wait(lambda: project.depth("slow") == 3)
        project.open("gate")
        project.open("all-may-start")
        project.start("slow")
        assert [result.get(timeout=PATIENCE) for result in self.results] == three

    def test_hands_back_at_once_what_is_scheduled_for_later(self, classic: RabbitProject) -> None:
        """With classic queues it waits in the worker; with quorum queues in RabbitMQ itself."""
        worker = classic.start("snc")
        classic.send("snc.wait", "gate", 1)
        classic.wait(classic.begun)
        classic.send("snc.wait", "gate", 2, countdown=600)
        classic.wait(lambda: classic.unacknowledged("snc") == 2)
        worker.terminate()
        classic.wait(lambda: classic.depth("snc") == 1, description="the scheduled task in the queue")
        assert worker.process.poll() is None, worker.log_tail()
