"""The smallest environment: one task, called in four ways."""

from __future__ import annotations

import asyncio

import flyte_celery as flyte

app = flyte.init()

env = flyte.TaskEnvironment(
    name="hello",
    reusable=flyte.ReusePolicy(replicas=(0, 2), concurrency=10, idle_ttl=60),
)


@env.task
async def greet(name: str) -> str:
    """Return a greeting."""
    return f"Hello, {name}!"


async def from_asyncio() -> str:
    """Wait for a result without blocking the event loop."""
    return await greet.delay("asyncio")


if __name__ == "__main__":
    print(greet.delay("Celery").get(timeout=30))
    print(asyncio.run(from_asyncio()))
    print(flyte.run(greet, "Flyte").outputs()[0])
    print(list(flyte.map(greet, ["Ada", "Grace"])))
