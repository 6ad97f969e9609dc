"""The cache of results on a real server: what is kept, for how long, how much, and who may compute what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from flyte_celery import names
from flyte_celery.fleet.cached import EnvironmentCache, Found, Keep, Place, find, give_up, look_up, renew
from flyte_celery.fleet.scripts import script
from flyte_celery.fleet.storing import UNFENCED, arguments, store
from tests.helpers.waiting import wait_until
from tests.redis.conftest import KeptKeys

ENV, TASK = "env", "env.task"


@pytest.fixture
def client(redis_url: str, keys_expire: KeptKeys) -> Iterator[redis.Redis]:
    """As Celery's backend has it: replies are bytes."""
    keys_expire.allow(names.workers_key(), "flyte-celery:claims:*")
    with redis.Redis.from_url(redis_url) as client:
        yield client


def place(name: str = "a", task: str = TASK) -> Place:
    return Place(task.partition(".")[0], task, f"{task}:{name}")


def keep(where: Place, task_id: str = "1", **changes: Any) -> Keep:
    """How a result goes into the cache, with room for all of a test's."""
    return replace(Keep(where, task_id, 60.0, 60.0, 1_000_000, 1_000_000), **changes)


def put(
    client: redis.Redis, where: Place, payload: str = "value", fence: tuple[str, str] = UNFENCED, **changes: Any
) -> int:
    """Store a result as a replica does."""
    write = store(f"result-{where.member}", payload, 60, "", fence, finished=False)
    [stored] = script("store").run(client, *arguments([keep(where, **changes).added_to(write)]))
    return int(stored)


def look(client: redis.Redis, where: Place, max_age: float | None = None, **asks: Any) -> Found:
    """One look."""
    return find(client, [look_up(where, max_age, 60, **asks)])[0]


def tick(client: redis.Redis) -> None:
    """Wait for the server's next millisecond."""
    begin = milliseconds(client)
    wait_until(lambda: milliseconds(client) > begin, description="a millisecond")


def milliseconds(client: redis.Redis) -> int:
    seconds, micros = client.time()  # type: ignore[misc]
    return int(seconds * 1000 + micros // 1000)


def tasks(client: redis.Redis) -> dict[str, tuple[int, int, int]]:
    """Entries, hits and stores by task."""
    counts = EnvironmentCache(client, ENV).counts()
    return {name: (each.entries, each.hits, each.stored) for name, each in counts.tasks.items()}


def test_what_was_stored_is_found(client: redis.Redis) -> None:
    """Under its own place alone, and the result is stored as always."""
    assert put(client, place()) == 1
    assert look(client, place()) == Found(b"value")
    assert look(client, place("b")) == look(client, place(task="env.other")) == Found()
    assert client.get(f"result-{TASK}:a") == b"value"
    assert tasks(client) == {TASK: (1, 1, 1)}


def test_many_are_found_in_one_round_trip(client: redis.Redis) -> None:
    """Also on a server that has never seen the script."""
    for name in "bd":
        put(client, place(name), payload=name)
    client.script_flush()
    found = find(client, [look_up(place(name), None, 60) for name in "abcd"])
    assert [each.payload for each in found] == [None, b"b", None, b"d"]


def test_age_is_measured_by_the_server(client: redis.Redis) -> None:
    """A caller that wants younger results does not take them from others."""
    put(client, place())
    assert look(client, place(), max_age=60.0).payload == b"value"
    wait_until(lambda: look(client, place(), max_age=0.02).payload is None, description="an entry that is too old")
    assert look(client, place(), max_age=0.0).payload is None
    assert look(client, place()).payload == b"value"


def test_an_entry_ends_with_its_time_to_live(client: redis.Redis) -> None:
    """And what is known of it ends with the next one that comes."""
    put(client, place("a"), ttl=0.02)
    wait_until(lambda: look(client, place("a")).payload is None, description="its end")
    put(client, place("b"))
    assert client.zrange(names.cache_uses_key(ENV), 0, -1) == [f"{TASK}:b".encode()]
    assert list(client.hgetall(names.cache_entries_key(ENV))) == [f"{TASK}:b".encode()]
    assert tasks(client)[TASK][0] == 1


def test_no_time_to_live_no_entry(client: redis.Redis) -> None:
    """max_age=0 asks for that: each call runs."""
    assert put(client, place(), ttl=0.0) == 1
    assert look(client, place()).payload is None


def test_a_new_result_takes_the_place_of_the_old(client: redis.Redis) -> None:
    """Once in every book."""
    put(client, place(), payload="old" * 100)
    put(client, place(), payload="new")
    assert look(client, place()).payload == b"new"
    assert tasks(client) == {TASK: (1, 1, 2)}
    known = EnvironmentCache(client, ENV).counts().tasks[TASK].bytes
    assert int(client.hget(names.cache_counts_key(ENV), "bytes") or 0) == known < 700  # type: ignore[arg-type]


def test_a_result_that_is_too_large_is_stored_and_not_cached(client: redis.Redis) -> None:
    """Who computed it hears of it, to let others begin."""
    told: list[str] = []
    assert put(client, place(), payload="x" * 101, most_bytes_of_result=100, refused=lambda: told.append("a")) == 1
    assert put(client, place("b"), payload="x" * 100, most_bytes_of_result=100, refused=lambda: told.append("b")) == 1
    assert told == ["a"]
    assert look(client, place()).payload is None and client.get(f"result-{TASK}:a") == b"x" * 101
    assert look(client, place("b")).payload is not None


def test_what_was_not_used_for_longest_makes_room(client: redis.Redis) -> None:
    """The environment's entries together stay below its bytes, with what Redis needs for each."""
    for name in "abcd":
        put(client, place(name), payload="x" * 1000)
        tick(client)
    look(client, place("a"))
    tick(client)
    put(client, place("e"), payload="x" * 1000, most_bytes=5000)
    assert [name for name in "abcde" if client.exists(place(name).entry)] == ["a", "d", "e"]
    counts = EnvironmentCache(client, ENV).counts()
    assert counts.evicted == 2
    assert counts.tasks[TASK].entries == 3 and counts.tasks[TASK].bytes < 5000


def test_a_bound_that_was_lowered_takes_effect_step_by_step(client: redis.Redis) -> None:
    """No single store may keep the server busy with all that is too much."""

    def kept() -> int:
        return int(client.zcard(names.cache_uses_key(ENV)))  # type: ignore[arg-type]

    for number in range(250):
        put(client, place(f"old{number}"))
    counted = []
    for name in "abcd":
        put(client, place(name), most_bytes=2000)
        counted.append(kept())
    assert counted[0] >= 250 - 102 and counted[1] >= counted[0] - 102
    assert kept() < 10
    assert look(client, place("d")).payload is not None
    assert EnvironmentCache(client, ENV).counts().tasks[TASK].bytes < 2000


def test_a_large_result_takes_the_room_of_many_small_ones(client: redis.Redis) -> None:
    """However many they are: else results that keep coming would take more and more room."""
    for number in range(250):
        put(client, place(f"old{number}"))
    before = EnvironmentCache(client, ENV).counts().tasks[TASK].bytes
    put(client, place("large"), payload="x" * (before - 1000), most_bytes=before)
    assert EnvironmentCache(client, ENV).counts().tasks[TASK].bytes < before


def test_one_environment_does_not_take_the_room_of_another(client: redis.Redis) -> None:
    """Each has bytes of its own."""
    put(client, place(task="other.task"), payload="x" * 4000, most_bytes=5000)
    put(client, place(), payload="x" * 4000, most_bytes=5000)
    assert look(client, place(task="other.task")).payload is not None


def test_a_worker_that_lost_its_lease_caches_nothing(client: redis.Redis) -> None:
    """As it stores nothing: somebody else runs the task."""
    client.zadd(names.workers_key(), {"env/env@host": -1.0})
    assert put(client, place(), fence=("env/env@host", "1")) == 0
    assert look(client, place()).payload is None
    client.zadd(names.workers_key(), {"env/env@host": 1.0})
    client.hset(names.claims_key("env", "env@host"), "1", "message")
    assert put(client, place(), fence=("env/env@host", "1")) == 1
    assert look(client, place()).payload == b"value"


def test_a_hit_can_be_read_under_the_id_of_its_task(client: redis.Redis) -> None:
    """Also when the result has expired there before the cache has."""
    put(client, place())
    client.delete(f"result-{TASK}:a")
    look(client, place())
    assert client.get(f"result-{TASK}:a") == b"value"
    assert client.ttl(f"result-{TASK}:a") > 0


def test_one_at_a_time_has_the_right_to_compute(client: redis.Redis) -> None:
    """The same task has it again, as after its redelivery."""
    assert look(client, place(), asks="1", lease=30.0) == Found(None, "")
    other = look(client, place(), asks="2", lease=30.0)
    assert other.computed_by == "1" and 25 < other.for_seconds <= 30
    assert look(client, place(), asks="1", lease=30.0) == Found(None, "")
    assert look(client, place()) == Found(), "Who does not ask computes."
    put(client, place())
    assert look(client, place(), asks="2", lease=30.0).payload == b"value"
    assert not client.exists(place().computing)


def test_the_right_ends_unless_it_is_renewed(client: redis.Redis) -> None:
    """A dead task's is taken by another; the dead one cannot take it back by renewing."""
    look(client, place(), asks="1", lease=0.05)
    assert renew(client, place(), "1", 30.0)
    assert look(client, place(), asks="2", lease=30.0).computed_by == "1"
    assert renew(client, place(), "1", 0.02)
    wait_until(lambda: look(client, place(), asks="2", lease=30.0).computed_by == "", description="the right")
    assert not renew(client, place(), "1", 30.0)
    assert not give_up(client, place(), "1", "news")
    assert client.get(place().computing) == b"2"


@pytest.mark.parametrize("how", ["given up", "stored"])
def test_who_waits_is_told(client: redis.Redis, how: str) -> None:
    """On a channel with the name of the entry."""
    look(client, place(), asks="1", lease=30.0)
    with client.pubsub() as pubsub:
        pubsub.subscribe(place().entry)
        assert pubsub.get_message(timeout=5)["type"] == "subscribe"
        assert give_up(client, place(), "1", "news") if how == "given up" else put(client, place(), payload="news")
        message = pubsub.get_message(timeout=5)
        assert message is not None and message["data"] == b"news"
    assert not client.exists(place().computing)


def test_clearing_one_task_leaves_the_others(client: redis.Redis) -> None:
    """Counts of hits stay; results under their ids stay."""
    for number in range(1200):
        put(client, place(str(number)))
    put(client, place(task="env.task2"))
    cache = EnvironmentCache(client, ENV)
    assert cache.clear(TASK) == 1200
    assert cache.clear(TASK) == 0
    assert tasks(client) == {TASK: (0, 0, 1200), "env.task2": (1, 0, 1)}
    assert client.get(f"result-{TASK}:7") == b"value"
    assert cache.clear() == 1
    assert int(client.hget(names.cache_counts_key(ENV), "bytes") or 0) == 0  # type: ignore[arg-type]
    assert not client.exists(names.cache_uses_key(ENV), names.cache_entries_key(ENV))


def test_an_entry_that_redis_dropped_is_a_miss(client: redis.Redis) -> None:
    """A server with a memory policy may drop any key: the entry, or what is known of it."""
    put(client, place("a"))
    client.delete(place("a").entry)
    assert look(client, place("a")).payload is None
    put(client, place("b"))
    client.delete(names.cache_entries_key(ENV))
    assert look(client, place("b")).payload is None
    put(client, place("b"), payload=json.dumps("again"))
    assert look(client, place("b")).payload == b'"again"'
