"""Results are stored many at once by one script, and told in one message for each reply channel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from flyte_celery import names
from flyte_celery.client.replies import announced, announcement
from flyte_celery.fleet.scripts import script
from flyte_celery.fleet.storing import UNFENCED, Store, arguments, by_worker, store
from tests.helpers.waiting import wait_until
from tests.redis.conftest import KeptKeys

WORKER = "env/worker@here"
ALIVE, ENDED = 4_000_000_000_000, -1


@pytest.fixture
def client(redis_url: str, keys_expire: KeptKeys) -> Iterator[redis.Redis]:
    """As Celery's backend has it: replies are bytes."""
    keys_expire.allow(names.workers_key(), "flyte-celery:claims:*", "flyte-celery:started:*")
    with redis.Redis.from_url(redis_url) as client:
        yield client


def own(client: redis.Redis, *claims: str, until: int = ALIVE) -> None:
    """Let the worker have a lease and claims."""
    client.zadd(names.workers_key(), {WORKER: until})
    for claim in claims:
        client.hset(names.claims_key("env", "worker@here"), claim, "message")


def put(client: redis.Redis, *stores: Store) -> list[int]:
    """Store results as a replica does."""
    outcomes: list[Any] = script("store").run(client, *arguments(stores))
    return outcomes


def result(number: int, claim: str, reply_to: str = "", *, finished: bool = True) -> Store:
    return store(f"result-{number}", f"value {number}", 60, reply_to, (WORKER, claim), finished=finished)


def test_each_result_needs_its_own_claim(client: redis.Redis) -> None:
    """One that somebody else runs by now is left out, and the others are stored."""
    own(client, "1", "3")
    assert put(client, result(1, "1"), result(2, "2"), result(3, "3")) == [1, 0, 1]
    assert client.mget("result-1", "result-2", "result-3") == [b"value 1", None, b"value 3"]


def test_a_claim_goes_with_the_result_that_finishes_its_task(client: redis.Redis) -> None:
    own(client, "1", "2")
    put(client, result(1, "1"), result(2, "2", finished=False))
    assert client.hkeys(names.claims_key("env", "worker@here")) == [b"2"]


def test_without_a_lease_nothing_is_stored(client: redis.Redis) -> None:
    own(client, "1", until=ENDED)
    assert put(client, result(1, "1"), result(2, "")) == [0, 0]


def test_where_only_the_lease_counts_no_claim_is_asked_for(client: redis.Redis) -> None:
    own(client)
    assert put(client, result(1, "")) == [1]


def test_the_same_write_again_is_no_refusal(client: redis.Redis) -> None:
    """The reply to the first may have been lost with the connection."""
    own(client, "1", "2")
    both = result(1, "1"), result(2, "2")
    assert put(client, *both) == put(client, *both) == [1, 1]


def test_results_without_a_fence_are_always_stored(client: redis.Redis) -> None:
    unfenced = [store(f"result-{n}", "value", 60, "", UNFENCED, finished=True) for n in range(3)]
    assert put(client, *unfenced) == [1, 1, 1]


def test_a_caller_is_told_of_all_its_results_in_one_message(client: redis.Redis) -> None:
    own(client, *map(str, range(5)))
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
        pubsub.subscribe("replies-a", "replies-b")
        put(client, *[result(n, str(n), "replies-b" if n == 2 else "replies-a") for n in range(5)])
        heard: dict[bytes, list[tuple[bytes, bytes]]] = {}

        def both() -> bool:
            if message := pubsub.get_message(timeout=0.1):
                assert message["channel"] not in heard
                heard[message["channel"]] = list(announced(message["data"]))
            return len(heard) == 2

        wait_until(both, description="both messages")
    assert heard[b"replies-a"] == [(b"result-%d" % n, b"value %d" % n) for n in (0, 1, 3, 4)]
    assert heard[b"replies-b"] == [(b"result-2", b"value 2")]


@pytest.mark.parametrize("payload", [b"", b"12:34:x", b"\x00" * 300])
def test_announcements_are_told_apart_whatever_is_in_them(payload: bytes) -> None:
    told = [(b"a:1", payload), (b"b", b"end")]
    assert list(announced(b"".join(announcement(*each) for each in told))) == told


def test_results_of_two_lives_of_a_worker_go_apart() -> None:
    """Each script asks for one lease."""
    stores = [store("r", "v", 60, "", fence, finished=True) for fence in (("a", "1"), ("b", "1"), ("a", "2"))]
    assert by_worker(stores) == [[0, 2], [1]]
