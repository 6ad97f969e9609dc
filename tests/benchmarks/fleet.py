"""What a look at the fleet costs Redis, as the fleet grows: simulated workers, without processes.

    python -m tests.benchmarks.fleet [--seconds 5]

A worker looks once per second. Each row is a fleet of so many workers and environments at steady work, then with its
demand changing all the time; the figure is the CPU time of the Redis server per look, and what all of them cost.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import redis

from flyte_celery.fleet.seats import Place
from tests.helpers.fleets import SimulatedWorker
from tests.helpers.redis_server import RedisServer

#: Workers and environments of each row.
FLEETS = ((1, 1), (10, 2), (100, 20), (1000, 200), (5, 1), (50, 1), (200, 1), (1000, 1))


def _workers(client: redis.Redis, number: int, environments: int, now: float) -> list[SimulatedWorker]:
    workers = []
    for index in range(number):
        place = Place("v1", f"host{index // environments}", 100, 100, 64_000, 64_000)
        name = f"env{index % environments}"
        workers.append(SimulatedWorker(client, name, f"{name}@h{index}", place, 20, 3 * number // environments))
        workers[-1].join(now)
    return workers


def measure(client: redis.Redis, number: int, environments: int, seconds: float, changing: bool) -> float:
    """Microseconds of the server's CPU time per look."""
    client.flushall()
    chance, now = random.Random(1), 1_000_000.0
    workers = _workers(client, number, environments, now)
    for _ in range(4):
        now += 1
        for worker in workers:
            worker.target = 2 * number // environments
            worker.look(now)
    looks, until = 0, time.monotonic() + seconds
    before = _cpu(client)
    while time.monotonic() < until:
        now += 1
        for worker in workers:
            if changing:
                worker.target = chance.randint(0, worker.highest)
                worker.finish(worker.draining)
            worker.look(now)
        looks += len(workers)
    return (_cpu(client) - before) / looks * 1e6


def _cpu(client: redis.Redis) -> float:
    found = client.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="Of each measurement.")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            client = redis.Redis.from_url(server.url())
            print(f"{'workers':>8} {'environments':>13} {'steady µs':>10} {'changing µs':>12} {'% of a core':>12}")
            for number, environments in FLEETS:
                steady = measure(client, number, environments, seconds, changing=False)
                changing = measure(client, number, environments, seconds, changing=True)
                share = steady * number / 1e6 * 100
                print(f"{number:>8} {environments:>13} {steady:>10.0f} {changing:>12.0f} {share:>12.2f}", flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
