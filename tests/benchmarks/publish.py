"""What publishing costs the client, beside stock Celery: `python -m tests.benchmarks.publish [rounds]`.

Nobody consumes. Time is the process's own processor time per call, because a round trip's waiting is not the client's
cost and other processes may share the machine; rates are calls per second of that time. Each round measures every way
once, one after the other.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import redis

from tests.helpers.redis_server import RedisServer

#: Calls of each way per round.
SINGLE = 1000
MANY = 10_000


def main(rounds: int) -> None:
    """Measure and print medians."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            os.environ["BENCH_BROKER"] = os.environ["BENCH_BACKEND"] = server.url(1)
            measure(server.url(1), rounds)
        finally:
            server.stop()


def measure(url: str, rounds: int) -> None:
    """Run the ways in turns."""
    ways = {
        "stock .delay": (stock_delay, SINGLE),
        "ours .delay": (our_delay, SINGLE),
        "ours, calls of one event-loop turn": (our_turn, MANY),
        "ours, map": (our_map, MANY),
        "  of which: checks and JSON of the arguments": (our_arguments, MANY),
        "  of which: messages": (our_messages, MANY),
    }
    client = redis.Redis.from_url(url)
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # the first one warms up
        for name, (way, calls) in ways.items():
            costs[name].append(cost(way, calls))
            client.flushdb()
    stock = statistics.median(costs["stock .delay"][1:])
    print(f"{'':46} {'CPU us/call':>12} {'calls/CPU s':>12} {'x stock':>8}")
    for name, values in costs.items():
        median = statistics.median(values[1:])
        print(f"{name:46} {median:12.1f} {1e6 / median:12,.0f} {stock / median:8.1f}")


def cost(way: Callable[[int], None], calls: int) -> float:
    """Microseconds of processor time per call."""
    start = time.process_time()
    way(calls)
    return (time.process_time() - start) / calls * 1e6


def stock_delay(calls: int) -> None:
    """Celery's own task, one call after the other."""
    from tests.benchmarks.project import stock_noop

    for value in range(calls):
        stock_noop.delay(value)


def our_delay(calls: int) -> None:
    """An environment's task, one call after the other."""
    from tests.benchmarks.project import noop

    for value in range(calls):
        noop.delay(value)


def our_map(calls: int) -> None:
    """What `flyte.map` does for each call, but for waiting for its result."""
    from flyte_celery.client.batch import Batch
    from flyte_celery.client.install import dispatcher_of
    from tests.benchmarks.project import app, noop

    dispatcher = dispatcher_of(app)
    batch = Batch(dispatcher.publisher)
    for value in range(calls):
        dispatcher.add_to(batch, noop, (value,), {}, {"add_to_parent": False})
        if batch.full:
            batch.flush()
    batch.flush()


def our_turn(calls: int) -> None:
    """What `asyncio.gather` over children does, but for waiting for their results."""
    from flyte_celery.client.batch import Turn
    from flyte_celery.client.install import dispatcher_of
    from tests.benchmarks.project import app, noop

    dispatcher = dispatcher_of(app)

    async def parent() -> None:
        turn = Turn.current(dispatcher.publisher)
        for _ in range(0, calls, 200):
            published = [dispatcher.add_to(turn, noop, (value,), {}, {})[1] for value in range(200)]
            await asyncio.gather(*set(published))

    asyncio.run(parent())


def our_arguments(calls: int) -> None:
    """The typed signature's part."""
    from tests.benchmarks.project import noop

    for value in range(calls):
        noop.dump_call((value,), {})


def our_messages(calls: int) -> None:
    """The template's part."""
    from flyte_celery.client.message import Caller
    from tests.benchmarks.project import noop

    task = noop._celery_task()
    caller = Caller.here(task.app)
    for value in range(calls):
        task.publisher.prepare(task, (value,), {}, {}, caller)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
