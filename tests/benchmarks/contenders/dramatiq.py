"""dramatiq with its Redis broker and result backend."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from tests.benchmarks.contenders.contender import (
    PROCESSES,
    SLEEPS_PER_PROCESS,
    Contender,
    TaskName,
    Way,
    module,
)

broker = RedisBroker(url=os.environ["BENCH_BROKER"])
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["BENCH_BROKER"])))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def noop(x: int) -> int:
    return x


@dramatiq.actor(store_results=True)
def nap(seconds: float) -> int:
    time.sleep(seconds)
    return 0


@dramatiq.actor(store_results=True)
def echo(text: str) -> str:
    return text


TASKS: dict[TaskName, Any] = {"noop": noop, "nap": nap, "echo": echo}


class Dramatiq(Contender):
    """Two processes of 8 threads, its default; a thread per sleeping task in the sleep rows."""

    distributions = ("dramatiq",)

    def workers(self, sleepers: bool) -> list[list[str]]:
        """Its command line starts the processes."""
        threads = SLEEPS_PER_PROCESS if sleepers else 8
        return [module("dramatiq", __name__, "-p", PROCESSES, "-t", threads)]

    def ways(self) -> dict[str, Way]:
        """A blocking read of each result."""
        return {"send+get_result": _send_get}

    def publishers(self) -> dict[str, Callable[[int], object]]:
        """Single calls."""
        return {"send": lambda n: [noop.send(i) for i in range(n)]}


def _send_get(task: TaskName, arguments: Sequence[Any]) -> list[Any]:
    sent = [TASKS[task].send(argument) for argument in arguments]
    return [message.get_result(block=True, timeout=300_000) for message in sent]


contender = Dramatiq()
