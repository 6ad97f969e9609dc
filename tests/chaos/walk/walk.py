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
    folder: Path, seed: str, minutes: float, lease: float, patience: float, say: Callable[[str], None]
) -> list[str]:
    """Walk.

    Args:
        folder: Directory for everything, empty.
        seed: What happens comes from it.
        minutes: How long it goes on before it ends in peace.
        lease: Seconds of every lease.
        patience: Seconds on top of each promise about time.
        say: Is told of each step.

    Returns:
        What was broken, in sentences.
    """
    chance = random.Random(seed)
    world = World(folder, lease, patience)
    bounds = {name: policy[:2] for name, policy in POLICIES.items()}
    invariants = Invariants(bounds, RESTING, lease, patience)
    watch = Watch(world.fleet.server.url(), invariants, world.replicas)
    try:
        began = time.monotonic()
        members = [world.join(name, chance.choice(HOSTS), 1, proxied=True) for name in POLICIES]
        for member in members:
            world.wait_ready(member)
        number = 0
        while time.monotonic() < began + minutes * 60:
            number += 1
            say(f"{number:4} {time.monotonic() - began:6.1f} s  {_step(world, chance)}")
            _trickle(world, chance)
            if broken := [*watch.look(), *world.prune()]:
                return broken
        say(f"     {time.monotonic() - began:6.1f} s  peace")
        broken = _end(world, invariants) or watch.look()
        say(f"     {time.monotonic() - began:6.1f} s  {len(world.submitted)} tasks, {watch.looks} looks")
        return broken
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


def _end(world: World, invariants: Invariants) -> list[str]:
    try:
        world.in_peace()
        wanted = {task.id for task in world.submitted}

        def done() -> bool:
            wanted.difference_update(world.fleet.results(wanted))
            return not wanted and not world.fleet.waiting()

        with contextlib.suppress(AssertionError):  # the books say what is missing
            wait_until(done, PEACE + world.patience)
        broken = _judged(world)
        if not broken:
            wait_until(lambda: not _unsettled(world, invariants), PEACE + world.patience)
        return broken
    except AssertionError as error:
        return [str(error), *_unsettled(world, invariants)]


def _judged(world: World) -> list[str]:
    fleet = world.fleet
    states = fleet.results(task.id for task in world.submitted)
    return judge(world.submitted, fleet.marks(), states, fleet.losses(), [], fleet.waiting()).broken


def _unsettled(world: World, invariants: Invariants) -> list[str]:
    """What is not yet as it is to be when nothing is to be done: each environment has its minimum, and no more."""
    seen = snapshot.take(world.fleet.client, POLICIES, world.lease)
    return [
        f"{name}: {environment.live} live replicas, {environment.seats} seats, and nothing to do"
        for name, environment in seen.environments.items()
        if environment.live != environment.seats or environment.live != invariants.in_force(name, environment)[0]
    ]
