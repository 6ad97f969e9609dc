"""A model that is loaded once per replica, and the same task without reuse, which loads it for every call."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import flyte_celery as flyte

app = flyte.init()

warm = flyte.TaskEnvironment(
    name="prices",
    reusable=flyte.ReusePolicy(replicas=(1, 2), concurrency=4, idle_ttl=300),
)

#: The model, in each replica.
model: Any = None


@warm.on_startup(timeout=60)
def load() -> None:
    """Runs in every replica before its first task."""
    global model
    time.sleep(0.3)  # a real model takes longer
    rooms, prices = [1, 2, 3, 4, 5], [110, 190, 310, 390, 500]
    model = statistics.linear_regression(rooms, prices)


@warm.task
async def predict(rooms: int) -> tuple[float, int]:
    """The expected price, and the process that computed it."""
    return round(model.intercept + model.slope * rooms, 1), os.getpid()


# Without reuse every call has a process of its own, which runs the same start-up first.
cold = warm.clone_with("prices-cold", reusable=None)


@cold.task
async def predict_cold(rooms: int) -> tuple[float, int]:
    """The same in a process for this one call."""
    return round(model.intercept + model.slope * rooms, 1), os.getpid()


if __name__ == "__main__":
    for task in (predict, predict_cold):
        task.delay(1).get(timeout=30)  # the first call may wait for a replica
        began = time.perf_counter()
        answers = [task.delay(rooms).get(timeout=30) for rooms in (2, 4)]
        took = time.perf_counter() - began
        processes = len({pid for _, pid in answers})
        print(f"{task.name}: {[price for price, _ in answers]} from {processes} process(es)")
        print("slow" if took > 0.6 else "quick")
