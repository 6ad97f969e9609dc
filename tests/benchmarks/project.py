"""The app under measurement: the same functions as environment tasks and as plain Celery tasks."""

from __future__ import annotations

import asyncio
import os
import time

if os.environ.get("BENCH_HEAVY"):
    import numpy  # noqa: F401
    import pandas  # noqa: F401

from celery import Celery

import flyte_celery as flyte

app = Celery("bench", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BACKEND"])
app.conf.update(worker_prefetch_multiplier=4, broker_connection_retry_on_startup=False)
flyte.init(app=app)

fast = flyte.TaskEnvironment("bench", reusable=flyte.ReusePolicy(replicas=2, concurrency=100, idle_ttl=3600))
sync = flyte.TaskEnvironment("bench-sync", reusable=flyte.ReusePolicy(replicas=2, idle_ttl=3600))
zero = flyte.TaskEnvironment("bench-zero", reusable=flyte.ReusePolicy(replicas=(0, 2), idle_ttl=30))


@fast.task
async def noop(x: int) -> int:
    return x


@fast.task(cache="auto")
async def noop_cached(x: int) -> int:
    return x


@fast.task
async def nap(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


@sync.task
def noop_sync(x: int) -> int:
    return x


@zero.task
async def first(x: int) -> int:
    return x


@app.task(acks_late=True)
def stock_noop(x: int) -> int:
    return x


@app.task(acks_late=True)
def stock_nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()
