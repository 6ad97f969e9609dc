"""What a worker remembers of messages that are delivered again: no processes, no broker."""

from __future__ import annotations

from typing import Any

import pytest

from flyte_celery.autoscaler.decide import Limits
from flyte_celery.supervisor.lifecycle import Starts
from flyte_celery.worker import redelivery
from flyte_celery.worker.groups import Group
from flyte_celery.worker.job import Job
from flyte_celery.worker.promises import is_amqp, weaker_promises
from flyte_celery.worker.redelivery import Attempts, Redelivery, returns

AGAIN = {"delivery_info": {"redelivered": True}}
GROUP = Group("env", Limits(0, 1, 1, 0.0, 0.0), Starts(3, 1.0, 60.0), None)
OUTCOME = ("ok", False, 1, 0.1)


def job(task_id: str = "a", retries: int = 0) -> Job:
    """A task in the pool that tells nobody."""

    def ignore(*_: Any) -> None:
        pass

    quiet = (ignore, ignore, ignore, ignore)
    return Job(1, "env.f", task_id, b"", *quiet, None, None, True, ignore, ignore, 0.0, GROUP, retries=retries)


def test_attempts_count_for_each_message_until_the_task_ends() -> None:
    attempts = Attempts()
    assert [attempts.count_lost(job()), attempts.count_lost(job()), attempts.count_lost(job("b"))] == [1, 2, 1]
    assert attempts.count_lost(job(retries=1)) == 1, "a retry is another message"
    attempts.ended(job())
    assert attempts.count_lost(job()) == 1


def test_the_oldest_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redelivery, "REMEMBERED", 2)
    attempts = Attempts()
    for task_id in ("a", "b", "a", "c"):
        attempts.count_lost(job(task_id))
    assert attempts.count_lost(job("a")) == 3
    assert attempts.count_lost(job("b")) == 1


def test_a_message_that_comes_again_is_that_of_the_running_task_once() -> None:
    redelivered, running = Redelivery(), job()
    redelivered.expect([running])
    assert redelivered.claim(job(), {"delivery_info": {}}) is None, "somebody sent it anew"
    assert redelivered.claim(job(retries=1), AGAIN) is None
    assert redelivered.claim(job(), AGAIN) is running
    assert redelivered.claim(job(), AGAIN) is None


def test_a_task_that_ended_meanwhile_is_remembered_with_its_outcome() -> None:
    redelivered, running = Redelivery(), job()
    redelivered.expect([running])
    redelivered.ended(running, OUTCOME)
    assert redelivered.claim(job(), AGAIN) is running
    assert running.outcome == OUTCOME


def test_only_what_is_expected_keeps_its_outcome() -> None:
    redelivered, ended = Redelivery(), job()
    redelivered.ended(ended, OUTCOME)
    assert ended.outcome is None


def test_what_was_lost_here_is_run_when_it_comes() -> None:
    redelivered, running = Redelivery(), job()
    redelivered.expect([running])
    redelivered.forget(running)
    assert redelivered.claim(job(), AGAIN) is None


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, 0),
        (AGAIN, 0),
        ({**AGAIN, "x-delivery-count": 3}, 3),
        ({"x-delivery-count": 3}, 0),  # of the message whose retry this is
    ],
)
def test_returns_are_counted_by_quorum_queues(request_: dict[str, Any], expected: int) -> None:
    assert returns(request_) == expected


def test_what_is_weaker_depends_on_the_broker() -> None:
    classic = weaker_promises("amqp://nowhere//", quorum=False, published=False)
    assert classic.startswith("RabbitMQ has no leases")
    assert "without end" in classic
    assert "must name its queue" in classic
    assert "21 times" in weaker_promises("amqps://nowhere//", quorum=True, published=False)
    tls = weaker_promises("rediss://nowhere/0", quorum=False, published=True)
    assert "visibility timeout" in tls
    assert "name its queue" not in tls
    assert "this broker has" in weaker_promises("sqs://", quorum=False, published=False)


@pytest.mark.parametrize(("url", "expected"), [("amqp://a", True), ("pyamqp://a", True), ("redis://a", False)])
def test_amqp_is_known_by_its_scheme(url: str, expected: bool) -> None:
    assert is_amqp(url) is expected
