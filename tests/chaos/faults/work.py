"""What happens by the work itself."""

from __future__ import annotations

import time

from tests.chaos.faults.fault import Fault, Scene
from tests.chaos.verdict import Impact

#: Tasks that arrive at once where no replica runs.
ARRIVALS = 10_000

#: Attempts after which a task that kills its replica is given up.
MAX_ATTEMPTS = 3


def poison(scene: Scene) -> list[Impact]:
    """Tasks that kill their replica each time they run."""
    at = time.monotonic()
    for name, *args in (("snc.crash",), ("aio.crash_later", 0.05), ("aio.crash_at_once",)):
        task = scene.load.submit(name, *args, ends="FAILURE", starts=MAX_ATTEMPTS)
        scene.fleet.wait(lambda task=task: scene.fleet.results([task]), 60, f"{name} to be given up")  # type: ignore[misc]
    return [Impact(at)]


def burst_at_zero(scene: Scene) -> list[Impact]:
    """Many tasks at once for an environment without a replica."""
    members = [scene.fleet.start("zero", ready=False) for _ in range(2)]
    for member in members:
        member.worker.wait_ready()
    at = time.monotonic()
    tasks = [scene.load.submit("zero.wake", 0.0) for _ in range(ARRIVALS)]
    scene.fleet.wait(lambda: len(scene.fleet.results(tasks)) == len(tasks), 120, "the end of all arrivals")
    for member in members:
        scene.fleet.retire(member)
    return [Impact(at)]


WORK = (
    Fault("poison task", poison, times=2),
    Fault(f"{ARRIVALS:,} tasks at zero replicas", burst_at_zero, times=1, mixes=False),
)
