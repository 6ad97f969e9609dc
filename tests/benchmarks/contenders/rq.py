"""RQ with a pool of simple workers, which run the jobs themselves where the default forks for each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from rq import Queue

from tests.benchmarks.contenders.contender import PROCESSES, Contender, TaskName, Way, module


def noop(x: int) -> int:
    return x


def nap(seconds: float) -> int:
    time.sleep(seconds)
    return 0


def echo(text: str) -> str:
    return text


TASKS: dict[TaskName, Callable[[Any], Any]] = {"noop": noop, "nap": nap, "echo": echo}


class RQ(Contender):
    """One job at a time in each process, also in the sleep rows: it has nothing else."""

    distributions = ("rq",)
    sleep_slots = PROCESSES

    def __init__(self) -> None:
        self._queue = Queue(connection=redis.Redis.from_url(os.environ["BENCH_BROKER"]))

    def workers(self, sleepers: bool) -> list[list[str]]:
        """Its command line starts the processes."""
        url = os.environ["BENCH_BROKER"]
        pool = ("worker-pool", "default", "-n", PROCESSES, "-w", "rq.worker.SimpleWorker", "-u", url)
        return [module("rq.cli", *pool, "--logging-level", "WARNING")]

    def ways(self) -> dict[str, Way]:
        """Its batch in one pipeline, and single calls; the results are read from their streams."""
        return {"enqueue_many+result": self._many, "enqueue+result": self._single}

    def publishers(self) -> dict[str, Callable[[int], object]]:
        """The same without results."""
        return {
            "enqueue_many": lambda n: self._enqueue_many("noop", range(n)),
            "enqueue": lambda n: self._enqueue("noop", range(n)),
        }

    def _enqueue_many(self, task: TaskName, arguments: Sequence[Any]) -> list[Any]:
        return self._queue.enqueue_many([Queue.prepare_data(TASKS[task], args=(argument,)) for argument in arguments])

    def _enqueue(self, task: TaskName, arguments: Sequence[Any]) -> list[Any]:
        return [self._queue.enqueue(TASKS[task], argument) for argument in arguments]

    def _many(self, task: TaskName, arguments: Sequence[Any]) -> list[Any]:
        return _values(self._enqueue_many(task, arguments))

    def _single(self, task: TaskName, arguments: Sequence[Any]) -> list[Any]:
        return _values(self._enqueue(task, arguments))


def _values(jobs: list[Any]) -> list[Any]:
    return [job.latest_result(timeout=300).return_value for job in jobs]


contender = RQ()
