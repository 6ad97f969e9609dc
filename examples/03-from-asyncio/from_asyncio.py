"""Await tasks from asyncio code, and child tasks from a task."""

from __future__ import annotations

import asyncio
import time

import flyte_celery as flyte

app = flyte.init()

env = flyte.TaskEnvironment(
    name="lookups",
    reusable=flyte.ReusePolicy(replicas=(1, 2), concurrency=50, idle_ttl=300),
)


@env.task
async def look_up(key: str) -> int:
    """Waits for something else, as most web code does; many of these fit into one replica."""
    await asyncio.sleep(0.2)
    return len(key)


@env.task
async def total(keys: list[str]) -> int:
    """A task that calls tasks: each call is a message to the child's queue."""
    return sum(await asyncio.gather(*(look_up(key) for key in keys)))


async def handler(keys: list[str]) -> list[int]:
    """What a web handler would do: all calls at once, none of them blocks the event loop."""
    return await asyncio.gather(*(look_up.delay(key) for key in keys))


async def main() -> None:
    """Call both."""
    await look_up.delay("warm")
    began = time.perf_counter()
    print(sum(await handler(["a", "bb", "ccc"] * 10)))
    print("together" if time.perf_counter() - began < 3 else "one after the other")
    print(await total.delay(["a", "bb", "ccc"]))


if __name__ == "__main__":
    asyncio.run(main())
