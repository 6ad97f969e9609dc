"""The end of an attempt and the submission of the next one are one step, which only the owner of its claim can do."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flyte_celery import names
from flyte_celery.fleet.claims import Claim, Claims, LeaseLostError
from flyte_celery.fleet.later import Later
from flyte_celery.fleet.reaper import reap
from flyte_celery.fleet.scripts import script
from flyte_celery.fleet.storing import NextAttempt, arguments, followed, store

QUEUE = "predict"


def message_of(attempt: int, task: str = "t1") -> str:
    """A message of a task."""
    return json.dumps({"headers": {"id": task, "retries": attempt}, "properties": {"priority": 0}})


def attempt_of(message: bytes) -> int:
    """Which attempt a message is."""
    return int(json.loads(message)["headers"]["retries"])


def worker(server: redis.Redis, name: str = "w1") -> Claims:
    """A worker's claims, with a lease."""
    made = Claims(server, QUEUE, names.PRIORITY_STEPS, name, 15.0)
    made.take_lease()
    return made


def claim(claims: Claims, most: int = 1) -> list[Claim]:
    """Claim what is there."""
    return claims.claimed(claims.client.execute_command(*script_of(claims, most)))


def script_of(claims: Claims, most: int) -> tuple[Any, ...]:
    """The claim command as text: the server may not have the script."""
    command = claims.claim_command(most)
    return ("EVAL", script("claim").text, *command[2:])


def end(claims: Claims, held: Claim, wait: float = 0.0, payload: str = "RETRY", list_number: int = 1) -> int:
    """End an attempt with the next one; says what the script says."""
    following = NextAttempt(
        queue=QUEUE,
        key=names.priority_lists(QUEUE)[list_number - 1],
        number=list_number,
        task_id="t1",
        message=message_of(attempt_of(held.message) + 1),
        wait=wait,
        due=time.time() + wait,
        end=0,
        backend=None,
    )
    write = store("result-t1", payload, 60, "", claims.fence(held.id), finished=True)
    [stored] = script("store").run(claims.client, *arguments([followed(write, following)]))
    return int(stored)


def everywhere(server: redis.Redis) -> list[int]:
    """The attempts of the task whose messages are anywhere: in the queue, among claims, in the future."""
    found: list[Any] = []
    for key in names.priority_lists(QUEUE):
        found += server.lrange(key, 0, -1)  # type: ignore[arg-type]
    for key in server.scan_iter(names.claims_key(QUEUE, "*")):
        found += server.hvals(key)  # type: ignore[arg-type]
    for kept in server.hvals(names.later_messages_key(QUEUE)):  # type: ignore[union-attr]
        found.append(kept.partition(b":")[2])
    return sorted(map(attempt_of, found))


def test_the_next_attempt_is_in_the_queue_when_the_claim_of_this_one_is_gone(server: redis.Redis) -> None:
    claims = worker(server)
    server.lpush(QUEUE, message_of(0))
    (held,) = claim(claims)
    assert end(claims, held) == 1
    assert everywhere(server) == [1]
    assert server.llen(QUEUE) == 1
    assert server.get("result-t1") == b"RETRY"
    assert not claims.owns(held.id)
    assert claims.hand_back([held]) == 0


def test_it_is_submitted_once_when_the_reply_was_lost_and_the_write_is_repeated(server: redis.Redis) -> None:
    claims = worker(server)
    server.lpush(QUEUE, message_of(0))
    (held,) = claim(claims)
    assert [end(claims, held), end(claims, held)] == [1, 1]
    assert everywhere(server) == [1]


def test_one_with_a_back_off_waits_in_the_future_of_its_list(server: redis.Redis) -> None:
    claims = worker(server)
    server.lpush(QUEUE, message_of(0))
    (held,) = claim(claims)
    assert end(claims, held, wait=60.0, list_number=3) == 1
    later = Later(server, QUEUE)
    ((entry, due),) = later.entries()
    assert entry == "t1"
    assert 50 < due - time.time() <= 60.1
    assert server.zscore(names.later_queues_key(), QUEUE) == pytest.approx(due * 1000)
    assert later.hurry([entry]) == 1
    later.move_due()
    assert server.llen(names.priority_lists(QUEUE)[2]) == 1


def test_one_that_is_due_within_moments_goes_to_a_worker(server: redis.Redis) -> None:
    """Which wakes up for it in time, where others look once a second."""
    claims = worker(server)
    server.lpush(QUEUE, message_of(0))
    (held,) = claim(claims)
    assert end(claims, held, wait=0.5) == 1
    assert server.llen(QUEUE) == 1


def test_an_attempt_without_a_result_is_ended_all_the_same(server: redis.Redis) -> None:
    claims = worker(server)
    server.lpush(QUEUE, message_of(0))
    (held,) = claim(claims)
    assert end(claims, held, payload="") == 1
    assert everywhere(server) == [1]
    assert not server.exists("result-t1")


def test_a_worker_that_was_given_up_submits_nothing(server: redis.Redis) -> None:
    first, second = worker(server, "w1"), worker(server, "w2")
    server.lpush(QUEUE, message_of(0))
    (held,) = claim(first)
    first.leave()
    reap(server)
    (again,) = claim(second)
    assert end(first, held) == 0
    assert everywhere(server) == [0]
    assert end(second, again) == 1
    assert everywhere(server) == [1]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(["claim", "end", "ack", "back", "die", "due"]), st.integers(0, 1))))
def test_there_is_one_message_of_a_task_whatever_dies_between_which_steps(
    server: redis.Redis, steps: list[tuple[str, int]]
) -> None:
    """Two workers, either of which may die between any two steps, and repeat what it did before."""
    server.flushdb()
    server.lpush(QUEUE, message_of(0))
    workers = [worker(server, "w0"), worker(server, "w1")]
    known: list[list[Claim]] = [[], []]
    last, ended = 0, 0
    for number, (step, which) in enumerate(steps):
        claims, held = workers[which], known[which]
        try:
            if step == "claim":
                held += claim(claims, 2)
            elif step == "end" and held:
                ended += end(claims, held[-1], wait=60.0 * (number % 2), payload=f"RETRY {number}")
            elif step == "ack" and held and not claims.owns(held[-1].id):  # as a worker does when a replica says: done
                claims.ack(held[-1].id)
                claims.flush()
            elif step == "back" and held:
                claims.hand_back([held[-1]])
            elif step == "die":
                claims.leave()
                reap(server)
                workers[which], known[which] = worker(server, f"w{which}-{number}"), []
            elif step == "due":
                later = Later(server, QUEUE)
                later.hurry([entry for entry, _ in later.entries()])
                later.move_due()
        except LeaseLostError:
            pass
        (attempt,) = everywhere(server)
        assert attempt >= last
        last = attempt
    assert last == ended
