"""taskiq with taskiq-redis: the list broker, which acknowledges nothing, and its result backend."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from tests.benchmarks.contenders.contender import (
    PROCESSES,
    SLEEPS_PER_PROCESS,
    Contender,
    TaskName,
    Way,
    module,
)

#: Seconds between two looks at a result, since the client has no notification; 0.2 is its default.
POLL = 0.0005

backend: RedisAsyncResultBackend[Any] = RedisAsyncResultBackend(os.environ["BENCH_BROKER"])
# Its worker waits without end for a task; with the 5 s of redis-py 8 per read, an idle one dies of a time-out.
broker = ListQueueBroker(os.environ["BENCH_BROKER"], socket_timeout=None).with_result_backend(backend)


@broker.task
async def noop(x: int) -> int:
    return x


@broker.task
async def nap(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return 0


@broker.task
async def echo(text: str) -> str:
    return text


TASKS: dict[TaskName, Any] = {"noop": noop, "nap": nap, "echo": echo}


class Taskiq(Contender):
    """Two processes with as many coroutines as our replicas."""

    distributions = ("taskiq", "taskiq-redis")

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._started = False

    def workers(self, sleepers: bool) -> list[list[str]]:
        """Its command line starts the processes."""
        target = f"{__name__}:broker"
        return [
            module(
                "taskiq", "worker", target, "--workers", PROCESSES, "--max-async-tasks", SLEEPS_PER_PROCESS,
                "--log-level", "WARNING",
            )
        ]  # fmt: skip

    def ways(self) -> dict[str, Way]:
        """Single calls from one event loop."""
        return {"kiq+wait_result": lambda task, arguments: self._run(_kiq_wait(task, arguments))}

    def publishers(self) -> dict[str, Callable[[int], object]]:
        """Single calls."""
        return {"kiq": lambda n: self._run(_kiq("noop", range(n)))}

    def _run(self, work: Any) -> Any:
        if not self._started:
            self._started = True
            self._runner.run(broker.startup())
        return self._runner.run(work)


async def _kiq(task: TaskName, arguments: Sequence[Any]) -> list[Any]:
    return [await TASKS[task].kiq(argument) for argument in arguments]


async def _kiq_wait(task: TaskName, arguments: Sequence[Any]) -> list[Any]:
    results = [
        await sent.wait_result(check_interval=POLL, timeout=300)
        for sent in await _kiq(task, arguments)
    ]  # fmt: skip
    return [result.return_value for result in results]


contender = Taskiq()
