"""The project of these tests; each runs a copy of it, with Celery settings from the variable `SETTINGS`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import flyte_celery as flyte

app = flyte.init(**json.loads(os.environ.get("SETTINGS", "{}")))
here = Path(__file__).parent

#: Ten slots.
aio = flyte.TaskEnvironment("aio", reusable=flyte.ReusePolicy(replicas=2, concurrency=5, idle_ttl=3600))
#: Two slots.
snc = flyte.TaskEnvironment("snc", reusable=flyte.ReusePolicy(replicas=2, idle_ttl=3600))
#: One slot.
one = flyte.TaskEnvironment("one", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600))
#: Three slots, of which only the first becomes ready before `all-may-start` exists.
slow = flyte.TaskEnvironment("slow", reusable=flyte.ReusePolicy(replicas=(0, 3), idle_ttl=3600))
#: From none to three slots and back.
zero = flyte.TaskEnvironment("zero", reusable=flyte.ReusePolicy(replicas=(0, 3), idle_ttl=30))


def note(n: int) -> None:
    """Note that a task has begun, in which process."""
    with (here / "begun").open("a") as file:
        file.write(f"{n} {os.getpid()}\n")


async def hold(gate: str, n: int) -> int:
    """Run until a file exists."""
    note(n)
    while not (here / gate).exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return n


aio.task(hold)
slow.task(hold)
zero.task(hold)


@aio.task
async def nap(seconds: float, n: int) -> int:
    await asyncio.sleep(seconds)
    return n


@aio.task
async def fail(words: str) -> None:
    raise ValueError(words)


@aio.task(retries=2)
async def fail_once(mark: str) -> int:
    if not (here / mark).exists():
        (here / mark).touch()
        raise ValueError("the first time")
    return 7


def wait(gate: str, n: int) -> int:
    """Run until a file exists, on the replica's main thread."""
    note(n)
    while not (here / gate).exists():
        time.sleep(0.01)
    return n


snc.task(wait)
one.task(wait)


@snc.task
def crash_once(mark: str) -> int:
    if not (here / mark).exists():
        (here / mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@snc.task
def poison() -> None:
    note(0)
    os.kill(os.getpid(), signal.SIGSEGV)


@slow.on_startup
async def only_the_first_is_quick() -> None:
    may_start = here / "all-may-start"
    while os.environ["FLYTE_CELERY_REPLICA"] != "1" and not may_start.exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
