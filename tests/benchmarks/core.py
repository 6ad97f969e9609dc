"""The figures of the core beside stock Celery: `python -m tests.benchmarks.core [rounds]`."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from tests.helpers.redis_server import RedisServer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@contextmanager
def worker(project: Any, *arguments: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """A celery worker for the time of a block; yields when it consumes."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tests.benchmarks.project", "worker", "-l", "WARNING", *arguments],
            cwd=ROOT,
            env={**os.environ, **environ},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + 60
            while not project.app.control.ping(timeout=0.5):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(Path(log.name).read_text())
            yield process
        finally:
            process.terminate()
            process.wait(60)


def throughput(task: Any, n: int) -> float:
    """Tasks per second of `n` no-ops, from the first publish to the last result."""
    start = time.perf_counter()
    results = [task.delay(i) for i in range(n)]
    for result in results:
        result.get(timeout=120)
    return n / (time.perf_counter() - start)


def round_trip(task: Any, n: int) -> tuple[float, float]:
    """Median and 99th percentile in ms of one call at a time."""
    times = []
    for i in range(n):
        start = time.perf_counter()
        task.delay(i).get(timeout=60)
        times.append((time.perf_counter() - start) * 1000)
    times.sort()
    return statistics.median(times), times[int(n * 0.99)]


def sleeps(task: Any, n: int) -> float:
    """Seconds for `n` tasks that sleep 50 ms."""
    start = time.perf_counter()
    results = [task.delay(0.05) for _ in range(n)]
    for result in results:
        result.get(timeout=300)
    return time.perf_counter() - start


def drained(app: Any, queue: str, task: Any, argument: Any, n: int) -> float:
    """Seconds in which a worker empties a queue of `n` tasks and has stored all results: its speed without a client's.

    Publishing costs about half a millisecond per call on either side, so a run from the first publish to the last
    result measures the one client more than the worker.
    """
    app.control.cancel_consumer(queue, reply=True, timeout=1.0)
    results = [task.delay(argument) for _ in range(n)]
    keys = [f"celery-task-meta-{result.id}" for result in results]
    client = redis.Redis.from_url(os.environ["BENCH_BROKER"])
    before = client.dbsize()
    app.control.add_consumer(queue)
    while client.llen(queue) == n:
        time.sleep(0.001)
    start = time.perf_counter()
    while client.dbsize() < before + n - 2:  # cheap to ask; the queue and the claims are keys, too
        time.sleep(0.005)
    while client.exists(*keys) < n:
        time.sleep(0.005)
    return time.perf_counter() - start


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [p for child in children for p in (int(child), *descendants(int(child)))]


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of processes."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def private_megabytes(pid: int) -> float:
    """Memory of a process that it shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def replicas_of(app: Any, environment: str) -> list[dict[str, Any]]:
    """What the environment's worker says of its replicas."""
    for reply in app.control.broadcast("env_status", reply=True, timeout=1.0) or []:
        for status in reply.values():
            if status.get("environment") == environment:
                return [status]
    return []


def main(rounds: int) -> None:
    """Measure everything and print one JSON document and a table."""
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            os.environ["BENCH_BROKER"] = os.environ["BENCH_BACKEND"] = server.url(1)
            from tests.benchmarks import project

            for _ in range(rounds):
                measure_ours(project, note)
                measure_stock(project, note)
                measure_zero(project, note)
            import_time("flyte_celery")  # writes the bytecode
            for _ in range(5):
                note("import flyte_celery, ms", import_time("flyte_celery"))
                note("import celery alone, ms", import_time("celery"))
        finally:
            server.stop()
    medians = {name: round(statistics.median(values), 3) for name, values in figures.items()}
    print(json.dumps({"rounds": rounds, "cores": os.cpu_count(), "medians": medians, "all": figures}, indent=1))
    for name, value in medians.items():
        print(f"{name:60} {value:12.2f}")


Note = Callable[[str, float], None]


def measure_ours(project: Any, note: Note) -> None:
    """Two warm replicas."""
    app = project.app
    with worker(project, "-Q", "bench") as process:
        throughput(project.noop, 200)
        note("ours: no-op tasks/s, 2 replicas, async", throughput(project.noop, 3000))
        p50, p99 = round_trip(project.noop, 500)
        note("ours: round trip p50, ms", p50)
        note("ours: round trip p99, ms", p99)
        note("ours: 2,000 sleeps of 50 ms, first publish to last result, s (ideal 0.5)", sleeps(project.nap, 2000))
        note(
            "ours: 2,000 sleeps of 50 ms, queue drained, s (ideal 0.5)", drained(app, "bench", project.nap, 0.05, 2000)
        )
        note("ours: no-op tasks/s, queue drained, async", 3000 / drained(app, "bench", project.noop, 1, 3000))
        pids = [process.pid, *descendants(process.pid)]
        before = cpu_seconds(pids)
        time.sleep(5)
        note("ours: idle CPU, % of a core", (cpu_seconds(pids) - before) / 5 * 100)
    with worker(project, "-Q", "bench-sync"):
        throughput(project.noop_sync, 200)
        note("ours: no-op tasks/s, 2 replicas, sync", throughput(project.noop_sync, 3000))
        rate = 3000 / drained(app, "bench-sync", project.noop_sync, 1, 3000)
        note("ours: no-op tasks/s, queue drained, sync", rate)


def measure_stock(project: Any, note: Note) -> None:
    """Celery prefork with two processes, and its threads pool for tasks that wait."""
    with worker(project, "-c", "2"):
        throughput(project.stock_noop, 200)
        note("stock: no-op tasks/s, prefork 2", throughput(project.stock_noop, 3000))
        rate = 3000 / drained(project.app, "celery", project.stock_noop, 1, 3000)
        note("stock: no-op tasks/s, queue drained, prefork 2", rate)
        p50, p99 = round_trip(project.stock_noop, 500)
        note("stock: round trip p50, ms", p50)
        note("stock: round trip p99, ms", p99)
    with worker(project, "-c", "200", "-P", "threads"):
        note("stock: 2,000 sleeps of 50 ms, s, threads 200", sleeps(project.stock_nap, 2000))


def measure_zero(project: Any, note: Note) -> None:
    """From zero replicas of a running worker to the first result, of a bare app and of one with heavy imports."""
    for app, heavy in (("bare app", ""), ("with numpy and pandas", "1")):
        with worker(project, "-Q", "bench-zero", "--idle-ttl", "0.3", "--scaledown-ttl", "0.1", BENCH_HEAVY=heavy):
            project.first.delay(1).get(timeout=60)  # the launcher has imported the application
            for _ in range(5):
                wait_for_zero(project)
                start = time.perf_counter()
                project.first.delay(1).get(timeout=30)
                note(f"ours: zero to first result, {app}, ms", (time.perf_counter() - start) * 1000)
            status = replicas_of(project.app, "bench-zero")[0]
            for seconds in status["start_seconds"][1:]:
                note(f"ours: replica start, request to ready, {app}, ms", seconds * 1000)
        with worker(project, "-Q", "bench", BENCH_HEAVY=heavy):
            for _ in range(20):  # fixed replicas: they serve until the worker ends
                project.noop.delay(1).get(timeout=60)
            for replica in replicas_of(project.app, "bench")[0]["replicas"]:
                note(f"ours: private memory of a replica after 20 tasks, {app}, MB", private_megabytes(replica["pid"]))


def wait_for_zero(project: Any) -> None:
    """Wait until the environment has let its replicas go."""
    deadline = time.monotonic() + 20
    while replicas_of(project.app, "bench-zero")[0]["replicas"] and time.monotonic() < deadline:
        time.sleep(0.1)


def import_time(module: str) -> float:
    """Milliseconds to import a module in a fresh interpreter, above the interpreter's own start."""
    script = f"import time; t=time.perf_counter(); import {module}; print((time.perf_counter()-t)*1000)"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environ)
    return float(done.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
