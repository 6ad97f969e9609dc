"""What the fleet costs Redis, as it grows: simulated workers, without processes.

    python -m tests.benchmarks.fleet [--seconds 3] [--fleets 10x200 1000x200]

A fleet is so many workers times environments. The figures are CPU time of the Redis server in microseconds, of each of
the looks that every worker takes once per second, and for one task:

- seats: at steady work, then with the demand changing all the time;
- overdue: for tasks that have waited too long, with nothing in the queue, then with 1,000 messages in it;
- due: for future work, of which each environment has some, with the claim that goes with it and finds nothing;
- reap: for dead workers, and for due work of all environments;
- task: published, claimed, begun, its result stored, acknowledged: one by one, then ten in each step.

The share of a core is that of all workers' looks, at steady work with empty queues.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

from flyte_celery import names
from flyte_celery.fleet.claims import Claims
from flyte_celery.fleet.later import Later, move_all_due
from flyte_celery.fleet.reaper import reap
from flyte_celery.fleet.scripts import script
from flyte_celery.fleet.seats import Place
from flyte_celery.fleet.storing import arguments, store
from tests.helpers.fleets import SimulatedWorker
from tests.helpers.redis_server import RedisServer

#: Workers and environments of each row.
FLEETS = ("1x1", "10x200", "100x200", "1000x200", "10x1", "100x1", "1000x1")

#: A message of the size of Celery's.
MESSAGE = json.dumps({"headers": {"id": "1", "filling": "x" * 800}, "properties": {"priority": 0}})

#: Messages of a queue that has some.
WAITING = 1000


class Meter:
    """Measures work on a server.

    Args:
        client: The server's.
        seconds: How long to repeat each piece of work.
    """

    def __init__(self, client: redis.Redis, seconds: float) -> None:
        self.client = client
        self._seconds = seconds

    def measure(self, rounds: Iterator[int]) -> float:
        """Microseconds of the server's CPU time for each piece of work; a round says how many it did."""
        next(rounds)  # scripts are known from now on
        done, until, before = 0, time.monotonic() + self._seconds, self._cpu()
        while time.monotonic() < until:
            done += next(rounds)
        return (self._cpu() - before) / done * 1e6

    def _cpu(self) -> float:
        found: Any = self.client.info("cpu")
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


# -- Seats -----------------------------------------------------------------------------------------------------------


def seats(client: redis.Redis, number: int, environments: int, *, changing: bool) -> Iterator[int]:
    """Rounds in which each worker looks at its seats, a second of the simulation apart."""
    client.flushall()
    chance, clock = random.Random(1), itertools.count(1_000_000)
    workers = list(_simulated(client, number, environments, next(clock)))
    for now in itertools.islice(clock, 4):
        for worker in workers:
            worker.target = max(1, 2 * number // environments)
            worker.look(now)
    for now in clock:
        for worker in workers:
            if changing:
                worker.target = chance.randint(0, worker.highest)
                worker.finish(worker.draining)
            worker.look(now)
        yield number


def _simulated(client: redis.Redis, number: int, environments: int, now: float) -> Iterator[SimulatedWorker]:
    for index in range(number):
        place = Place("v1", f"host{index // environments}", 100, 100, 64_000, 64_000)
        name = f"env{index % environments}"
        highest = max(1, 3 * number // environments)
        worker = SimulatedWorker(client, name, f"{name}@h{index}", place, 20, highest)
        worker.join(now)
        yield worker


# -- All others ------------------------------------------------------------------------------------------------------


def fleet(client: redis.Redis, number: int, environments: int) -> list[Claims]:
    """Living workers, and environments with empty queues and one message each for later."""
    client.flushall()
    client.script_load(script("claim").text)
    client.script_load(script("due").text)
    tomorrow = int(time.time() + 24 * 3600) * 1000
    for index in range(environments):
        queue = f"env{index}"
        client.zadd(names.later_key(queue), {"1": tomorrow})
        client.hset(names.later_messages_key(queue), "1", f"1:{MESSAGE}")
        client.zadd(names.later_queues_key(), {queue: tomorrow})
    workers = []
    for index in range(number):
        queue = f"env{index % environments}"
        workers.append(Claims(client, queue, names.PRIORITY_STEPS, f"{queue}@h{index}", 3600.0))
        workers[-1].take_lease()
    return workers


def each(workers: list[Claims], look: Callable[[Claims], object]) -> Iterator[int]:
    """Rounds in which each worker takes one look."""
    while True:
        for worker in workers:
            look(worker)
        yield len(workers)


def look_for_due(worker: Claims) -> None:
    """As the transport does when its wait is over."""
    pipe: Any = worker.client.pipeline(transaction=False)
    pipe.execute_command(*Later(worker.client, worker.queue, worker.steps).due_command())
    pipe.execute_command(*worker.claim_command(10))
    worker.claimed(pipe.execute()[1])


def look_for_the_dead(worker: Claims) -> None:
    """As the keeper does."""
    reap(worker.client)
    move_all_due(worker.client)


def work(workers: list[Claims], at_once: int) -> Iterator[int]:
    """Rounds in which one worker after the other has some tasks."""
    for worker in itertools.cycle(workers):
        worker.client.lpush(worker.queue, *[MESSAGE] * at_once)
        taken = worker.claimed(worker.client.execute_command(*worker.claim_command(at_once)))  # type: ignore[no-untyped-call]
        for claim in taken:
            worker.sent(claim.id, str(claim.id))
        worker.flush()
        ends = [store("result", MESSAGE, 60, "", worker.fence(claim.id), finished=True) for claim in taken]
        script("store").run(worker.client, *arguments(ends))
        for claim in taken:
            worker.ack(claim.id)
        worker.flush()
        yield len(taken)


# -- The table -------------------------------------------------------------------------------------------------------

COLUMNS = ("workers", "environments", "seats", "changing", "overdue", "full", "due", "reap", "% of core", "task", "ten")


def row(meter: Meter, number: int, environments: int) -> list[float]:
    """The figures of one fleet."""
    client = meter.client
    steady = meter.measure(seats(client, number, environments, changing=False))
    changing = meter.measure(seats(client, number, environments, changing=True))
    workers = fleet(client, number, environments)
    overdue = meter.measure(each(workers, Claims.claim_overdue))
    due = meter.measure(each(workers, look_for_due))
    reaping = meter.measure(each(workers, look_for_the_dead))
    tasks = [meter.measure(work(workers, at_once)) for at_once in (1, 10)]
    for queue in {worker.queue for worker in workers}:
        client.lpush(queue, *[MESSAGE] * WAITING)
    full = meter.measure(each(workers, Claims.claim_overdue))
    share = (steady + overdue + due + reaping) * number / 1e6 * 100
    return [number, environments, steady, changing, overdue, full, due, reaping, share, *tasks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0, help="Of each measurement.")
    parser.add_argument("--fleets", nargs="+", default=FLEETS, metavar="WORKERSxENVIRONMENTS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            meter = Meter(redis.Redis.from_url(server.url()), options.seconds)
            print(*(f"{name:>12}" for name in COLUMNS))
            for text in options.fleets:
                number, _, environments = text.partition("x")
                print(*(f"{figure:>12.0f}" for figure in row(meter, int(number), int(environments))), flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
