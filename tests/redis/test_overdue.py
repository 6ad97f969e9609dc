"""Messages that have waited in a queue for longer than they may: a worker claims them, though it has no room."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import redis

from flyte_celery import names
from flyte_celery.fleet import claims as claims_module
from flyte_celery.fleet.claims import Claims, LeaseLostError

QUEUE = "predict"
LISTS = names.priority_lists(QUEUE)


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the test's database that returns bytes, as workers have it."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def claims(server: redis.Redis) -> Claims:
    """A worker's claims, with a lease."""
    made = Claims(server, QUEUE, names.PRIORITY_STEPS, "w1", 15.0)
    made.take_lease()
    return made


def publish(server: redis.Redis, task: str, seconds: float | None, priority: int = 0, padding: int = 0) -> None:
    """Put a message into the queue that may wait until so many seconds from now, or for ever."""
    times = {"submitted": 1.5, "queued": 1.5, "until": time.time() + (seconds or 0)}
    headers = {"id": task, **({} if seconds is None else {names.TIMES_HEADER: times})}
    message = {"body": "x" * padding, "headers": headers, "properties": {"priority": priority}}
    server.lpush(LISTS[names.priority_index(priority)], json.dumps(message))


def tasks(messages: list[bytes]) -> list[str]:
    """The ids of messages."""
    return [json.loads(message)["headers"]["id"] for message in messages]


def test_only_what_has_waited_too_long_is_claimed_in_its_order(claims: Claims, server: redis.Redis) -> None:
    for n in range(30):
        publish(server, f"late-{n}", -5)
        publish(server, f"soon-{n}", 60)
        publish(server, f"patient-{n}", None)
    publish(server, "lazy", -5, priority=9)
    taken = claims.claim_overdue()
    assert tasks([claim.message for claim in taken]) == [*(f"late-{n}" for n in range(30)), "lazy"]
    assert claims.held == {claim.id: claim for claim in taken}
    assert all(claims.owns(claim.id) for claim in taken)
    left = tasks(server.lrange(QUEUE, 0, -1)[::-1])  # type: ignore[index]
    assert left == [each for n in range(30) for each in (f"soon-{n}", f"patient-{n}")]
    assert claims.claim_overdue() == []


def test_as_many_as_fit_come_at_once(claims: Claims, server: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "MOST_OVERDUE", 2)
    for n in range(3):
        publish(server, f"late-{n}", -5)
    assert tasks([claim.message for claim in claims.claim_overdue()]) == ["late-0", "late-1"]
    assert tasks([claim.message for claim in claims.claim_overdue()]) == ["late-2"]


def test_large_messages_are_not_all_looked_at(claims: Claims, server: redis.Redis) -> None:
    """The server does nothing else meanwhile."""
    for n in range(40):
        publish(server, f"large-{n}", -5, padding=200_000)
    assert 0 < len(claims.claim_overdue()) <= 20


def test_a_worker_without_a_lease_claims_nothing(claims: Claims, server: redis.Redis) -> None:
    publish(server, "late", -5)
    claims.leave()
    with pytest.raises(LeaseLostError):
        claims.claim_overdue()
    assert server.llen(QUEUE) == 1
