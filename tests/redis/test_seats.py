"""Seats on a real Redis, with the time as an argument: bounds of the whole fleet, whatever happens to its workers."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
import redis

from flyte_celery import names
from flyte_celery.fleet.claims import LeaseLostError
from flyte_celery.fleet.scripts import script
from flyte_celery.fleet.seats import Place, Report, look
from tests.helpers.fleets import LEASE, SimulatedWorker, check_sums, seats_in_redis

ENVIRONMENT = "predict"


@pytest.fixture
def server(redis_url: str) -> redis.Redis:
    """A client of the test's database that returns bytes, as workers have it."""
    return redis.Redis.from_url(redis_url)


class Fleet:
    """Workers of one environment, and a clock."""

    def __init__(self, server: redis.Redis, highest: int = 5) -> None:
        self.server = server
        self.highest = highest
        self.now = 1_000_000.0
        self.workers: list[SimulatedWorker] = []
        self._names = 0

    def join(self, room: int = 10, definition: str = "v1", host: str | None = None) -> SimulatedWorker:
        self._names += 1
        place = Place(definition, host or f"host{self._names}")
        worker = SimulatedWorker(self.server, ENVIRONMENT, f"w{self._names}", place, room, self.highest)
        worker.join(self.now)
        self.workers.append(worker)
        return worker

    def want(self, target: int) -> None:
        for worker in self.workers:
            worker.target = target

    def tick(self, times: int = 1, seconds: float = 1.0) -> None:
        for _ in range(times):
            self.now += seconds
            for worker in list(self.workers):
                worker.look(self.now)
                worker.finish(worker.draining)

    @property
    def exist(self) -> int:
        return sum(worker.exist for worker in self.workers)

    def spread(self) -> list[int]:
        return [worker.live for worker in self.workers]


@pytest.fixture
def fleet(server: redis.Redis) -> Fleet:
    return Fleet(server)


def test_two_workers_share_the_maximum(fleet: Fleet) -> None:
    fleet.join(), fleet.join()
    fleet.tick()
    fleet.want(5)
    fleet.tick(4)
    assert fleet.exist == 5
    assert sum(seats_in_redis(fleet.server, ENVIRONMENT).values()) == 5
    assert sorted(fleet.spread()) == [2, 3]


def test_one_worker_has_all_seats_with_its_first_look(fleet: Fleet) -> None:
    worker = fleet.join()
    fleet.want(5)
    worker.look(fleet.now)
    assert worker.exist == 5


def test_the_roomier_host_gets_more(fleet: Fleet) -> None:
    fleet.join(room=2), fleet.join(room=6)
    fleet.tick()
    fleet.want(5)
    fleet.tick(3)
    assert fleet.spread() == [1, 4]


def test_who_does_not_take_what_is_meant_for_it_is_not_waited_for(fleet: Fleet) -> None:
    fleet.join(room=3)
    stopped = fleet.join(room=9)
    fleet.tick()
    stopped.cut_off = True
    fleet.want(3)
    fleet.tick(4)
    assert fleet.spread() == [3, 0]


def test_tasks_that_a_worker_has_claimed_get_their_seat_there(fleet: Fleet) -> None:
    small = fleet.join(room=1)
    fleet.join(room=9)
    fleet.tick()
    small.target, small.running = 1, 1
    small.look(fleet.now)
    assert small.exist == 1


def test_surplus_goes_where_there_is_least_and_only_once(fleet: Fleet) -> None:
    fleet.join(room=9), fleet.join(room=8)
    fleet.want(5)
    fleet.tick(4)
    fleet.want(2)
    fleet.tick()
    assert sum(fleet.spread()) >= 2
    fleet.tick(4)
    assert sum(fleet.spread()) == 2
    assert 0 in fleet.spread(), "one host is free"


def test_a_draining_replica_holds_its_seat_until_it_is_gone(fleet: Fleet) -> None:
    one, two = fleet.join(), fleet.join()
    one.target = 5
    one.look(fleet.now)
    fleet.now += 2
    one.look(fleet.now)
    one.target = 0
    one.look(fleet.now)
    assert (one.exist, one.draining) == (5, 5)
    two.target = 5
    two.look(fleet.now)
    assert two.exist == 0
    one.finish(2)
    one.look(fleet.now)
    fleet.now += 2
    two.look(fleet.now)
    assert two.exist == 2


def test_a_draining_replica_is_taken_back_without_a_free_seat(fleet: Fleet) -> None:
    worker = fleet.join()
    for target in (5, 2):
        worker.target = target
        worker.look(fleet.now)
    assert (worker.exist, worker.draining) == (5, 3)
    worker.target = 4
    worker.look(fleet.now)
    assert (worker.exist, worker.draining) == (5, 1)


def test_seats_of_the_dead_are_free_with_the_end_of_their_lease(fleet: Fleet) -> None:
    dead, other = fleet.join(), fleet.join()
    dead.target = 3
    dead.look(fleet.now)
    assert dead.exist == 3
    fleet.workers.remove(dead)
    other.target = 5
    died = fleet.now
    fleet.tick(14)
    assert other.exist == 2
    fleet.tick(2)
    assert fleet.now - died <= LEASE + 2
    assert other.exist == 5
    check_sums(fleet.server, ENVIRONMENT)


def test_who_comes_late_does_not_take_seats_again_that_others_have(fleet: Fleet, server: redis.Redis) -> None:
    """It was stopped, or what it sent was on its way; nobody has looked for the claims of the dead yet."""
    late, other = fleet.join(), fleet.join()
    late.target = 3
    late.look(fleet.now)
    fleet.workers.remove(late)
    other.target = 5
    fleet.tick(20)
    assert other.exist == 5
    with pytest.raises(LeaseLostError):
        late.seats.report(Report(exist=3, live=3), fleet.highest, 1, fleet.now)
    assert script("lease").run(server, [names.workers_key()], [late.member, int(LEASE * 1000), "renew"]) == 0
    assert sum(seats_in_redis(server, ENVIRONMENT).values()) == 5


@pytest.mark.parametrize("forgotten", [False, True], ids=["for a minute", "for so long that the pulse is gone"])
def test_a_redis_that_was_away_gives_nobodys_seats_away(fleet: Fleet, server: redis.Redis, forgotten: bool) -> None:
    one, two = fleet.join(), fleet.join()
    one.target = two.target = 5
    one.look(fleet.now)
    one.safe_until = fleet.now + 1000  # it was refused, so it knows that nobody else can have its seats
    had = one.exist
    fleet.now += 60
    if forgotten:
        server.delete(names.pulse_key())
    two.look(fleet.now)
    assert two.exist + had <= 5
    fleet.now += 1
    one.look(fleet.now)
    fleet.tick(4)
    assert one.exist >= had
    assert fleet.exist == 5


def test_a_redis_that_has_forgotten_everything_takes_over_what_there_is(fleet: Fleet, server: redis.Redis) -> None:
    one, two = fleet.join(), fleet.join()
    fleet.want(5)
    fleet.tick(3)
    server.flushdb()
    for worker in (one, two):
        worker.lives += 1
        worker.join(fleet.now)
        worker.look(fleet.now)
    fleet.tick(4)
    assert fleet.exist == 5


def test_who_lost_its_lease_hears_of_it(fleet: Fleet, server: redis.Redis) -> None:
    worker = fleet.join()
    worker.target = 2
    worker.look(fleet.now)
    server.zadd(names.workers_key(), {worker.member: -1})
    worker.look(fleet.now)
    assert (worker.exist, worker.lives) == (0, 2)


def test_a_new_definition_takes_over_and_the_old_one_drains(fleet: Fleet) -> None:
    old = fleet.join(definition="v1")
    fleet.want(5)
    fleet.tick()
    assert old.exist == 5
    new = fleet.join(definition="v2")
    fleet.want(5)
    for _ in range(7):
        fleet.tick()
        assert fleet.exist <= 5
        assert old.serves + new.serves >= 1, "some replica takes tasks all the time"
    assert (old.exist, new.exist) == (0, 5)
    assert not old.view.serves and new.view.serves


def test_a_new_definition_shows_at_rest_that_it_can_start(fleet: Fleet) -> None:
    """And goes back to rest where nobody wants a replica."""
    old = fleet.join(definition="v1")
    fleet.tick()
    new = fleet.join(definition="v2")
    new.look(fleet.now)
    assert (new.exist, new.view.serves, new.view.proves) == (1, False, True)
    old.look(fleet.now)
    assert old.view.serves and (old.view.all_live, old.view.proving) == (0, 1)
    fleet.tick(3)
    assert (old.view.serves, new.view.serves, new.view.trial) == (False, True, 0)
    assert fleet.exist == 0


@pytest.mark.parametrize("highest", [1, 5])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_definition_that_cannot_start_takes_nothing_over(fleet: Fleet, highest: int, workers: int) -> None:
    """Its attempts cost the one that serves a replica for a while, but not for ever."""
    fleet.highest = highest
    old = fleet.join(definition="v1")
    fleet.want(highest)
    fleet.tick()
    new = [fleet.join(definition="v2") for _ in range(workers)]
    for worker in new:
        worker.broken = True
    fleet.want(highest)
    tried = 0
    for _ in range(60):
        fleet.tick()
        assert old.view.serves and not any(worker.view.serves for worker in new)
        assert highest - 1 <= old.live
        assert fleet.exist <= highest
        tried += sum(worker.starting for worker in new)
        check_sums(fleet.server, ENVIRONMENT)
    assert tried == 3
    assert old.serves == highest
    fleet.want(0)
    fleet.tick(5)
    tried = 0
    for _ in range(20):
        fleet.tick()
        tried += sum(worker.starting for worker in new)
    assert tried >= 5, "seats that nobody misses are there to try"
    new[-1].broken = False
    fleet.tick(10)
    assert new[-1].view.serves and not old.view.serves


def test_another_worker_with_the_definition_is_another_attempt(fleet: Fleet) -> None:
    fleet.highest = 1
    old, broken = fleet.join(definition="v1"), fleet.join(definition="v2")
    broken.broken = True
    fleet.want(1)
    fleet.tick(30)
    assert old.serves == 1
    other = fleet.join(definition="v2")
    fleet.want(1)
    fleet.tick(10)
    assert other.serves == 1 and old.exist == 0


@pytest.mark.parametrize("needs", [1000, 2000])
def test_a_new_definition_gets_the_room_that_it_needs_on_its_host(fleet: Fleet, needs: int) -> None:
    """The host has four cores, which the replicas of the old definition have, one each."""
    place = Place("v1", "host1", millicores=1000, host_millicores=4000)
    old = SimulatedWorker(fleet.server, ENVIRONMENT, "old@host1", place, 4, 5)
    other = SimulatedWorker(fleet.server, ENVIRONMENT, "other@host2", replace(place, host="host2"), 0, 5)
    place = replace(place, definition="v2", millicores=needs)
    new = SimulatedWorker(fleet.server, ENVIRONMENT, "new@host1", place, 4000 // needs, 5)
    for worker in (old, other):
        worker.join(fleet.now)
        fleet.workers.append(worker)
    fleet.want(5)
    fleet.tick(3)
    assert (old.exist, other.exist) == (4, 0)
    new.join(fleet.now)
    fleet.workers.append(new)
    fewest = 4
    for _ in range(20):
        fleet.tick()
        if not new.view.serves:
            fewest = min(fewest, old.serves)
    assert new.view.serves
    assert fewest == 4 - needs // 1000
    new.target = 5
    fleet.tick(5)
    assert (old.exist, new.exist) == (0, 4000 // needs)


def test_a_new_definition_that_finds_no_room_on_one_host_is_tried_on_another(fleet: Fleet) -> None:
    old = fleet.join(definition="v1", room=1)
    fleet.want(1)
    fleet.tick()
    full, roomy = fleet.join(definition="v2", room=0), fleet.join(definition="v2", room=1)
    fleet.want(1)
    fleet.tick(6)
    assert roomy.view.serves
    assert (old.exist, full.exist, roomy.exist) == (0, 0, 1)


def test_a_new_definition_without_any_room_costs_the_old_one_nothing(fleet: Fleet) -> None:
    old = fleet.join(definition="v1")
    fleet.want(4)
    fleet.tick()
    fleet.join(definition="v2", room=0)
    fleet.want(4)
    for _ in range(40):
        fleet.tick()
        assert old.serves == 4


def test_with_the_last_worker_of_the_old_definition_the_new_one_takes_over_as_it_is(fleet: Fleet) -> None:
    old, new = fleet.join(definition="v1"), fleet.join(definition="v2")
    new.broken = True
    fleet.want(2)
    fleet.tick(2)
    old.leave()
    fleet.workers.remove(old)
    fleet.tick()
    assert new.view.serves and new.view.trial == 0


def test_a_definition_that_came_while_another_was_tried_comes_after_it(fleet: Fleet) -> None:
    old = fleet.join(definition="v1")
    fleet.want(5)
    fleet.tick()
    stuck = fleet.join(definition="v2")
    stuck.broken = True
    fleet.want(5)
    fleet.tick(3)
    newest = fleet.join(definition="v3")
    fleet.want(5)
    for _ in range(10):
        fleet.tick()
        check_sums(fleet.server, ENVIRONMENT)
    assert newest.serves == 5
    assert (old.exist, stuck.exist) == (0, 0)
    newest.leave()
    fleet.workers.remove(newest)
    fleet.tick(8)
    assert old.serves == 5, "a definition of which a replica was ready comes before one that failed"


def test_a_definition_that_nobody_has_any_more_is_forgotten_and_may_come_back_as_new(fleet: Fleet) -> None:
    old = fleet.join(definition="v1")
    new = fleet.join(definition="v2")
    fleet.tick()
    old.leave()
    fleet.workers.remove(old)
    again = fleet.join(definition="v1")
    fleet.want(1)
    fleet.tick(3)
    assert again.view.serves
    assert not new.view.serves


def test_the_old_definition_serves_again_when_the_new_one_is_gone(fleet: Fleet) -> None:
    old, new = fleet.join(definition="v1"), fleet.join(definition="v2")
    fleet.want(2)
    fleet.tick(4)
    assert (old.exist, new.exist) == (0, 2)
    new.leave()
    fleet.workers.remove(new)
    fleet.tick(2)
    assert old.exist == 2


def test_a_drained_host_has_no_replicas_and_others_take_over(fleet: Fleet, server: redis.Redis) -> None:
    one, two = fleet.join(host="a"), fleet.join(host="b")
    fleet.want(4)
    fleet.tick(4)
    server.hset(names.drained_hosts_key(), "a", 1)
    fleet.tick(5)
    assert (one.exist, two.exist) == (0, 4)


def test_operators_bounds_hold_in_place_of_the_policys(fleet: Fleet, server: redis.Redis) -> None:
    fleet.join(), fleet.join()
    server.hset(names.orders_key(ENVIRONMENT), mapping={"min": 1, "max": 2})
    fleet.want(5)
    fleet.tick(4)
    assert fleet.exist == 2
    assert (fleet.workers[0].view.lowest, fleet.workers[0].view.highest) == (1, 2)


def test_a_host_gives_no_more_than_it_has_to_all_of_its_workers(server: redis.Redis) -> None:
    """Two environments on a host of four cores, whose replicas take one core each."""
    now = 1_000_000.0
    place = Place("v1", "host1", millicores=1000, host_millicores=4000)
    workers = [SimulatedWorker(server, name, f"{name}@host1", place, 9, 3) for name in ("one", "two")]
    for worker in workers:
        worker.target = 3
        worker.join(now)
        worker.look(now)
    assert [worker.exist for worker in workers] == [3, 1]


def test_a_host_that_is_full_of_other_environments_is_not_waited_for(server: redis.Redis) -> None:
    """What is meant for the roomiest host goes to it first; that host has room as long as nobody else uses it."""
    now = 1_000_000.0
    place = Place("v1", "host1", millicores=1000, host_millicores=9000)
    neighbour = SimulatedWorker(server, "other", "other@host1", place, 9, 9)
    full = SimulatedWorker(server, ENVIRONMENT, "full@host1", place, 9, 3)
    free = SimulatedWorker(server, ENVIRONMENT, "free@host2", replace(place, host="host2"), 3, 3)
    neighbour.target = 9
    for worker in (neighbour, full, free):
        worker.join(now)
        worker.look(now)
    assert neighbour.exist == 9
    full.target = free.target = 3
    full.look(now), free.look(now)
    assert (full.exist, free.exist) == (0, 3), "with its first look"


def test_seats_are_given_back_when_a_worker_leaves_and_nothing_stays(fleet: Fleet, server: redis.Redis) -> None:
    worker = fleet.join()
    fleet.want(3)
    fleet.tick()
    worker.leave()
    assert look(server, ENVIRONMENT, names.PRIORITY_STEPS, fleet.now).all_seats == 0
    left = [key for key in server.scan_iter() if server.ttl(key) == -1]
    assert left == [names.workers_key().encode()]


def test_a_definition_is_tried_whatever_its_worker_is_called(fleet: Fleet, server: redis.Redis) -> None:
    """Who starts a worker names it."""
    old = fleet.join()
    fleet.want(1)
    fleet.tick(2)
    place = Place("v2", "a_host")  # as `place_of` has it
    new = SimulatedWorker(server, ENVIRONMENT, "a worker@a host", place, 10, fleet.highest, target=1)
    new.join(fleet.now)
    fleet.workers.append(new)
    fleet.tick(5)
    assert (old.exist, new.exist) == (0, 1)


def test_nothing_stays_of_a_worker_that_dies(fleet: Fleet, server: redis.Redis) -> None:
    """Also of what it has said only later, as one that was at zero when it came, or has been since."""
    fleet.join()
    for target in (0, 3, 0, 2):
        fleet.want(target)
        fleet.tick(2)
        left = [key for key in server.scan_iter() if server.ttl(key) == -1]
        assert left == [names.workers_key().encode()]


@pytest.mark.parametrize("seed", range(int(os.environ.get("FLYTE_CELERY_TEST_SEEDS", "3"))))
def test_whatever_happens_the_bounds_hold(server: redis.Redis, seed: int) -> None:
    """Workers join, leave, die, are cut off and come back, replicas crash, demand and bounds change, versions roll.

    Some of these cannot start.
    """
    server.flushdb()
    chance = random.Random(seed)
    fleet = Fleet(server, highest=chance.randint(1, 8))
    bound, hosts, version = fleet.highest, 0, 1
    for _ in range(int(os.environ.get("FLYTE_CELERY_TEST_STEPS", "250"))):
        before = sum(seats_in_redis(server, ENVIRONMENT).values())
        happened = chance.random()
        alive = list(fleet.workers)
        some = chance.choice(alive) if alive else None
        if (happened < 0.06 and len(alive) < 8) or some is None:
            hosts += 1
            fleet.join(chance.randint(0, 6), f"v{version}", f"host{chance.randint(1, 4)}")
        elif happened < 0.08:
            some.leave()
            fleet.workers.remove(some)
        elif happened < 0.10:
            fleet.workers.remove(some)  # its launcher ends its replicas with it
        elif happened < 0.14:
            some.cut_off = not some.cut_off
        elif happened < 0.20:
            some.crash(chance.randint(1, 3))
        elif happened < 0.34:
            some.finish(chance.randint(0, 3))
        elif happened < 0.44:
            some.target = chance.randint(0, bound)
        elif happened < 0.46:
            bound = chance.randint(0, 8)
            server.hset(names.orders_key(ENVIRONMENT), mapping={"min": 0, "max": bound})
        elif happened < 0.48:
            version += chance.choice((0, 1))
            some.broken = chance.random() < 0.5
        elif happened < 0.50:
            host = f"host{chance.randint(1, 4)}"
            if not server.hdel(names.drained_hosts_key(), host):
                server.hset(names.drained_hosts_key(), host, 1)
        elif happened < 0.53:
            fleet.now += chance.choice((0.5, 2.0, 5.0, 20.0))
            for worker in alive:
                worker.pass_time(fleet.now)
        else:
            fleet.now += chance.uniform(0.0, 0.5)
            for worker in alive:
                worker.pass_time(fleet.now)
            some.look(fleet.now)
        check_sums(server, ENVIRONMENT)
        held = seats_in_redis(server, ENVIRONMENT)
        # Bounds that were lowered are reached by waiting, never by killing: what is beyond them may only fall.
        assert sum(held.values()) <= max(bound, before)
        leases: dict[bytes, float] = dict(server.zrange(names.workers_key(), 0, -1, withscores=True))  # type: ignore[arg-type]
        for worker in fleet.workers:
            assert worker.exist <= held.get(worker.member, 0), "a replica without a seat"
            if worker.exist:
                assert leases[worker.member.encode()] > fleet.now * 1000, "a replica beyond its worker's lease"
    # Peace: everybody who is left is heard, and the fleet gets to what it should have.
    server.delete(names.drained_hosts_key())
    for worker in fleet.workers:
        worker.cut_off = worker.broken = False
    fleet.tick(25)
    fleet.want(min(bound, 3))
    fleet.tick(12)
    check_sums(server, ENVIRONMENT)
    serving = [worker for worker in fleet.workers if worker.view.serves]
    assert sum(worker.live for worker in fleet.workers) == min(3, bound, sum(worker.room for worker in serving))
