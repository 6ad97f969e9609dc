"""What happens to replicas."""

from __future__ import annotations

import contextlib
import signal
import time

from tests.chaos.faults.fault import Fault, Scene
from tests.chaos.verdict import Impact


def end_one(scene: Scene, how: int) -> list[Impact]:
    """End a busy replica of each environment with a signal; what it had begun runs again in another one."""
    impacts = []
    for environment in scene.fleet.wanted:
        member, pid = scene.busy_replica(environment)
        at = scene.fleet.kill_process(member, pid, how)
        impacts.append(Impact(at, scene.fleet.running(member, pid)))
    return impacts


def stop_one(scene: Scene) -> list[Impact]:
    """Stop a busy replica of each environment for longer than the lease: its tasks wait for it, and run once."""
    fleet = scene.fleet
    at = time.monotonic()
    with contextlib.ExitStack() as stopped:
        for environment in fleet.wanted:
            fleet.wait(lambda environment=environment: _stop(scene, environment, stopped), description="a busy replica")  # type: ignore[misc]
        time.sleep(fleet.lease * 1.3)
    return [Impact(at)]


def _stop(scene: Scene, environment: str, stopped: contextlib.ExitStack) -> bool:
    with contextlib.suppress(ProcessLookupError):  # it was let go just now
        stopped.enter_context(scene.fleet.stopped(scene.busy_replica(environment)[1]))
        return True
    return False


def end_launcher(scene: Scene) -> list[Impact]:
    """Kill the process that all replicas of a worker are forks of; they end with it."""
    impacts = []
    for member in scene.victims():
        # Where it was killed just before, another one has to come first.
        replicas = scene.fleet.wait(member.replicas, description=f"replicas of {member.name}")
        launcher = member.launcher()
        at = scene.fleet.kill_process(member, launcher)
        for pid in replicas:
            scene.fleet.note_death(member.name, pid)
        impacts.append(Impact(at, set().union(*(scene.fleet.running(member, pid) for pid in replicas))))
    return impacts


def block_loop(scene: Scene) -> list[Impact]:
    """A task that blocks its replica's event loop for longer than the lease."""
    at = time.monotonic()
    task = scene.load.submit("aio.block", scene.fleet.lease * 1.3)
    scene.fleet.wait(lambda: task in scene.fleet.running(), 30, "a blocked loop")
    return [Impact(at)]


REPLICAS = (
    Fault("replica SIGKILL", lambda scene: end_one(scene, signal.SIGKILL), times=3),
    Fault("replica SIGSEGV", lambda scene: end_one(scene, signal.SIGSEGV), times=3),
    Fault("replica SIGSTOP", stop_one, times=1),
    Fault("launcher SIGKILL", end_launcher),
    Fault("blocked loop", block_loop, times=2),
)
