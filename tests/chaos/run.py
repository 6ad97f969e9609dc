"""One case: load, faults, the wait for the end, the judgement."""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import dataclass

import redis

from tests.chaos.faults import FAULTS, Fault, Scene
from tests.chaos.fleet import Fleet
from tests.chaos.load import Load
from tests.chaos.verdict import Impact, Verdict, judge
from tests.helpers.waiting import wait_until

#: Seconds for everything to end after the last fault; what has not ended by then is lost.
PATIENCE = 60.0

#: Seconds without any progress after which the rest counts as lost, too.
STANDSTILL = 20.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report."""

    name: str
    verdict: Verdict
    seconds: float


def run_case(fleet: Fleet, name: str, faults: list[Fault], tasks: int, seed: str) -> Row:
    """Let faults happen one after the other under one load, and judge what became of its tasks.

    Args:
        fleet: Repaired first, and left as it is then.
        name: The case, for the report.
        faults: What happens.
        tasks: Tasks of the load.
        seed: Everything random comes from it and the name.
    """
    began = time.monotonic()
    chance = random.Random(f"{seed} {name}")
    fleet.repair()
    fleet.records.forget()
    load = Load(fleet, chance, tasks)
    load.begin()
    impacts: list[Impact] = []
    failure: str | None = None
    try:
        for fault in faults:
            time.sleep(chance.uniform(0.2, 1.0))  # any moment is as good as another
            fleet.repair()
            impacts += fault.strike(Scene(fleet, load, chance))
    except AssertionError as error:
        failure = str(error).splitlines()[0]
    finally:
        load.end()
    fleet.repair()
    _wait_for_the_end(fleet, load)
    left = _left(fleet)
    states = fleet.results(task.id for task in load.submitted)
    verdict = judge(load.submitted, fleet.marks(), states, fleet.losses(), impacts, left)
    if failure is not None:
        verdict.broken.append(failure)
    if left:
        fleet.restart_empty()  # the next case has to begin with nothing
    return Row(name, verdict, time.monotonic() - began)


def named(name: str) -> Fault:
    """A fault by its name.

    Raises:
        LookupError: There is none; names those that there are.
    """
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise LookupError(f"There is no fault {name!r}: give one of {', '.join(fault.name for fault in FAULTS)}, or mixed.")


def _wait_for_the_end(fleet: Fleet, load: Load) -> None:
    """Wait until every task has a result, or nothing has moved for long."""
    deadline, missing, moved = time.monotonic() + PATIENCE + fleet.patience, -1, time.monotonic()
    wanted = {task.id for task in load.submitted if task.certain}
    while time.monotonic() < deadline and time.monotonic() < moved + STANDSTILL + fleet.patience:
        with contextlib.suppress(redis.RedisError):
            wanted -= fleet.results(wanted).keys()
            if not wanted:
                return
        if len(wanted) != missing:
            missing, moved = len(wanted), time.monotonic()
        time.sleep(0.1)


def _left(fleet: Fleet) -> int:
    """Messages that stay although every task has a result: the last of them belong to owners that have to be reaped."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: fleet.waiting() == 0, fleet.lease * 2 + 5 + fleet.patience)
    return fleet.waiting()
