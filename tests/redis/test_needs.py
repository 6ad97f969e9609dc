"""Tasks that were passed on, on a real Redis: moved in one step, taken in order, over in time, and lost by nobody."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
import redis

from flyte_celery import names
from flyte_celery.devices import GPU
from flyte_celery.fleet.claims import Claim, Claims, LeaseLostError
from flyte_celery.fleet.needs import Needs, in_words_of, need_of, offering, resources_of, unmet
from flyte_celery.fleet.reaper import reap
from flyte_celery.fleet.scripts import script
from flyte_celery.resources import Resources
from tests.helpers.waiting import wait_until

QUEUE = "train"
LISTS = names.priority_lists(QUEUE)
L4 = need_of(Resources(gpu="L4:1"))
HUGE = need_of(Resources(memory="4Ti"))


@pytest.fixture
def needs(server: redis.Redis) -> Needs:
    """What was passed on of the queue."""
    return Needs(server, QUEUE)


@pytest.fixture
def worker(server: redis.Redis) -> Callable[..., Claims]:
    """Make a worker's claims, with a lease of so many seconds."""

    def made(name: str = "w1", lease: float = 15.0) -> Claims:
        claims = Claims(server, QUEUE, names.PRIORITY_STEPS, name, lease)
        claims.take_lease()
        return claims

    return made


@pytest.fixture
def claims(worker: Callable[..., Claims]) -> Claims:
    """A worker's claims, with a lease."""
    return worker()


def claim(claims: Claims, *tasks: str, priority: int = 0) -> list[Claim]:
    """Publish messages of these tasks and claim them."""
    for task in tasks:
        message = {"headers": {"id": task}, "properties": {"priority": priority}}
        claims.client.lpush(LISTS[names.priority_index(priority)], json.dumps(message))
    return claim_waiting(claims, len(tasks))


def claim_waiting(claims: Claims, most: int) -> list[Claim]:
    """Claim what waits in the queue."""
    claims.client.script_load(script("claim").text)
    return claims.claimed(claims.client.execute_command(*claims.claim_command(most)))  # type: ignore[no-untyped-call]


def pass_on(claims: Claims, some: list[Claim], need: str = L4, end: float | None = None) -> None:
    """Pass these claims on."""
    claims.pass_on([(each.id, need, end) for each in some])


def tasks(some: list[Claim]) -> list[str]:
    """The ids of claimed tasks."""
    return [json.loads(each.message)["headers"]["id"] for each in some]


def lasting(server: redis.Redis) -> set[str]:
    """The keys that stay until somebody deletes them."""
    return {key.decode() for key in server.scan_iter() if server.ttl(key) == -1}


def test_what_was_passed_on_is_no_claim_any_more_and_is_taken_by_another(
    claims: Claims, worker: Callable[..., Claims], needs: Needs, server: redis.Redis
) -> None:
    """Nothing of it stays when it is finished."""
    pass_on(claims, claim(claims, "one", "two"))
    assert claims.held == {}
    assert server.exists(names.claims_key(QUEUE, "w1")) == 0
    assert needs.counts() == {L4: 2}
    assert needs.entries() == [("one", L4), ("two", L4)]
    other = worker("w2")
    assert other.take(HUGE, 5) == []
    taken = other.take(L4, 1) + other.take(L4, 5)
    assert tasks(taken) == ["one", "two"]
    assert all(other.owns(each.id) and each.placed for each in taken)
    for each in taken:
        other.ack(each.id)
    other.flush()
    assert other.claim_overdue() == ([], None)
    assert lasting(server) == {names.workers_key()}


def test_the_order_is_that_of_priorities_then_of_the_first_time(claims: Claims, needs: Needs) -> None:
    """One that was taken and handed back has its old place when it is passed on again."""
    pass_on(claims, claim(claims, "lazy", priority=9))
    pass_on(claims, claim(claims, "a", "b"))
    (a,) = claims.take(L4, 1)
    pass_on(claims, claim(claims, "c"))
    claims.hand_back([a])
    pass_on(claims, claim_waiting(claims, 1))
    assert tasks(claims.take(L4, 10)) == ["a", "b", "c", "lazy"]


def test_each_need_waits_by_itself(claims: Claims, needs: Needs) -> None:
    pass_on(claims, claim(claims, "small", "large"))
    pass_on(claims, claim(claims, "huge"), HUGE)
    claims.claim_overdue()
    assert claims.needs == sorted([L4, HUGE])
    assert tasks(claims.take(HUGE, 10)) == ["huge"]
    claims.claim_overdue()
    assert claims.needs == [L4]


def test_what_is_over_is_claimed_whatever_it_needs(claims: Claims, needs: Needs) -> None:
    """And what was revoked."""
    late, revoked, soon, patient = claim(claims, "late", "revoked", "soon", "patient")
    pass_on(claims, [late], end=time.time() - 1)
    pass_on(claims, [soon], HUGE, end=time.time() + 60)
    pass_on(claims, [revoked, patient])
    needs.end(["revoked", "unknown"])
    over = claims.take("", 10)
    assert sorted(tasks(over)) == ["late", "revoked"]
    assert not any(each.placed for each in over)
    assert claims.take("", 10) == []
    assert needs.counts() == {HUGE: 1, L4: 1}
    assert tasks(claims.take(L4, 10)) == ["patient"]


def test_two_messages_of_one_task_are_both_kept(claims: Claims, needs: Needs) -> None:
    pass_on(claims, claim(claims, "same", "same"))
    assert needs.counts() == {L4: 2}
    assert tasks(claims.take(L4, 10)) == ["same", "same"]


def test_dropped_ones_are_gone(claims: Claims, needs: Needs, server: redis.Redis) -> None:
    pass_on(claims, claim(claims, "a", "b"), end=time.time() + 60)
    assert needs.drop(["a", "unknown"]) == 1
    assert tasks(claims.take(L4, 10)) == ["b"]
    pass_on(claims, claim(claims, "c"))
    assert needs.drop(["c"]) == 1
    assert needs.counts() == {}
    claims.claim_overdue()
    assert lasting(server) == {names.workers_key(), names.claims_key(QUEUE, "w1")}


def test_a_worker_without_its_lease_neither_passes_on_nor_takes(
    worker: Callable[..., Claims], needs: Needs, server: redis.Redis
) -> None:
    """What it had is handed back by whoever finds it dead, once."""
    dead = worker("dead", lease=0.05)
    some = claim(dead, "one")
    wait_until(lambda: [report.claims for report in reap(server)] == [1])
    with pytest.raises(LeaseLostError):
        pass_on(dead, some)
    with pytest.raises(LeaseLostError):
        dead.take(L4, 1)
    assert needs.counts() == {}
    assert server.llen(QUEUE) == 1


def test_a_lost_reply_loses_no_message(claims: Claims, worker: Callable[..., Claims], needs: Needs) -> None:
    """The worker has never heard of what it took, and puts it back into the queue."""
    pass_on(claims, claim(claims, "one"))
    taken = claims.take(L4, 1)
    for each in taken:
        del claims.held[each.id]
    assert claims.reclaim() == 1
    assert tasks(claim_waiting(claims, 1)) == ["one"]


def test_needs_are_canonical_and_read_back() -> None:
    """Only what a host has counts; a part of a device is another need than the whole."""
    assert need_of(Resources(gpu="L4:1", disk="1Gi", shm="auto")) == L4
    mig = Resources(cpu=(1, 2), gpu=GPU("A100", 1, "1g.5gb"))
    assert resources_of(need_of(mig)) == mig
    assert in_words_of(need_of(mig)) == "1 x A100/1g.5gb and 1 cores"
    assert need_of(Resources(gpu="L4:1"), '{"reusable": "off"}') != L4
    assert resources_of("{") is resources_of('{"gpu": "X9:1"}') is None
    assert in_words_of('{"gpu": "X9:1"}') == '{"gpu": "X9:1"}'


def test_why_tasks_wait_is_said_by_what_hosts_offer() -> None:
    """Of the same environment; what is no offer is none."""
    device = {"id": "0", "class": "GPU", "name": "L4", "product": "L4", "partition": None, "shares": 1}
    l4 = {"worker": "train@b", "environment": "train", "labels": {"memory": "1Gi"}, "devices": [device]}
    plain = {**l4, "worker": "train@a", "devices": []}
    other = {**l4, "worker": "other@b", "environment": "other"}
    assert offering(L4, "train", [l4, plain, other, {"worker": "x", "environment": "train"}]) == ["train@b"]
    (nobody,) = unmet({L4: 1}, "train", [plain])
    assert str(nobody) == "1 task needs 1 x L4: no worker of 'train' offers that"
    off = need_of(Resources(gpu="L4:1"), '{"reusable": "off"}')
    both, huge = unmet({L4: 2, off: 1, HUGE: 1}, "train", [l4])
    assert str(both) == "3 tasks need 1 x L4: train@b could give that, and will when there is a place"
    assert huge.reason == "no worker of 'train' offers that"
    assert unmet({L4: 2}, "train", [l4], lambda _: "L4 0 is held")[0].reason == "L4 0 is held"
