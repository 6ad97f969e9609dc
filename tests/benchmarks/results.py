"""What waiting for results costs, beside stock Celery: `python -m tests.benchmarks.results [rounds]`."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.core import round_trip, worker
from tests.helpers.redis_server import RedisServer

#: Calls per figure and round.
CALLS = 300

#: Awaited calls at once.
AT_ONCE = 1000


async def awaited_round_trip(task: Any, n: int) -> tuple[float, float]:
    """Median and 99th percentile in ms of one awaited call at a time."""
    times = []
    for i in range(n):
        start = time.perf_counter()
        await task.delay(i)
        times.append((time.perf_counter() - start) * 1000)
    times.sort()
    return statistics.median(times), times[int(n * 0.99)]


async def awaiting(task: Any, n: int) -> float:
    """This process's CPU time in µs per call, from publishing it to its value, of `n` that are awaited at once."""
    start = time.process_time()
    await asyncio.gather(*(_value(result) for result in [task.delay(i) for i in range(n)]))
    return (time.process_time() - start) / n * 1e6


async def _value(result: Any) -> Any:
    return await result


def getting(task: Any, n: int) -> float:
    """The same for `get`, one after the other, of `n` calls that are published at once."""
    start = time.process_time()
    for result in [task.delay(i) for i in range(n)]:
        result.get(timeout=60)
    return (time.process_time() - start) / n * 1e6


def measure(project: Any, rounds: int) -> dict[str, list[float]]:
    """Rounds of all figures, one after the other."""
    figures: dict[str, list[float]] = {}

    def note(name: str, *values: float) -> None:
        for suffix, value in zip(("p50", "p99") if len(values) == 2 else ("",), values, strict=True):
            figures.setdefault(f"{name} {suffix}".strip(), []).append(value)

    with worker(project, "-Q", "bench", "-n", "ours@%h"), worker(project, "-Q", "celery", "-c", "2", "-n", "stock@%h"):
        for task in (project.noop, project.stock_noop):
            round_trip(task, 100)
        for _ in range(rounds):
            note("stock get, ms", *round_trip(project.stock_noop, CALLS))
            note("ours get, ms", *round_trip(project.noop, CALLS))
            note("ours await, ms", *asyncio.run(awaited_round_trip(project.noop, CALLS)))
            note("stock get, client's CPU per call, µs", getting(project.stock_noop, AT_ONCE))
            note("ours get, client's CPU per call, µs", getting(project.noop, AT_ONCE))
            note("ours await at once, client's CPU per call, µs", asyncio.run(awaiting(project.noop, AT_ONCE)))
    return figures


def main(rounds: int) -> None:
    """Measure and print medians, and their ratios to stock Celery's `get`."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        os.environ["BENCH_BROKER"] = os.environ["BENCH_BACKEND"] = server.url()
        try:
            from tests.benchmarks import project  # it reads the address of the server

            figures = {name: statistics.median(values) for name, values in measure(project, rounds).items()}
        finally:
            server.stop()
    for name, value in figures.items():
        kind = name.partition(",")[2].removesuffix(" p50").removesuffix(" p99")
        suffix = name[-4:] if name.endswith(("p50", "p99")) else ""
        base = figures[f"stock get,{kind}{suffix}"]
        print(f"{name:50} {value:9.2f} {value / base:6.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
