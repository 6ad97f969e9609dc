"""Celery as it comes, which never imports this project: prefork, and its threads pool where tasks sleep."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery, group

from tests.benchmarks.contenders.contender import PROCESSES, Contender, TaskName, Way, module

app = Celery("stock", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BROKER"])
app.conf.update(worker_prefetch_multiplier=4, broker_connection_retry_on_startup=False)


@app.task(acks_late=True)
def noop(x: int) -> int:
    return x


@app.task(acks_late=True)
def nap(seconds: float) -> int:
    time.sleep(seconds)
    return 0


@app.task(acks_late=True)
def echo(text: str) -> str:
    return text


TASKS: dict[TaskName, Any] = {"noop": noop, "nap": nap, "echo": echo}


class Stock(Contender):
    """The yardstick of all ratios."""

    distributions = ("celery", "kombu", "redis")

    def workers(self, sleepers: bool) -> list[list[str]]:
        """Prefork, or a thread for every sleeping task."""
        pool = ("-P", "threads", "-c", self.sleep_slots) if sleepers else ("-c", PROCESSES)
        return [module("celery", "-A", __name__, "worker", "-l", "WARNING", *pool)]

    def ways(self) -> dict[str, Way]:
        """Single calls, and Celery's own batch."""
        return {"group": _group, "delay+get": _delay_get}

    def publishers(self) -> dict[str, Callable[[int], object]]:
        """Single calls; a group publishes in the same way."""
        return {"delay": lambda n: [noop.delay(i) for i in range(n)]}

    def family(self, children: int) -> None:
        """A group from the client: a task of stock Celery must not wait for others."""
        _group("noop", range(children))


def _group(task: TaskName, arguments: Sequence[Any]) -> list[Any]:
    values: list[Any] = group(TASKS[task].s(argument) for argument in arguments).delay().get(timeout=300)
    return values


def _delay_get(task: TaskName, arguments: Sequence[Any]) -> list[Any]:
    return [result.get(timeout=300) for result in [TASKS[task].delay(argument) for argument in arguments]]


contender = Stock()
