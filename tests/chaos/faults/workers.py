"""What happens to workers, by signals, by the machine, and between two steps of a claim."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import partial

from tests.chaos import steps
from tests.chaos.faults.fault import RECOVERY, Fault, Scene
from tests.chaos.fleet import GRACE, Fleet, Member
from tests.chaos.verdict import Impact
from tests.helpers import processes
from tests.helpers.waiting import wait_until

#: Seconds beyond its grace period in which a worker that was told to stop has to be gone.
LAST_MOMENTS = 2.0


def sigkill(scene: Scene) -> list[Impact]:
    """Kill the main process of a worker of each environment, as the kernel does when memory runs out."""
    return [kill(scene.fleet, member) for member in scene.victims()]


def kill(fleet: Fleet, member: Member) -> Impact:
    """Kill a worker's main process."""
    at = fleet.kill(member)
    return lost_with(fleet, member, at)


def lost_with(fleet: Fleet, member: Member, at: float) -> Impact:
    """What a dead worker has claimed has to run again when its lease is over."""
    return Impact(at, fleet.claimed(member), fleet.lease + RECOVERY + fleet.patience)


def kill_group(scene: Scene) -> list[Impact]:
    """Kill every process of a worker at once, as the loss of its machine does."""
    impacts = []
    for member in scene.victims():
        for pid in [member.worker.pid, *processes.descendants(member.worker.pid)]:
            processes.kill(pid)
        impacts.append(lost_with(scene.fleet, member, scene.fleet.note_death(member.name)))
    return impacts


def sigterm(scene: Scene) -> list[Impact]:
    """Tell a worker of each environment to stop: running tasks end in it, the others run elsewhere."""
    return tell(scene, [signal.SIGTERM], GRACE + LAST_MOMENTS)


def double_sigterm(scene: Scene) -> list[Impact]:
    """Tell it twice: running tasks go back as well."""
    return tell(scene, [signal.SIGTERM, signal.SIGTERM], LAST_MOMENTS + 3)


def sigquit(scene: Scene) -> list[Impact]:
    """Tell it to stop at once."""
    return tell(scene, [signal.SIGQUIT], LAST_MOMENTS + 3)


def tell(scene: Scene, signals: list[int], within: float) -> list[Impact]:
    """Send signals to a worker of each environment and wait for its end."""
    victims = scene.victims()
    impacts = []
    for member in victims:
        impacts.append(Impact(time.monotonic(), scene.fleet.claimed(member)))
        if signals[0] == signal.SIGQUIT:
            scene.fleet.note_death(member.name)
        member.leave(signals[0])
    if len(signals) > 1:
        for member in victims:
            scene.fleet.wait(lambda member=member: stopping(member), 10, f"{member.name} to begin to stop")  # type: ignore[misc]
            if member.alive:  # what it runs goes back, also what ends before the replica does
                scene.fleet.note_death(member.name)
                os.kill(member.worker.pid, signals[1])
    for member in victims:
        member.worker.wait(within + scene.fleet.patience)
    return impacts


def stopping(member: Member) -> bool:
    """Whether a worker waits for running tasks before it ends, or has none."""
    return not member.alive or "waiting up to" in member.worker.log()


def sigstop(scene: Scene) -> list[Impact]:
    """Stop the main process of a worker of each environment for longer than its lease, and let it go on."""
    fleet = scene.fleet
    snc, aio = scene.victims()
    at = time.monotonic()
    with fleet.stopped(snc.worker.pid), fleet.stopped(aio.worker.pid):
        impacts = [lost_with(fleet, member, at) for member in (snc, aio)]
        fleet.wait(
            lambda: all(any(loss.worker == m.name and loss.at > at for loss in fleet.losses()) for m in (snc, aio)),
            fleet.lease * 2 + 5,
            "both to lose their leases",
        )
        time.sleep(0.5)
    return impacts


def fleet_at_zero(scene: Scene) -> list[Impact]:
    """Kill every worker. One of another environment that comes later puts the claims back; then new ones come."""
    fleet = scene.fleet
    scene.victims()
    everybody = [member for environment in fleet.wanted for member in fleet.serving(environment)]
    for member in everybody:
        fleet.kill(member)
    at = time.monotonic()
    hit = set().union(*(fleet.claimed(member) for member in everybody))
    time.sleep(fleet.lease)
    spare = fleet.start("spare")
    within = fleet.lease + RECOVERY
    fleet.wait(lambda: not any(fleet.claimed(m) for m in everybody), within, "claims that are back")
    fleet.repair()
    fleet.retire(spare)
    return [Impact(at, hit)]


def die_at(step: str, scene: Scene) -> list[Impact]:
    """Have one more worker of each environment kill itself between two steps of a claim."""
    fleet = scene.fleet
    members = [
        fleet.start(environment, die_at=f"{step}:{scene.chance.randint(1, 5)}", ready=False)
        for environment in fleet.wanted
    ]
    return [death_of(scene, member, step) for member in members]


def death_of(scene: Scene, member: Member, step: str) -> Impact:
    """Give a worker something to do until it dies of it."""
    for _ in range(20):
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not member.alive, 2.0)
            return lost_with(scene.fleet, member, scene.fleet.note_death(member.name))
        scene.keep_busy(member.environment)
    raise AssertionError(f"{member.name} did not come to {step!r}, where it was to die.")


WORKERS = (
    Fault("worker SIGKILL", sigkill),
    Fault("worker process group SIGKILL", kill_group),
    Fault("worker SIGTERM", sigterm),
    Fault("worker SIGTERM twice", double_sigterm),
    Fault("worker SIGQUIT", sigquit),
    Fault("worker SIGSTOP beyond its lease", sigstop, times=1),
    Fault("no worker left, then another environment's", fleet_at_zero, times=1),
    *(Fault(f"worker dies: {step}", partial(die_at, step), times=1) for step in steps.STEPS),
)
