"""The app under test: a sync, an async, and a sleeping environment, and one that has nothing to do with the others."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import flyte_celery as flyte
from tests.chaos import steps
from tests.chaos.recorder import record

app = flyte.init()

# One task may be hit by fault after fault: only those that kill their own process are to be given up.
UNLUCKY = 1000

# The bounds are those of all workers together: enough for each of them to have some under load.
snc = flyte.TaskEnvironment("snc", reusable=flyte.ReusePolicy(replicas=(4, 24), idle_ttl=3600))
aio = flyte.TaskEnvironment("aio", reusable=flyte.ReusePolicy(replicas=(2, 16), concurrency=10, idle_ttl=3600))
zero = flyte.TaskEnvironment("zero", reusable=flyte.ReusePolicy(replicas=(0, 2), concurrency=100, idle_ttl=3600))
spare = flyte.TaskEnvironment("spare", reusable=flyte.ReusePolicy(replicas=(0, 1), idle_ttl=3600))


@snc.task(max_attempts=UNLUCKY)
def sleep(task: str, seconds: float) -> str:
    record(task, "start")
    time.sleep(seconds)
    record(task, "finish")
    return task


@snc.task
def crash(task: str) -> None:
    record(task, "start")
    os.kill(os.getpid(), signal.SIGSEGV)


@aio.task(max_attempts=UNLUCKY)
async def nap(task: str, seconds: float) -> str:
    record(task, "start")
    await asyncio.sleep(seconds)
    record(task, "finish")
    return task


@aio.task
async def crash_at_once(task: str) -> None:
    record(task, "start")
    os.kill(os.getpid(), signal.SIGSEGV)


@aio.task
async def crash_later(task: str, seconds: float) -> None:
    record(task, "start")
    await asyncio.sleep(seconds)
    os.kill(os.getpid(), signal.SIGSEGV)


@aio.task(max_attempts=UNLUCKY)
async def block(task: str, seconds: float) -> str:
    record(task, "start")
    time.sleep(seconds)  # noqa: ASYNC251  this is the fault
    record(task, "finish")
    return task


@zero.task(max_attempts=UNLUCKY)
async def wake(task: str, seconds: float) -> str:
    record(task, "start")
    await asyncio.sleep(seconds)
    record(task, "finish")
    return task


@spare.task
def nothing() -> None:
    """So that the environment has a task."""


steps.prepare_to_die()
