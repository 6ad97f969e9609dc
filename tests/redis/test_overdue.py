"""Messages that have waited in a queue for longer than they may: a worker claims them, though it has no room."""

from __future__ import annotations

import itertools
import json
import time

import pytest
import redis

from flyte_celery import names
from flyte_celery.attempts import end_of
from flyte_celery.fleet import claims as claims_module
from flyte_celery.fleet.claims import Claims, LeaseLostError
from tests.helpers.waiting import wait_until

QUEUE = "predict"
LISTS = names.priority_lists(QUEUE)


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
    taken, again = claims.claim_overdue()
    assert again is None
    assert tasks([claim.message for claim in taken]) == [*(f"late-{n}" for n in range(30)), "lazy"]
    assert claims.held == {claim.id: claim for claim in taken}
    assert all(claims.owns(claim.id) for claim in taken)
    left = tasks(server.lrange(QUEUE, 0, -1)[::-1])  # type: ignore[index]
    assert left == [each for n in range(30) for each in (f"soon-{n}", f"patient-{n}")]
    assert claims.claim_overdue() == ([], None)


def test_one_of_several_workers_looks_at_the_first_ones(
    claims: Claims, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another one when that has stopped."""
    other = Claims(server, QUEUE, names.PRIORITY_STEPS, "w2", 15.0)
    other.take_lease()
    assert claims.claim_overdue() == ([], None)
    publish(server, "late-0", -5)
    assert other.claim_overdue() == ([], None)
    monkeypatch.setattr(claims_module, "FIRST_ONES_TURN", 0.01)
    assert [claim.id for claim in claims.claim_overdue()[0]] == list(claims.held)
    publish(server, "late-1", -5)
    taken = wait_until(lambda: other.claim_overdue()[0], description="the other one's turn")
    assert tasks([claim.message for claim in taken]) == ["late-1"]


def test_as_many_as_fit_come_at_once(claims: Claims, server: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "MOST_OVERDUE", 2)
    for n in range(3):
        publish(server, f"late-{n}", -5)
    taken, again = claims.claim_overdue()
    assert tasks([claim.message for claim in taken]) == ["late-0", "late-1"]
    assert again == 0
    taken, again = claims.claim_overdue()
    assert tasks([claim.message for claim in taken]) == ["late-2"]
    assert again is None


def test_large_messages_are_not_all_looked_at(claims: Claims, server: redis.Redis) -> None:
    """The server does nothing else meanwhile."""
    for n in range(40):
        publish(server, f"large-{n}", -5, padding=200_000)
    assert 0 < len(claims.claim_overdue()[0]) <= 20


def note(server: redis.Redis, seconds: float) -> None:
    """Let workers know that the time of some message ends so many seconds from now."""
    end = end_of({names.TIMES_HEADER: {"submitted": 0.0, "queued": time.time(), "until": time.time() + seconds}})
    server.zadd(names.ends_key(QUEUE), {str(end): end})


def look_through(*workers: Claims) -> list[list[str]]:
    """Have workers take turns at looking until nothing is left to look for; what each look has claimed."""
    found, again = [], 0.0
    for each in itertools.cycle(workers):
        time.sleep(again)
        taken, wait = each.claim_overdue(first_ones=not again)
        found.append(tasks([claim.message for claim in taken]))
        if wait is None or wait > 0.1:
            return found
        again = wait
    return found


def test_what_is_far_behind_is_found_when_its_time_was_noted(
    claims: Claims, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers share the way through the queue, of which nobody looks at more than a part in one go."""
    monkeypatch.setattr(claims_module, "LOOKED_AT", 50)
    other = Claims(server, QUEUE, names.PRIORITY_STEPS, "w2", 15.0)
    other.take_lease()
    for n in range(400):
        publish(server, f"patient-{n}", None)
        publish(server, f"lazy-{n}", None, priority=9)
        if n % 100 == 99:
            publish(server, f"late-{n}", -5, priority=9 * (n % 200 // 100))
    assert claims.claim_overdue() == ([], None), "nothing is noted"
    note(server, -5)
    note(server, 60)
    looks = look_through(claims, other)
    assert len(looks) >= 16
    assert sorted(itertools.chain(*looks)) == [f"late-{n}" for n in (199, 299, 399, 99)]
    assert claims.held.keys() or other.held.keys()
    assert sum(server.llen(key) for key in LISTS) == 800  # type: ignore[misc]
    assert server.zcard(names.ends_key(QUEUE)) == 1, "what ends later is still to come"
    assert claims.claim_overdue()[0] == []


def test_a_worker_with_fewer_priorities_goes_on(
    claims: Claims, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While workers are replaced by others that know fewer lists, what is in those of both is found."""
    monkeypatch.setattr(claims_module, "LOOKED_AT", 10)
    for priority in (0, 9):
        for n in range(20):
            publish(server, f"patient-{n}", None, priority=priority)
    publish(server, "late", -5)
    note(server, -5)
    while server.hget(names.overdue_key(QUEUE), "list") != str(len(LISTS)).encode():
        claims.claim_overdue(first_ones=False)
        time.sleep(0.01)
    publish(server, "late too", -5)
    fewer = Claims(server, QUEUE, (0,), "w2", 15.0)
    fewer.take_lease()
    assert sorted(itertools.chain(*look_through(fewer))) == ["late too"]


def test_others_may_take_and_add_meanwhile(
    claims: Claims, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No message is passed over because others have moved."""
    monkeypatch.setattr(claims_module, "LOOKED_AT", 20)
    monkeypatch.setattr(claims_module, "MOST_OVERDUE", 3)
    late = [f"late-{n}" for n in range(30)]
    for n in range(300):
        publish(server, f"patient-{n}", None)
    for n in range(30):
        publish(server, late[n], -5)
        publish(server, f"behind-{n}", None)
    note(server, -5)
    found: list[str] = []
    for n in range(200):
        taken, wait = claims.claim_overdue(first_ones=False)
        found += tasks([claim.message for claim in taken])
        if wait is None or len(found) == len(late):
            break
        server.rpop(QUEUE)
        publish(server, f"new-{n}", 60)
        time.sleep(wait)
    assert sorted(found) == sorted(late)


def test_a_worker_without_a_lease_claims_nothing(claims: Claims, server: redis.Redis) -> None:
    publish(server, "late", -5)
    claims.leave()
    with pytest.raises(LeaseLostError):
        claims.claim_overdue()
    assert server.llen(QUEUE) == 1
