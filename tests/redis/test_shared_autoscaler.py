"""The autoscaler of a worker with seats on a real Redis: when it asks, and what it does with the answer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
import redis

from flyte_celery import names
from flyte_celery.autoscaler.decide import Limits, Reason, ReplicaState, ReplicaView
from flyte_celery.autoscaler.shared import SharedAutoscaler
from flyte_celery.fleet import orders
from flyte_celery.fleet.seats import Place, Report, Seats, View
from flyte_celery.supervisor.lifecycle import StopReason

ENVIRONMENT = "predict"
POLICY = Limits(lowest=0, highest=4, concurrency=2, scaledown_ttl=30, idle_ttl=300)


@dataclass
class FakePool:
    """Starts and drains at once; its replicas end at once, too."""

    replicas: list[ReplicaView] = field(default_factory=list)
    waiting: int = 0
    running: int = 0
    given_back: int = 0
    numbers: int = 0
    start_failure: str | None = None
    ready: bool = False

    @property
    def live(self) -> int:
        return len(self.replicas)

    def views(self) -> list[ReplicaView]:
        return self.replicas

    def report(self) -> Report:
        ready = self.live if self.ready else 0
        return Report(self.live, self.live, waiting=self.waiting, running=self.running, room=10, ready=ready)

    def start_replicas(self, n: int, new: int | None = None) -> int:
        had = n if new is None else min(n, new)
        for _ in range(had):
            self.numbers += 1
            self.replicas.append(ReplicaView(self.numbers, ReplicaState.READY))
        return had

    def drain(self, numbers: Iterable[int], reason: StopReason) -> None:
        gone = set(numbers)
        self.replicas = [view for view in self.replicas if view.number not in gone]

    def give_back_waiting(self) -> None:
        self.given_back += self.waiting
        self.waiting = 0

    def end_all(self) -> None:
        self.replicas.clear()


@dataclass
class FakeLease:
    clock: FakeClock
    safe_until: float = float("inf")
    forfeited: bool = False
    away: bool = False
    lost: int = 0

    @property
    def is_safe(self) -> bool:
        return self.clock.now < self.safe_until

    def proven(self, sent_at: float) -> None: ...

    def refused(self, exc: redis.RedisError) -> None:
        self.away = True

    def lease_lost(self) -> None:
        self.lost += 1


@dataclass
class FakeClock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1e9


class CountingSeats(Seats):
    """How often it was asked."""

    asked = 0

    def report(self, report: Report, most: int, slots: int, now: float | None = None) -> View:
        self.asked += 1
        return super().report(report, most, slots, now)


class Worker:
    """One worker's autoscaler with everything around it."""

    def __init__(self, server: redis.Redis, name: str, limits: Limits = POLICY, definition: str = "v1") -> None:
        self.server, self.name = server, name
        server.zadd(names.workers_key(), {names.worker_member(ENVIRONMENT, name): 2**52})
        self.pool, self.clock = FakePool(), FakeClock()
        self.lease = FakeLease(self.clock)
        place = Place(definition, name)
        self.seats = CountingSeats(server, ENVIRONMENT, names.PRIORITY_STEPS, lambda: name, 15.0, place)
        self.autoscaler = SharedAutoscaler(self.pool, limits, self.seats, self.lease, self.clock)

    def tick(self, seconds: float = 1.0) -> None:
        self.clock.now += seconds
        self.autoscaler.look()


@pytest.fixture
def server(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


@pytest.fixture
def worker(server: redis.Redis) -> Worker:
    made = Worker(server, "a")
    made.tick()
    return made


def test_from_zero_one_question_gives_what_all_tasks_need(worker: Worker) -> None:
    before = worker.seats.asked
    worker.pool.waiting = 5
    worker.autoscaler.consider()
    assert worker.pool.live == 3
    assert worker.seats.asked == before + 1


def test_at_its_number_a_worker_asks_nothing_between_looks(worker: Worker) -> None:
    worker.pool.waiting = 8
    worker.autoscaler.consider()
    assert worker.pool.live == 4
    before = worker.seats.asked
    for waiting in (1, 0, 3, 8, 0):
        worker.pool.waiting, worker.pool.running = waiting, 2
        worker.autoscaler.consider()
    assert worker.seats.asked == before


def test_a_crashed_replica_is_replaced_without_a_question(worker: Worker) -> None:
    worker.pool.running = 3
    worker.autoscaler.consider()
    before = worker.seats.asked
    worker.pool.replicas.pop()
    worker.autoscaler.consider()
    assert worker.pool.live == 2
    assert worker.seats.asked == before


def test_without_redis_nothing_is_decided(worker: Worker) -> None:
    worker.pool.running = 3
    worker.autoscaler.consider()
    worker.lease.away = True
    worker.pool.running = 0
    worker.tick(100)
    assert worker.pool.live == 2
    assert worker.autoscaler.last is not None
    assert worker.autoscaler.last.reason is Reason.NO_DATA


def test_beyond_its_lease_a_worker_starts_nothing(worker: Worker) -> None:
    worker.pool.running = 3
    worker.autoscaler.consider()
    worker.lease.away, worker.lease.safe_until = True, worker.clock.now + 1
    worker.clock.now += 2
    worker.pool.replicas.clear()
    worker.autoscaler.consider()
    assert worker.pool.live == 0


def test_who_was_cut_off_for_too_long_ends_its_replicas_before_it_asks_again(worker: Worker) -> None:
    worker.pool.running = 3
    worker.autoscaler.consider()
    worker.lease.forfeited = True
    kept, worker.pool.end_all = list(worker.pool.replicas), lambda: None  # type: ignore[method-assign]
    before = worker.seats.asked
    worker.pool.replicas.pop()
    worker.autoscaler.consider()
    assert worker.pool.live == 1, "the seat of the one that has ended is no longer this worker's"
    worker.tick()
    assert worker.seats.asked == before, "its processes are still there"
    assert kept
    worker.pool.replicas.clear()
    worker.tick()
    assert worker.seats.asked > before


def test_tasks_for_which_others_have_the_seats_go_back(server: redis.Redis) -> None:
    one, two = (Worker(server, name, replace(POLICY, highest=1)) for name in "ab")
    one.tick(), two.tick()
    one.pool.waiting = two.pool.waiting = 1
    one.autoscaler.consider()
    two.autoscaler.consider()
    assert (one.pool.live, two.pool.live) == (1, 0)
    assert (one.pool.given_back, two.pool.given_back) == (0, 1)
    assert two.autoscaler.refused


def test_the_demand_of_all_workers_keeps_a_replica(server: redis.Redis) -> None:
    one, two = Worker(server, "a"), Worker(server, "b")
    one.tick(), two.tick()
    one.pool.waiting, two.pool.waiting = 2, 2
    one.autoscaler.consider()
    two.autoscaler.consider()
    for _ in range(2):
        one.tick(), two.tick()
    assert two.autoscaler.target == one.autoscaler.target == 2


def test_the_queue_is_demand_unless_it_is_paused(worker: Worker, server: redis.Redis) -> None:
    orders.pause(server, ENVIRONMENT)
    server.lpush(ENVIRONMENT, *["task"] * 4)
    worker.tick()
    assert worker.pool.live == 0
    orders.resume(server, ENVIRONMENT)
    worker.tick()
    assert worker.pool.live == 2


def test_a_buffer_is_kept_beyond_the_demand_until_the_environment_rests(server: redis.Redis) -> None:
    worker = Worker(server, "a", replace(POLICY, buffer=1))
    worker.tick()
    assert worker.pool.live == 1
    worker.pool.running = 2
    worker.tick()
    assert worker.pool.live == 2
    worker.pool.running = 0
    worker.tick(30)
    worker.tick(1)
    assert worker.pool.live == 1
    worker.tick(300)
    assert worker.pool.live == 0


def test_an_operator_prewarms_once(worker: Worker, server: redis.Redis) -> None:
    orders.prewarm(server, ENVIRONMENT, 3)
    worker.tick()
    assert worker.pool.live == 3
    assert worker.autoscaler.history[-1].reason is Reason.PREWARMED
    worker.tick(30)
    worker.tick(1)
    assert worker.pool.live == 0


@pytest.mark.parametrize("shift", [-90, 7200])
def test_an_operators_clock_is_nobodys_business(
    worker: Worker, server: redis.Redis, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + shift)
    orders.prewarm(server, ENVIRONMENT, 2)
    orders.prewarm(server, ENVIRONMENT, 3)
    monkeypatch.undo()
    worker.tick()
    assert worker.pool.live == 3
    seconds, microseconds = server.time()  # type: ignore[misc]
    ordered_at = int(server.hget(names.orders_key(ENVIRONMENT), "prewarm_id"))  # type: ignore[arg-type]
    assert ordered_at <= seconds * 1000 + microseconds / 1000 + 1, "so that it ends a minute later"


def test_a_drained_worker_says_why(worker: Worker, server: redis.Redis) -> None:
    worker.pool.running = 3
    worker.autoscaler.consider()
    orders.drain(server, ENVIRONMENT)
    worker.tick()
    assert worker.pool.live == 0
    assert worker.autoscaler.last is not None
    assert "an operator has drained" in worker.autoscaler.last.text


def test_a_worker_with_a_new_definition_says_what_it_waits_for(worker: Worker, server: redis.Redis) -> None:
    new = Worker(server, "b", definition="v2")
    new.pool.start_failure = "RuntimeError: model not found"
    new.tick()
    assert new.pool.live == 1, "one that shows that it can start, at rest too"
    assert new.autoscaler.last is not None
    assert "older workers serve until then" in new.autoscaler.last.text
    assert new.autoscaler.last.text.endswith("failed: RuntimeError: model not found.")
    new.tick()
    new.pool.start_failure = "RuntimeError: no memory"
    new.tick()
    assert [told.reason for told in new.autoscaler.history] == [Reason.PROVING, Reason.PROVING]
    worker.pool.waiting = 1
    worker.autoscaler.consider()
    assert worker.pool.live == 1, "the old definition serves"
    new.pool.ready = True
    before = new.seats.asked
    new.autoscaler.consider()
    assert new.seats.asked > before, "it is to serve from now on"
    worker.tick()
    assert (worker.pool.live, worker.pool.given_back) == (0, 1)
    assert new.autoscaler.view is not None and new.autoscaler.view.serves


BY_RUN = replace(POLICY, by_run=True)


def test_what_went_with_its_run_is_not_replaced_though_it_was_wanted_lately(server: redis.Redis) -> None:
    """Neither by its own worker nor by another one, and whoever looks first."""
    one, two = (Worker(server, name, BY_RUN) for name in "ab")
    one.tick(), two.tick()
    one.pool.running, two.pool.running = 4, 2
    for _ in range(3):
        one.tick(), two.tick()
    assert (one.pool.live, two.pool.live) == (2, 1)
    one.pool.running = two.pool.running = 0
    one.tick(), two.tick()
    assert (one.pool.live, two.pool.live) == (2, 1), "kept for scaledown_ttl"
    one.pool.replicas.pop()
    one.autoscaler.consider()
    for _ in range(3):
        two.tick(), one.tick()
    assert (one.pool.live, two.pool.live) == (1, 1)
    assert one.autoscaler.target == two.autoscaler.target == 2


def test_one_that_makes_way_is_replaced_at_once_for_the_run_that_waits(server: redis.Redis) -> None:
    worker = Worker(server, "a", replace(BY_RUN, highest=1))
    worker.pool.waiting = 2
    worker.autoscaler.consider()
    worker.tick()
    worker.pool.replicas.clear()
    before = worker.seats.asked
    worker.autoscaler.consider()
    assert worker.pool.live == 1
    assert worker.seats.asked == before


def test_the_minimum_comes_back_after_a_run(server: redis.Redis) -> None:
    worker = Worker(server, "a", replace(BY_RUN, lowest=1))
    worker.tick()
    worker.pool.replicas.clear()
    worker.autoscaler.consider()
    worker.tick()
    assert worker.pool.live == 1


def test_an_operator_prewarms_replicas_for_runs_to_come(server: redis.Redis) -> None:
    worker = Worker(server, "a", BY_RUN)
    worker.tick()
    orders.prewarm(server, ENVIRONMENT, 3)
    for _ in range(3):
        worker.tick()
        assert worker.pool.live == 3
    worker.tick(30)
    worker.tick(1)
    assert worker.pool.live == 0
