"""The app under test: sync and async, kept and resting environments, and two that want the same devices."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import flyte_celery as flyte
from tests.chaos.recorder import record
from tests.chaos.walk import replicas

app = flyte.init()

#: Least and most replicas, and tasks that each runs at once, by environment; None for one task at a time.
POLICIES: dict[str, tuple[int, int, int | None]] = {
    "snc": (2, 5, None),
    "aio": (1, 3, 5),
    "zero": (0, 2, 10),
    "vision": (1, 3, None),
    "speech": (0, 3, 2),
}

#: Environments whose replicas all go when nothing has been to do for a while.
RESTING = ("zero", "speech")

#: What a replica of these needs.
GPU = {"vision": "L4:1", "speech": "L4:1"}


def work(task: str, seconds: float) -> str:
    record(task, "start")
    time.sleep(seconds)
    record(task, "finish")
    return task


async def work_async(task: str, seconds: float) -> str:
    record(task, "start")
    await asyncio.sleep(seconds)
    record(task, "finish")
    return task


def define(name: str, least: int, most: int, concurrency: int | None) -> None:
    environment = flyte.TaskEnvironment(
        name,
        reusable=flyte.ReusePolicy(replicas=(least, most), concurrency=concurrency or 1, idle_ttl=3600),
        resources=flyte.Resources(gpu=GPU.get(name)),
        max_attempts=1000,  # workers die more often here than anywhere
    )
    function = work if concurrency is None else work_async
    function.__name__ = "work"
    environment.task(function)
    environment.on_startup(partial(replicas.begin, name))


for each, values in POLICIES.items():
    define(each, *values)
