"""What a hit of the cache costs beside a warm call of the same no-op: `python -m tests.benchmarks.cache [rounds]`.

A round has each kind of call in turns, one of each after the other, so that what else the machine does meets all alike.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis

import flyte_celery as flyte
from tests.benchmarks.core import round_trip, worker
from tests.helpers.redis_server import RedisServer

#: Turns of a round.
CALLS = 300

#: Calls of one map, and awaited calls at once.
MANY = 1000

Figures = dict[str, list[float]]


def timed(figures: Figures, name: str, call: Callable[[], Any], per: int = 1) -> None:
    """Note the microseconds of a call."""
    start = time.perf_counter()
    call()
    figures.setdefault(name, []).append((time.perf_counter() - start) / per * 1e6)


async def timed_async(figures: Figures, name: str, call: Callable[[], Awaitable[Any]], per: int = 1) -> None:
    """The same, awaited."""
    start = time.perf_counter()
    await call()
    figures.setdefault(name, []).append((time.perf_counter() - start) / per * 1e6)


def one_by_one(project: Any, client: redis.Redis, fresh: itertools.count[int]) -> Figures:
    """`delay` and `get`, each call alone."""
    figures: Figures = {}
    for _ in range(CALLS):
        timed(figures, "redis GET", lambda: client.get("nothing"))
        timed(figures, "warm call", lambda: project.noop.delay(1).get(timeout=60))
        timed(figures, "hit", lambda: project.noop_cached.delay(1).get(timeout=60))
        timed(figures, "miss", lambda: project.noop_cached.delay(next(fresh)).get(timeout=60))
    return figures


async def awaited(project: Any) -> Figures:
    """The same from a coroutine, alone and many at once."""
    figures: Figures = {}

    async def run(task: Any) -> None:
        await (await flyte.run.aio(task, 1))

    async def at_once(task: Any) -> None:
        await asyncio.gather(*(run(task) for _ in range(MANY)))

    for _ in range(CALLS):
        await timed_async(figures, "warm call, awaited", lambda: run(project.noop))
        await timed_async(figures, "hit, awaited", lambda: run(project.noop_cached))
    for _ in range(3):
        await timed_async(figures, f"warm call, {MANY} awaited at once", lambda: at_once(project.noop), MANY)
        await timed_async(figures, f"hit, {MANY} awaited at once", lambda: at_once(project.noop_cached), MANY)
    return figures


def mapped(project: Any) -> Figures:
    """`flyte.map`."""
    figures: Figures = {}
    for _ in range(3):
        timed(figures, f"warm call, map of {MANY}", lambda: list(flyte.map(project.noop, range(MANY))), MANY)
        timed(figures, f"hit, map of {MANY}", lambda: list(flyte.map(project.noop_cached, range(MANY))), MANY)
    return figures


def measure(project: Any, client: redis.Redis, rounds: int) -> Figures:
    """Medians of each round."""
    fresh = itertools.count(10 * MANY)
    medians: Figures = {}
    with worker(project, "-Q", "bench", "-n", "ours@%h"):
        round_trip(project.noop, 100)
        round_trip(project.noop_cached, MANY)
        for _ in range(rounds):
            for figures in (one_by_one(project, client, fresh), asyncio.run(awaited(project)), mapped(project)):
                for name, values in figures.items():
                    medians.setdefault(name, []).append(statistics.median(values))
    return medians


def main(rounds: int) -> None:
    """Measure and print medians of the rounds, and how many hits fit into a warm call."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        os.environ["BENCH_BROKER"] = os.environ["BENCH_BACKEND"] = server.url()
        try:
            from tests.benchmarks import project  # it reads the address of the server

            with redis.Redis.from_url(server.url()) as client:
                medians = measure(project, client, rounds)
        finally:
            server.stop()
    for name, values in medians.items():
        warm = statistics.median(medians[name.replace("hit", "warm call")]) if name.startswith("hit") else None
        median = statistics.median(values)
        ratio = f"  {warm / median:5.1f} times faster" if warm else ""
        print(f"{name:36} {median:8.1f} us  ({min(values):.0f} to {max(values):.0f}){ratio}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
