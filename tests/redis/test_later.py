"""Future work on a real Redis: parked in one step, back when it is due, in order, and never in a process alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
import redis

from flyte_celery import names
from flyte_celery.fleet.claims import Claim, Claims, LeaseLostError
from flyte_celery.fleet.later import Later, move_all_due
from flyte_celery.fleet.scripts import script
from tests.conftest import wait_until

QUEUE = "predict"
LISTS = names.priority_lists(QUEUE)

MakeClaims = Callable[..., Claims]


@pytest.fixture
def later(server: redis.Redis) -> Later:
    """The queue's future work."""
    return Later(server, QUEUE)


@pytest.fixture
def claims(server: redis.Redis) -> Claims:
    """A worker's claims, with a lease."""
    made = Claims(server, QUEUE, names.PRIORITY_STEPS, "w1", 15.0)
    made.take_lease()
    return made


def claim(claims: Claims, *tasks: str, priority: int = 0) -> list[Claim]:
    """Publish messages of these tasks and claim them."""
    for task in tasks:
        message = {"headers": {"id": task}, "properties": {"priority": priority}}
        claims.client.lpush(LISTS[names.priority_index(priority)], json.dumps(message))
    claims.client.script_load(script("claim").text)
    command = claims.claim_command(len(tasks))
    return claims.claimed(claims.client.execute_command(*command))  # type: ignore[no-untyped-call]


def queued(client: redis.Redis, priority: int = 0) -> list[str]:
    """The tasks that wait in one priority list, next first."""
    found = client.lrange(LISTS[names.priority_index(priority)], 0, -1)
    return [json.loads(message)["headers"].get("id") for message in reversed(found)]  # type: ignore[arg-type]


def everything(client: redis.Redis) -> set[str]:
    """Keys that are not the leases."""
    return {key.decode() for key in client.scan_iter()} - {names.workers_key()}


def test_a_parked_message_is_no_claim_any_more_and_comes_back_when_it_is_due(
    claims: Claims, later: Later, server: redis.Redis
) -> None:
    (one,) = claim(claims, "one")
    due = time.time() + 0.3
    assert claims.park([(one, due)]) == []
    assert claims.held == {}
    assert everything(server) == {
        names.later_key(QUEUE),
        names.later_messages_key(QUEUE),
        names.later_queues_key(),
    }
    assert later.count() == 1
    assert later.next_due() == pytest.approx(due, abs=0.002)
    assert 0 < (later.move_due() or 0) <= 0.3
    assert queued(server) == []
    wait_until(lambda: later.move_due() is None)
    assert time.time() >= due
    assert queued(server) == ["one"]
    assert everything(server) == {QUEUE}


def test_what_is_due_first_comes_first_behind_what_waits(claims: Claims, later: Later, server: redis.Redis) -> None:
    now = time.time()
    c, a, b = claim(claims, "c", "a", "b")
    claims.park([(c, now + 0.9), (a, now + 0.7), (b, now + 0.8)])
    server.lpush(QUEUE, json.dumps({"headers": {"id": "waiting"}, "properties": {}}))
    wait_until(lambda: later.move_due() is None)
    assert queued(server) == ["waiting", "a", "b", "c"]


def test_a_message_keeps_its_priority(claims: Claims, later: Later, server: redis.Redis) -> None:
    urgent = claim(claims, "urgent")
    lazy = claim(claims, "lazy", priority=9)
    claims.park([(each, time.time() + 0.5) for each in lazy + urgent])
    wait_until(lambda: later.move_due() is None)
    assert (queued(server), queued(server, 9)) == (["urgent"], ["lazy"])


def test_what_is_due_already_stays_claimed(claims: Claims, later: Later) -> None:
    past, future = claim(claims, "past", "future")
    assert claims.park([(past, time.time() - 1), (future, time.time() + 60)]) == [past]
    assert claims.held == {past.id: past}
    assert claims.owns(past.id)
    assert later.count() == 1


def test_two_messages_of_one_task_are_both_kept(claims: Claims, later: Later, server: redis.Redis) -> None:
    twice = claim(claims, "same", "same")
    claims.park([(each, time.time() + 0.02) for each in twice])
    assert later.count() == 2
    wait_until(lambda: later.move_due() is None)
    assert queued(server) == ["same", "same"]


def test_messages_without_an_id_are_kept(claims: Claims, later: Later, server: redis.Redis) -> None:
    server.lpush(QUEUE, "no json", "{}")
    server.script_load(script("claim").text)
    taken = claims.claimed(server.execute_command(*claims.claim_command(2)))  # type: ignore[no-untyped-call]
    claims.park([(each, time.time() + 0.02) for each in taken])
    wait_until(lambda: later.move_due() is None)
    assert server.lrange(QUEUE, 0, -1) == [b"{}", b"no json"]


def test_a_claim_that_was_handed_back_is_not_parked(claims: Claims, later: Later, server: redis.Redis) -> None:
    """Somebody else may run it by now: to park it as well would run it twice."""
    (one,) = claim(claims, "one")
    server.hdel(names.claims_key(QUEUE, "w1"), str(one.id))
    assert claims.park([(one, time.time() + 60)]) == []
    assert later.count() == 0


def test_a_worker_without_a_lease_parks_nothing(claims: Claims, later: Later) -> None:
    (one,) = claim(claims, "one")
    claims.leave()
    with pytest.raises(LeaseLostError):
        claims.park([(one, time.time() + 60)])
    assert later.count() == 0


def test_what_a_lost_answer_leaves_open_goes_back_to_the_queue(
    claims: Claims, later: Later, server: redis.Redis
) -> None:
    """The worker cannot know whether the script has run: what still is claimed is nobody's, and is handed back."""
    (one,) = claim(claims, "one")
    claims.client = redis.Redis(port=1)
    with pytest.raises(redis.ConnectionError):
        claims.park([(one, time.time() + 60)])
    claims.client = server
    assert claims.held == {}
    assert claims.reclaim() == 1
    assert queued(server) == ["one"]


def test_any_worker_moves_what_is_due_of_any_queue(claims: Claims, server: redis.Redis) -> None:
    (one,) = claim(claims, "one")
    claims.park([(one, time.time() + 0.02)])

    def moved() -> bool:
        move_all_due(server)
        return queued(server) == ["one"]

    wait_until(moved)
    assert everything(server) == {QUEUE}


def test_it_is_moved_whatever_the_clock_of_who_looks(
    claims: Claims, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = claim(claims, "one")
    claims.park([(one, time.time() + 0.02)])
    slow = time.time
    monkeypatch.setattr(time, "time", lambda: slow() - 3600)

    def moved() -> bool:
        move_all_due(server)
        return queued(server) == ["one"]

    wait_until(moved)


def test_a_priority_that_is_no_more_is_the_last_one_that_is(claims: Claims, server: redis.Redis) -> None:
    """Somebody has shortened `priority_steps`; what was parked before must not hold up what comes after it."""
    claims.park([(each, time.time() + 0.02) for each in claim(claims, "lazy", priority=9)])
    claims.park([(each, time.time() + 0.04) for each in claim(claims, "other")])
    fewer = Later(server, QUEUE, (0, 3))
    wait_until(lambda: fewer.move_due() is None)
    assert queued(server) == ["other"]
    assert queued(server, priority=3) == ["lazy"]


def test_a_queue_whose_due_work_cannot_be_moved_holds_up_no_other(claims: Claims, server: redis.Redis) -> None:
    claims.park([(each, time.time() + 0.02) for each in claim(claims, "one")])
    server.set(names.later_messages_key("broken"), "no hash")
    server.zadd(names.later_key("broken"), {"task": 0})
    server.zadd(names.later_queues_key(), {"broken": 0})  # the first one

    def moved() -> bool:
        with pytest.raises(redis.ResponseError, match=r"^broken: "):
            move_all_due(server)
        return queued(server) == ["one"]

    wait_until(moved)


def test_revoked_tasks_come_at_once(claims: Claims, later: Later, server: redis.Redis) -> None:
    claims.park([(each, time.time() + 60) for each in claim(claims, "a", "b", "c")])
    assert later.bring_forward(["b", "unknown"]) == 1
    later.move_due()
    assert queued(server) == ["b"]
    assert later.count() == 2


def test_hurried_tasks_lose_their_time(claims: Claims, later: Later, server: redis.Redis) -> None:
    """Else the worker that takes one would find it too early, and put it aside again."""
    server.lpush(QUEUE, json.dumps({"headers": {"id": "a", "eta": "2999-01-01T00:00:00"}, "properties": {}}))
    server.script_load(script("claim").text)
    taken = claims.claimed(server.execute_command(*claims.claim_command(1)))  # type: ignore[no-untyped-call]
    claims.park([(each, time.time() + 60) for each in taken])
    assert later.hurry(["a", "unknown"]) == 1
    later.move_due()
    (message,) = server.lrange(QUEUE, 0, -1)  # type: ignore[misc]
    assert json.loads(message)["headers"] == {"id": "a", "eta": None}
    assert later.count() == 0
    assert later.hurry([]) == 0


def test_a_thousand_due_at_once_are_moved_in_bounded_steps(claims: Claims, later: Later, server: redis.Redis) -> None:
    ids = [f"t{n}" for n in range(1200)]
    for some in (ids[:400], ids[400:800], ids[800:]):
        claims.park([(each, time.time() + 60) for each in claim(claims, *some)])
    later.bring_forward(ids)
    assert later.move_due() == 0
    assert 0 < len(queued(server)) < 1200
    wait_until(lambda: later.move_due() is None)
    assert len(queued(server)) == 1200
