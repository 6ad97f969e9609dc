"""This project: two warm replicas, no-ops and sleeps in one environment."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery

import flyte_celery as flyte
from flyte_celery.client.batch import Batch
from flyte_celery.client.install import dispatcher_of
from tests.benchmarks.contenders.contender import PROCESSES, SLEEPS_PER_PROCESS, Contender, TaskName, Way, module

app = Celery("ours", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BROKER"])
app.conf.update(worker_prefetch_multiplier=4)
flyte.init(app=app)

env = flyte.TaskEnvironment(
    "bench", reusable=flyte.ReusePolicy(replicas=PROCESSES, concurrency=SLEEPS_PER_PROCESS, idle_ttl=3600)
)


@env.task
async def noop(x: int) -> int:
    return x


@env.task
async def nap(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return 0


@env.task
async def echo(text: str) -> str:
    return text


@env.task
async def parent(children: int) -> int:
    return sum(await asyncio.gather(*(noop(i) for i in range(children))))


TASKS: dict[TaskName, Any] = {"noop": noop, "nap": nap, "echo": echo}


class Ours(Contender):
    """Called by `flyte.map` and as Celery tasks are called."""

    distributions = ("flyte-celery",)

    def workers(self, sleepers: bool) -> list[list[str]]:
        """One worker for all rows."""
        return [module("celery", "-A", __name__, "worker", "-l", "WARNING", "-Q", "bench")]

    def ways(self) -> dict[str, Way]:
        """Batches by `flyte.map`, single calls by `delay`."""
        return {"map": _map, "delay+get": _delay_get}

    def publishers(self) -> dict[str, Callable[[int], object]]:
        """The part of `flyte.map` that publishes, which its public face does not have alone, and `delay`."""
        return {"map": _publish_map, "delay": lambda n: [noop.delay(i) for i in range(n)]}

    def family(self, children: int) -> None:
        """The parent's own call is part of the time."""
        parent.delay(children).get(timeout=120)


def _map(task: TaskName, arguments: Sequence[Any]) -> list[Any]:
    return list(flyte.map(TASKS[task], arguments, return_exceptions=False))


def _delay_get(task: TaskName, arguments: Sequence[Any]) -> list[Any]:
    return [result.get(timeout=120) for result in [TASKS[task].delay(argument) for argument in arguments]]


def _publish_map(n: int) -> None:
    dispatcher = dispatcher_of(app)
    batch = Batch(dispatcher.publisher)
    for value in range(n):
        dispatcher.add_to(batch, noop, (value,), {}, {"add_to_parent": False})
        if batch.full:
            batch.flush()
    batch.flush()


contender = Ours()
