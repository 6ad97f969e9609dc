"""What limits cost, how fast they act, and what an ephemeral replica costs: `python -m tests.benchmarks.limits [n]`.

Prints medians of `n` rounds (5): the time from a task's first byte over its limit to its caller's `OOMError`, and by
how much it got over it, at 1 GiB/s and as fast as it can; processor time of a no-op task with and without limits, in
turns; the round trip of a call in a process of its own, beside stock Celery with `--max-tasks-per-child=1`, with a
module that imports numpy and pandas.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery

from flyte_celery.names import OVERRIDES_HEADER
from tests.helpers.projects import Project
from tests.helpers.redis_server import RedisServer
from tests.helpers.workers import Worker

SOURCE = """
    import mmap
    import os
    import time

    import numpy
    import pandas

    import flyte_celery as flyte
    from flyte_celery.supervisor import usage

    app = flyte.init()
    MIB = 2**20

    small = flyte.TaskEnvironment(
        "small", resources=flyte.Resources(memory="256Mi"), reusable=flyte.ReusePolicy(1, idle_ttl=3600)
    )
    free = flyte.TaskEnvironment("free", reusable=flyte.ReusePolicy(1, concurrency=50, idle_ttl=3600))
    bound = flyte.TaskEnvironment(
        "bound", resources=flyte.Resources(memory="1Gi"), reusable=flyte.ReusePolicy(1, concurrency=50, idle_ttl=3600)
    )
    once = flyte.TaskEnvironment("once")


    @small.task
    def grow(path: str, mib: int, seconds_per_gib: float) -> None:
        "Notes in a file when each MiB was there."
        times = numpy.memmap(path, "float64", "w+", shape=mib + 1)
        times[mib] = usage.own(os.getpid()) / MIB
        block = mmap.mmap(-1, mib * MIB)
        block.madvise(mmap.MADV_HUGEPAGE)
        begun = time.monotonic()
        for each in range(mib):
            block[each * MIB : (each + 1) * MIB] = b"x" * MIB
            times[each] = time.monotonic()
            while time.monotonic() - begun < (each + 1) / 1024 * seconds_per_gib:
                pass


    @free.task
    async def nothing() -> None: ...


    @bound.task
    async def nothing_bound() -> None: ...


    @once.task
    def alone() -> int:
        return os.getpid()
"""

STOCK = """
    import os

    import numpy
    import pandas
    from celery import Celery

    app = Celery("stock", broker=os.environ["FLYTE_CELERY_BROKER_URL"], backend=os.environ["FLYTE_CELERY_BROKER_URL"])


    @app.task
    def alone():
        return os.getpid()
"""

LIMIT = 256
CALLS = 500


def main(rounds: int) -> None:
    """Start everything, measure, print."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        project = Project(Path(folder), server.url(1))
        project.write(SOURCE)
        project.write(STOCK, "stock")
        try:
            for name in ("small", "free", "bound"):
                project.start(name)
            project.start("once", "-c", "2")
            project.start("-c", "1", "--max-tasks-per-child", "1", app="stock", command="worker")
            for name in ("small", "free", "bound"):
                project.wait_for_replicas(name, 1)
            project.send("once.alone").get(timeout=60)
            over_the_limit(project, rounds)
            no_ops(project, rounds)
            round_trips(project, rounds)
        finally:
            project.close()
            server.stop()


def over_the_limit(project: Project, rounds: int) -> None:
    """From the first byte over the limit to the caller's error."""
    for title, pace in (("1 GiB/s", 1.0), ("as fast as it can", 0.0)):
        late, most, speed = [], [], []
        for _ in range(rounds):
            path = project.folder / "times"
            path.unlink(missing_ok=True)
            try:
                project.send("small.grow", str(path), 1000, pace).get(timeout=30)
                print("not stopped")
            except Exception as exc:
                told, text = time.monotonic(), str(exc)
            *noted, before = memoryview(path.read_bytes()).cast("d")
            times = [each for each in noted if each]
            room = int(LIMIT - before)
            late.append((told - times[min(room, len(times)) - 1]) * 1000)
            most.append(len(times) - room)
            speed.append(len(times) / 1024 / (times[-1] - times[0]))
        print(
            f"over {LIMIT} MiB, {title} ({_median(speed):.1f} GiB/s had): error at the caller after "
            f"{_median(late):.1f} ms ({min(late):.1f} to {max(late):.1f}); at most {max(most)} MiB over"
        )
        print(f"    last told: {text[:160]}")


def no_ops(project: Project, rounds: int) -> None:
    """Processor time of all of a worker's processes per task, in turns."""
    costs: dict[str, list[float]] = {"free": [], "bound": []}
    names = {"free": "free.nothing", "bound": "bound.nothing_bound"}
    for turn in range(rounds + 1):
        for index, environment in enumerate(("free", "bound")):
            worker = project.workers[index + 1]
            before = _processor_time(worker)
            results = [project.send(names[environment]) for _ in range(CALLS)]
            for result in results:
                result.get(timeout=60)
            if turn:
                costs[environment].append((_processor_time(worker) - before) / CALLS * 1e6)
    print(f"no-op: {_median(costs['free']):.0f} us of the worker's processes without a limit, "
          f"{_median(costs['bound']):.0f} with one")  # fmt: skip
    before, begun = _processor_time(project.workers[2]), time.monotonic()
    time.sleep(10)
    share = (_processor_time(project.workers[2]) - before) / (time.monotonic() - begun)
    before, begun = _processor_time(project.workers[1]), time.monotonic()
    time.sleep(10)
    other = (_processor_time(project.workers[1]) - before) / (time.monotonic() - begun)
    print(f"idle: {other * 100:.2f} % of a core without a limit, {share * 100:.2f} % with one")


def round_trips(project: Project, rounds: int) -> None:
    """One call at a time, each in a process of its own."""
    stock = Celery("client", broker=project.url, backend=project.url)
    fresh = {OVERRIDES_HEADER: {"env_vars": {"FRESH": "1"}}}
    ways: dict[str, Callable[[], Any]] = {
        "ephemeral, forked": lambda: project.send("once.alone").get(timeout=60),
        "ephemeral, fresh interpreter": lambda: project.send("once.alone", headers=fresh).get(timeout=60),
        "stock, --max-tasks-per-child=1": lambda: stock.send_task("stock.alone").get(timeout=60),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(2 * rounds + 1):
        for name, call in ways.items():
            for _ in range(1 if "fresh" in name else 5):
                begun = time.perf_counter()
                call()
                if turn:
                    took[name].append((time.perf_counter() - begun) * 1000)
    for name, values in took.items():
        print(f"{name:32} {_median(values):8.1f} ms (fastest {min(values):.1f}, slowest {max(values):.1f})")
    stock.close()


def _processor_time(worker: Worker) -> float:
    """Of all its processes: to the microsecond, where the kernel's own accounting is to a hundredth of a second."""
    return sum(_run_time(task) for pid in worker.processes() for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def _run_time(task: Path) -> int:
    return int((task / "schedstat").read_text().split()[0])


def _median(values: list[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    os._exit(0)
