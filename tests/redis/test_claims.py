"""Claims on a real Redis: what was taken is finished once or comes back, whoever dies between any two commands."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import redis

from flyte_celery import names
from flyte_celery.fleet.begun import begun
from flyte_celery.fleet.claims import Claims, LeaseLostError
from flyte_celery.fleet.messages import attempts_of
from flyte_celery.fleet.reaper import reap
from flyte_celery.fleet.scripts import script
from flyte_celery.worker.transport import SHORTEST_WAIT
from tests.conftest import wait_until

QUEUE = "predict"
LISTS = names.priority_lists(QUEUE)

MakeClaims = Callable[..., Claims]


@pytest.fixture
def server(redis_url: str) -> redis.Redis:
    """A client of the test's database that returns bytes, as workers have it."""
    return redis.Redis.from_url(redis_url)


@pytest.fixture
def claims_of(redis_url: str) -> MakeClaims:
    """Make a worker's claims, with a lease."""

    def make(worker: str = "w1", lease: float = 15.0) -> Claims:
        made = Claims(redis.Redis.from_url(redis_url), QUEUE, names.PRIORITY_STEPS, worker, lease)
        made.take_lease()
        return made

    return make


def publish(client: redis.Redis, *messages: str, priority: int = 0) -> None:
    """Put messages into the queue as kombu does."""
    for message in messages:
        body = f'{{"properties": {{"delivery_tag": "{message}", "priority": {priority}}}}}'
        client.lpush(LISTS[names.priority_index(priority)], body)


def claim(claims: Claims, most: int) -> list[str]:
    """Claim as the transport does, and say which messages came."""
    client = claims.client
    command = claims.claim_command(most)
    try:
        reply = client.execute_command(*command)  # type: ignore[no-untyped-call]
    except redis.exceptions.NoScriptError:
        client.script_load(script("claim").text)
        reply = client.execute_command(*command)  # type: ignore[no-untyped-call]
    return [tag(each.message) for each in claims.claimed(reply)]


def tag(message: bytes) -> str:
    """The name that `publish` gave a message."""
    return message.decode().split('"')[5]


def queued(client: redis.Redis, priority: int = 0) -> list[str]:
    """What waits in one priority list, next first."""
    found = client.lrange(LISTS[names.priority_index(priority)], 0, -1)
    return [tag(message) for message in reversed(found)]  # type: ignore[arg-type]


def test_messages_are_claimed_in_order_most_urgent_first_and_no_more_than_asked_for(
    claims_of: MakeClaims, server: redis.Redis
) -> None:
    publish(server, "a", "b", "c")
    publish(server, "late", priority=9)
    publish(server, "soon", priority=3)
    claims = claims_of()
    assert claim(claims, 2) == ["a", "b"]
    assert claim(claims, 9) == ["c", "soon", "late"]
    assert claim(claims, 9) == []


def test_a_claimed_message_is_in_redis_until_it_is_acknowledged(claims_of: MakeClaims, server: redis.Redis) -> None:
    publish(server, "a", "b")
    claims = claims_of()
    claim(claims, 2)
    key = names.claims_key(QUEUE, "w1")
    assert server.hlen(key) == 2
    claims.ack(1)
    assert server.hlen(key) == 2
    claims.flush()
    assert server.hkeys(key) == [b"2"]


def test_what_a_wait_has_put_aside_is_the_first_of_the_next_claims(claims_of: MakeClaims, server: redis.Redis) -> None:
    claims = claims_of()
    publish(server, "a", "b")
    server.execute_command(*claims.wait_command(1))  # type: ignore[no-untyped-call]
    assert server.llen(names.inbox_key(QUEUE, "w1")) == 1
    assert claim(claims, 1) == ["a", "b"]
    assert server.llen(names.inbox_key(QUEUE, "w1")) == 0
    assert server.hlen(names.claims_key(QUEUE, "w1")) == 2


def test_the_shortest_wait_ends(claims_of: MakeClaims, server: redis.Redis) -> None:
    """Redis 6.2 waits for ever where it takes a time-out for zero: `BLMOVE` with 0.001 never ends."""
    assert server.execute_command(*claims_of("w1").wait_command(SHORTEST_WAIT)) is None


def test_claims_whose_reply_was_lost_come_back(claims_of: MakeClaims, server: redis.Redis) -> None:
    """The connection breaks after the server has run the script: the worker never hears of these messages."""
    publish(server, "a", "b", "c")
    claims = claims_of()
    assert claim(claims, 1) == ["a"]
    server.script_load(script("claim").text)
    server.execute_command(*claims.claim_command(1))  # type: ignore[no-untyped-call]
    assert claims.reclaim() == 0  # its reply may still come
    assert claim(claims, 1) == ["c"]
    assert claims.reclaim() == 1
    assert queued(server) == ["b"]
    assert server.hlen(names.claims_key(QUEUE, "w1")) == 2
    assert claims.reclaim() == 0


def test_a_worker_that_stops_gives_back_what_an_open_question_has_claimed(
    claims_of: MakeClaims, server: redis.Redis
) -> None:
    publish(server, "a")
    publish(server, "urgent", priority=3)
    claims = claims_of()
    server.script_load(script("claim").text)
    server.execute_command(*claims.claim_command(9))  # type: ignore[no-untyped-call]
    assert claims.reclaim(everything=True) == 2
    assert (queued(server), queued(server, priority=3)) == (["a"], ["urgent"])


def test_the_next_life_of_a_worker_gives_no_id_again(claims_of: MakeClaims, server: redis.Redis) -> None:
    """What is left of the old life acknowledges by its ids, and must not hit a new claim."""
    publish(server, "a", "b")
    old = claims_of()
    claim(old, 1)
    new = old.reborn("w2")
    new.take_lease()
    claim(new, 1)
    assert not old.held.keys() & new.held.keys()


def test_claims_go_back_to_the_head_in_their_order_and_to_their_own_priority(
    claims_of: MakeClaims, server: redis.Redis
) -> None:
    publish(server, "a", "b", "c", "d")
    claims = claims_of()
    claim(claims, 3)
    claims.hand_back(list(claims.held.values()))
    assert queued(server) == ["a", "b", "c", "d"]
    assert not claims.held


def test_handing_back_twice_returns_a_message_once(claims_of: MakeClaims, server: redis.Redis) -> None:
    publish(server, "a")
    claims = claims_of()
    claim(claims, 1)
    held = list(claims.held.values())
    assert claims.hand_back(held) == 1
    assert claims.hand_back(held) == 0
    assert queued(server) == ["a"]


def test_the_claims_of_a_dead_worker_come_back_and_its_started_ones_count_as_an_attempt(
    claims_of: MakeClaims, server: redis.Redis
) -> None:
    publish(server, "a", "b", "c")
    publish(server, "urgent", priority=3)
    dead = claims_of("dead", lease=0.05)
    assert claim(dead, 9) == ["a", "b", "c", "urgent"]
    dead.sent(2, "b")
    dead.flush()
    wait_until(lambda: reap(server), timeout=20, description="the lease to be over")
    assert queued(server) == ["a", "b", "c"]
    assert queued(server, priority=3) == ["urgent"]
    again = claims_of("again")
    claim(again, 9)
    lost = {tag(each.message): attempts_of(json.loads(each.message)["properties"]) for each in again.held.values()}
    assert lost == {"a": (0, ""), "b": (1, "The worker dead was lost"), "c": (0, ""), "urgent": (0, "")}
    assert reap(server) == []


def test_any_worker_knows_which_tasks_have_begun(claims_of: MakeClaims, server: redis.Redis) -> None:
    publish(server, "a", "b", "c", "d")
    one, other = claims_of("one"), claims_of("other")
    claim(one, 3)
    claim(other, 1)
    one.sent(1, "task-a")
    one.sent(2, "task-b")
    other.sent(1, "task-d")
    one.flush()
    other.flush()
    asked = ["task-a", "task-b", "task-c", "task-d", "task-e"]
    assert begun(server, asked) == {"task-a", "task-b", "task-d"}
    one.ack(1)
    one.flush()
    other.hand_back([other.held[1]])
    assert begun(server, asked) == {"task-b"}
    assert begun(server, []) == set()


def test_a_living_worker_is_left_alone(claims_of: MakeClaims, server: redis.Redis) -> None:
    publish(server, "a")
    claim(claims_of(), 1)
    assert reap(server) == []
    assert queued(server) == []


def test_a_worker_that_wakes_up_after_its_lease_can_neither_claim_nor_renew_nor_acknowledge(
    claims_of: MakeClaims, server: redis.Redis
) -> None:
    publish(server, "a")
    stalled = claims_of("stalled", lease=0.05)
    claim(stalled, 1)
    wait_until(lambda: reap(server), timeout=20, description="the lease to be over")
    assert claim(claims_of("other"), 1) == ["a"]
    with pytest.raises(LeaseLostError):
        claim(stalled, 1)
    with pytest.raises(LeaseLostError):
        stalled.renew_lease()
    stalled.ack(1)
    with pytest.raises(LeaseLostError):
        stalled.flush()
    assert server.hlen(names.claims_key(QUEUE, "other")) == 1


def test_what_a_condemned_worker_has_finished_comes_back_for_its_result_was_refused(
    claims_of: MakeClaims, server: redis.Redis
) -> None:
    """Between the condemnation and the hand-back an acknowledgement would lose the message."""
    publish(server, "a")
    worker = claims_of()
    claim(worker, 1)
    worker.leave()
    worker.ack(1)
    with pytest.raises(LeaseLostError):
        worker.flush()
    assert [report.claims for report in reap(server)] == [1]
    assert queued(server) == ["a"]


def test_a_message_that_reached_the_inbox_of_a_dead_worker_comes_back_and_the_worker_is_buried(
    claims_of: MakeClaims, server: redis.Redis
) -> None:
    """A BLMOVE of a stopped process may still be served after its worker was condemned."""
    dead = claims_of("dead", lease=0.05)
    wait_until(lambda: reap(server) == [] and _score(server, "dead") < 0, timeout=20, description="doom")
    publish(server, "a")
    server.execute_command(*dead.wait_command(1))  # type: ignore[no-untyped-call]
    assert queued(server) == []
    wait_until(
        lambda: reap(server) == [] and not server.zcard(names.workers_key()),
        timeout=20,
        description="the burial",
    )
    assert queued(server) == ["a"]


def test_a_worker_that_leaves_keeps_nothing(claims_of: MakeClaims, server: redis.Redis) -> None:
    claims = claims_of()
    claims.leave()
    with pytest.raises(LeaseLostError):
        claims.renew_lease()


def test_a_message_that_is_no_json_goes_back_as_it_is(claims_of: MakeClaims, server: redis.Redis) -> None:
    server.lpush(QUEUE, b"\xff not json")
    dead = claims_of("dead", lease=0.05)
    server.script_load(script("claim").text)
    dead.claimed(server.execute_command(*dead.claim_command(1)))  # type: ignore[no-untyped-call]
    wait_until(lambda: reap(server), timeout=20, description="the lease to be over")
    assert server.lrange(QUEUE, 0, -1) == [b"\xff not json"]


def _score(client: redis.Redis, worker: str) -> float:
    return client.zscore(names.workers_key(), names.worker_member(QUEUE, worker)) or 0.0  # type: ignore[return-value]
