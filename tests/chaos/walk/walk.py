"""One walk: steps at random, a look after each, and at the end everything in peace and every task done."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.verdict import judge
from tests.chaos.walk import snapshot
from tests.chaos.walk.invariants import Invariants
from tests.chaos.walk.project import POLICIES, RESTING
from tests.chaos.walk.steps import STEPS
from tests.chaos.walk.watch import Watch
from tests.chaos.walk.world import HOSTS, World
from tests.helpers.waiting import wait_until

#: Seconds for all tasks to end, and then for all replicas to go that nobody wants, when nothing happens any more.
PEACE = 60.0


def walk(
    folder: Path,
    seed: str,
    minutes: float,
    lease: float,
    patience: float,
    say: Callable[[str], None],
    steps: int | None = None,
) -> list[str]:
    """Walk.

    Args:
        folder: Directory for everything, empty.
        seed: What happens comes from it.
        minutes: How long it goes on before it ends in peace.
        lease: Seconds of every lease.
        patience: Seconds on top of each promise about time.
        say: Is told of each step.
        steps: Steps after which it ends sooner.

    Returns:
        What was broken, in sentences.
    """
    chance, began = random.Random(seed), time.monotonic()
    world = World(folder, lease, patience)
    bounds = {name: policy[:2] for name, policy in POLICIES.items()}
    invariants = Invariants(bounds, RESTING, lease, patience)
    watch = Watch(world.fleet.server.url(), invariants, world.replicas)

    def tell(what: str) -> None:
        say(f"{time.monotonic() - began:6.1f} s  {what}")

    try:
        members = [world.join(name, chance.choice(HOSTS), 1, proxied=True) for name in POLICIES]
        for member in members:
            world.wait_ready(member)
        number = 0
        while number != steps and time.monotonic() < began + minutes * 60:
            number += 1
            tell(f"{number:4}  {_step(world, chance)}")
            _trickle(world, chance)
            if broken := [*watch.look(), *world.prune()]:
                return broken
        tell("peace")
        broken = _tasks(world)
        tell(f"the end of {len(world.submitted)} tasks")
        broken = broken or _minima(world, invariants)
        tell(f"the minimum of each environment, after {watch.looks} looks")
        return broken or watch.look()
    except AssertionError as error:  # something was waited for in vain
        return [str(error), *watch.breaches]
    finally:
        watch.close()
        world.close()


def _step(world: World, chance: random.Random) -> str:
    while True:
        (step,) = chance.choices([*STEPS], [*STEPS.values()])
        if (words := step(world, chance)) is not None:
            return words


def _trickle(world: World, chance: random.Random) -> None:
    """Let some time pass with a task now and then."""
    for _ in range(chance.randint(0, 8)):
        world.submit(chance.choice([*POLICIES]), 1, round(chance.uniform(0.0, 0.2), 3))
        time.sleep(chance.uniform(0.05, 0.2))


def _tasks(world: World) -> list[str]:
    """Mend everything and wait for the end of all tasks."""
    world.in_peace()
    wanted = {task.id for task in world.submitted}

    def done() -> bool:
        wanted.difference_update(world.fleet.results(wanted))
        return not wanted and not world.fleet.waiting()

    with contextlib.suppress(AssertionError):  # the books say what is missing
        wait_until(done, PEACE + world.patience)
    return _judged(world)


def _judged(world: World) -> list[str]:
    fleet = world.fleet
    states = fleet.results(task.id for task in world.submitted)
    return judge(world.submitted, fleet.marks(), states, fleet.losses(), [], fleet.waiting()).broken


def _minima(world: World, invariants: Invariants) -> list[str]:
    """Wait until each environment has its minimum, and no more; say which have not."""

    def unsettled() -> list[str]:
        seen = snapshot.take(world.fleet.client, POLICIES, world.lease)
        return [
            f"{name}: {environment.live} live replicas and {environment.seats} seats stay, with nothing to do"
            for name, environment in seen.environments.items()
            if environment.live != environment.seats or environment.live != invariants.in_force(name, environment)[0]
        ]

    with contextlib.suppress(AssertionError):
        wait_until(lambda: not unsettled(), PEACE + world.patience)
    return unsettled()
