"""What of a queue is demand for the environment's own replicas: not the calls with overrides, which want others."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from flyte_celery import names
from flyte_celery.fleet.claims import Claims
from flyte_celery.fleet.seats import Place, View, look
from tests.helpers.fleets import SimulatedWorker

QUEUE = "predict"
LISTS = names.priority_lists(QUEUE)
NOW = 1_000_000.0


@pytest.fixture
def claims(server: redis.Redis) -> Claims:
    """A worker's claims, with a lease."""
    made = Claims(server, QUEUE, names.PRIORITY_STEPS, "w1", 15.0)
    made.take_lease()
    return made


def publish(server: redis.Redis, *calls: str, priority: int = 0, padding: int = 0) -> None:
    """Put messages into the queue: a call's name begins with "other" where it wants other replicas."""
    overrides: dict[str, dict[str, Any]] = {
        "own": {},
        "retried": {names.OVERRIDES_HEADER: {"retries": 3}},
        "other": {names.OVERRIDES_HEADER: {"beside": True, "reusable": "off"}},
    }
    for call in calls:
        headers = {"id": call, **overrides[call.partition("-")[0]]}
        message = {"body": "x" * padding, "headers": headers, "properties": {"priority": priority}}
        server.lpush(LISTS[names.priority_index(priority)], json.dumps(message))


def seen_by_a_worker(server: redis.Redis, highest: int = 5, slots: int = 1, running: int = 0) -> View:
    """What a worker hears of the queue."""
    worker = SimulatedWorker(server, QUEUE, "w", Place("v1", "host"), 10, highest, slots, running=running)
    worker.exist = running
    worker.join(NOW)
    worker.look(NOW)
    return worker.view


def test_calls_for_other_replicas_are_told_apart(server: redis.Redis) -> None:
    publish(server, "other-1", "own-1", "other-2", "retried-1")
    publish(server, "other-3", priority=9)
    view = look(server, QUEUE, names.PRIORITY_STEPS, NOW)
    assert (view.ready, view.beside) == (5, 3)
    assert seen_by_a_worker(server).beside == 3


def test_what_is_for_the_environment_alone_is_counted_in_full(server: redis.Redis) -> None:
    publish(server, *(f"own-{n}" for n in range(20)))
    assert seen_by_a_worker(server, highest=50).beside == 0


def test_where_there_is_work_for_all_they_are_told_apart_all_the_same(server: redis.Redis) -> None:
    publish(server, "other-1", "own-1", "own-2", "own-3", "other-2")
    assert seen_by_a_worker(server, highest=2, running=2).beside == 2


def test_of_a_long_queue_the_first_ones_stand_for_all(server: redis.Redis) -> None:
    publish(server, *(f"{'own' if n % 4 == 0 else 'other'}-{n}" for n in range(3000)))
    view = seen_by_a_worker(server, highest=5000)
    assert view.ready - view.beside == pytest.approx(750, abs=2)
    assert look(server, QUEUE, names.PRIORITY_STEPS, NOW).beside == view.beside, "it is not counted again at once"


def test_large_messages_are_not_all_looked_at(server: redis.Redis) -> None:
    publish(server, *(f"other-{n}" for n in range(10)), padding=200_000)
    publish(server, *(f"own-{n}" for n in range(10)), padding=200_000)
    view = seen_by_a_worker(server)
    assert (view.ready, view.beside) == (20, 20)


def test_calls_for_other_replicas_can_be_claimed_alone(claims: Claims, server: redis.Redis) -> None:
    publish(server, "own-1", "other-1", "own-2", "other-2", "retried-1", "other-3")
    publish(server, "other-4", priority=9)
    taken = claims.take_beside(3)
    assert [json.loads(claim.message)["headers"]["id"] for claim in taken] == ["other-1", "other-2", "other-3"]
    assert all(claims.owns(claim.id) and claim.placed for claim in taken)
    left = [json.loads(message)["headers"]["id"] for message in server.lrange(QUEUE, 0, -1)[::-1]]  # type: ignore[index]
    assert left == ["own-1", "own-2", "retried-1"]
    assert len(claims.take_beside(3)) == 1
    assert claims.take_beside(3) == []
