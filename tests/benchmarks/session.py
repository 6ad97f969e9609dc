"""One contender measured once: `python -m tests.benchmarks.session NAME {versions,publish,work} TASKS`.

A process of its own for each, so that a client's processor time is its own and no contender's libraries meet another's.
The last line of the output is JSON. `tests.benchmarks.compare` starts the sessions and the Redis server.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from importlib import import_module

import redis

from tests.benchmarks.contenders.contender import Contender, Way
from tests.benchmarks.usage import Meter
from tests.benchmarks.workers import running

#: Results by the name of the row.
Figures = dict[str, float]

#: Seconds after the last result in which workers acknowledge what they ran.
SETTLE = 0.3

SLEEP = 0.05
PAYLOAD = "x" * 100_000
CHILDREN = 200
IDLE = 5.0


def publish(contender: Contender, tasks: int) -> Figures:
    """Submitting alone: no worker runs."""
    figures: Figures = {}
    client = redis.Redis.from_url(os.environ["BENCH_BROKER"])
    publishers = list(contender.publishers().values())
    for row, way in {"batch": publishers[0], "single": publishers[-1]}.items():
        way(max(10, tasks // 10))
        client.flushdb()
        start, used = time.perf_counter(), time.process_time()
        way(tasks)
        figures[f"publish/{row}"] = tasks / (time.perf_counter() - start)
        figures[f"publish/{row}/cpu"] = (time.process_time() - used) / tasks * 1e6
        client.flushdb()
    return figures


def work(contender: Contender, tasks: int) -> Figures:
    """Everything that needs workers."""
    with running(contender.workers(sleepers=False)) as roots:
        contender.one(0)
        meter = Meter(roots, int(os.environ["BENCH_REDIS_PID"]), os.environ["BENCH_BROKER"])
        ways = list(contender.ways().values())
        figures = noops(ways[0], meter, tasks, "batch")
        figures |= noops(ways[-1], meter, tasks, "single")
        figures |= round_trips(contender, max(20, tasks // 6))
        figures |= payloads(contender, max(10, tasks // 10))
        figures |= family(contender)
        if contender.same_workers:
            figures |= sleeps(contender, tasks)
        figures |= idle(meter)
    if not contender.same_workers:
        with running(contender.workers(sleepers=True)):
            contender.one(0)
            figures |= sleeps(contender, tasks)
    return figures


def noops(way: Way, meter: Meter, tasks: int, row: str) -> Figures:
    """From the first submission to the last result, and what everybody did for it."""
    way("noop", range(max(100, tasks // 10)))
    time.sleep(SETTLE)
    before = meter.read()
    start = time.perf_counter()
    if (values := way("noop", range(tasks))) != list(range(tasks)):
        raise SystemExit(f"{tasks} no-ops returned {len(values)} values that are not their arguments.")
    seconds = time.perf_counter() - start
    time.sleep(SETTLE)
    used = meter.read().since(before)
    figures = {f"noop/{row}": tasks / seconds, f"commands/{row}": used.commands / tasks}
    for role in ("client", "parent", "children", "redis", "cpu"):
        figures[f"cpu/{row}/{role}"] = getattr(used, role) / tasks * 1e6
    return figures


def round_trips(contender: Contender, calls: int) -> Figures:
    """One call at a time."""
    times = []
    for number in range(calls):
        start = time.perf_counter()
        contender.one(number)
        times.append((time.perf_counter() - start) * 1000)
    times.sort()
    return {"trip/p50": statistics.median(times), "trip/p99": times[int(calls * 0.99)]}


def payloads(contender: Contender, calls: int) -> Figures:
    """Large texts there and back, in the contender's better way."""
    rates = []
    for way in contender.ways().values():
        way("echo", [PAYLOAD] * 5)
        start = time.perf_counter()
        values = way("echo", [PAYLOAD] * calls)
        rates.append(calls / (time.perf_counter() - start))
        if any(value != PAYLOAD for value in values):
            raise SystemExit("A payload came back changed.")
    return {"payload": max(rates)}


def family(contender: Contender) -> Figures:
    """A parent and its children, the first time for warmth."""
    times = []
    try:
        for _ in range(8):
            start = time.perf_counter()
            contender.family(CHILDREN)
            times.append((time.perf_counter() - start) * 1000)
    except NotImplementedError:
        return {}
    return {"family": statistics.median(times[1:])}


def sleeps(contender: Contender, tasks: int) -> Figures:
    """Tasks that wait, in the contender's better way: 2,000 when 3,000 tasks are asked for, at most 20 per slot."""
    slots = contender.sleep_slots
    calls = min(2000, max(20, tasks * 2 // 3), slots * 20)
    times = []
    for way in contender.ways().values():
        way("nap", [0.001] * slots)
        start = time.perf_counter()
        way("nap", [SLEEP] * calls)
        times.append(time.perf_counter() - start)
    ideal = math.ceil(calls / slots) * SLEEP
    return {"sleep/rate": calls / min(times), "sleep/ideal": min(times) / ideal}


def idle(meter: Meter) -> Figures:
    """Workers without work."""
    time.sleep(SETTLE)
    before, children = meter.read(), meter.children()
    time.sleep(IDLE)
    used = meter.read().since(before)
    if meter.children() != children:
        raise SystemExit("Processes of an idle worker ended or started; its figures would be those of a start.")
    return {"idle/cpu": used.workers / IDLE * 100, "idle/commands": used.commands / IDLE}


def main(name: str, part: str, tasks: int) -> None:
    """Measure and print."""
    contender: Contender = import_module(f"tests.benchmarks.contenders.{name}").contender
    if part == "versions":
        answer: object = {
            "versions": contender.versions(),
            "slots": contender.sleep_slots,
            "ways": list(contender.ways()),
            "publishers": list(contender.publishers()),
        }
    else:
        answer = {"publish": publish, "work": work}[part](contender, tasks)
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
