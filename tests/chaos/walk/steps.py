"""What may happen next: one function per step. It does it and says what, or says nothing when it cannot happen now."""

from __future__ import annotations

import random
from collections.abc import Callable

from flyte_celery.fleet import orders
from tests.chaos.fleet import Member
from tests.chaos.walk.project import POLICIES
from tests.chaos.walk.world import HOSTS, MOST, MOST_OF_ONE, World

Step = Callable[[World, random.Random], str | None]


def join(world: World, chance: random.Random) -> str | None:
    """One more worker, rather where there are few; seldom one of an older version."""
    if len(world.there()) >= MOST:
        return None
    fewest = min(POLICIES, key=lambda name: len(world.of(name)))
    environment = fewest if chance.random() < 0.5 else chance.choice([*POLICIES])
    if len(world.of(environment)) >= MOST_OF_ONE:
        return None
    newest = world.versions[environment]
    return _started(world, chance, environment, max(1, newest - (chance.random() < 0.1)))


def deploy(world: World, chance: random.Random) -> str | None:
    """A worker of a new version."""
    if len(world.there()) >= MOST:
        return None
    environment = chance.choice([*POLICIES])
    world.versions[environment] += 1
    return _started(world, chance, environment, world.versions[environment])


def _started(world: World, chance: random.Random, environment: str, version: int) -> str:
    host, proxied, awaited = chance.choice(HOSTS), chance.random() < 0.6, chance.random() < 0.7
    member = world.join(environment, host, version, proxied)
    if awaited:  # others may be hit while they start
        world.wait_ready(member)
    return f"{_of(member)} joins, version {version}{', through a proxy' if proxied else ''}"


def leave(world: World, chance: random.Random) -> str | None:
    """SIGTERM."""
    if not world.well:
        return None
    world.leave(member := chance.choice(world.well))
    return f"SIGTERM to {_of(member)}"


def kill(world: World, chance: random.Random) -> str | None:
    """SIGKILL, whatever state it is in."""
    if not world.there():
        return None
    world.kill(member := chance.choice(world.there()))
    return f"SIGKILL to {_of(member)}"


def lose_host(world: World, chance: random.Random) -> str | None:
    """Every process of every worker of a host at once."""
    host = chance.choice(HOSTS)
    if not (lost := [member for member in world.there() if member.host == host]):
        return None
    for member in lost:
        world.kill(member, everything=True)
    return f"loss of {host} with {', '.join(member.name for member in lost)}"


def kill_replica(world: World, chance: random.Random) -> str | None:
    """SIGKILL to one replica."""
    if not world.well:
        return None
    had = world.kill_replica(member := chance.choice(world.well))
    return f"SIGKILL to {'a' if had else 'no'} replica of {_of(member)}"


def stop(world: World, chance: random.Random) -> str | None:
    """SIGSTOP; `go_on` comes sooner or later than the end of the lease."""
    if not world.well or len(world.stopped) >= 2:
        return None
    world.stop(member := chance.choice(world.well))
    return f"SIGSTOP to {_of(member)}"


def go_on(world: World, chance: random.Random) -> str | None:
    """SIGCONT."""
    if not world.stopped:
        return None
    world.go_on(member := chance.choice([*world.stopped]))
    return f"SIGCONT to {_of(member)}"


def stall(world: World, chance: random.Random) -> str | None:
    """No byte comes through between a worker and Redis, or no reply; `heal` comes sooner or later."""
    # A worker that finds no broker at its start ends.
    proxied = [member for member in world.well if member.proxy is not None and member in world.ready]
    if not proxied or len(world.stalled) >= 2:
        return None
    replies = chance.random() < 0.3
    world.stall(member := chance.choice(proxied), replies)
    return f"no {'reply' if replies else 'byte'} between Redis and {_of(member)}"


def heal(world: World, chance: random.Random) -> str | None:
    """Everything comes through again, or connections are ended."""
    if not world.stalled:
        return None
    cut = chance.random() < 0.4
    world.heal(member := chance.choice([*world.stalled]), cut)
    return f"{_of(member)} reaches Redis again{', by new connections' if cut else ''}"


def burst(world: World, chance: random.Random) -> str | None:
    """Many short tasks."""
    environment, number = chance.choice([*POLICIES]), chance.randint(10, 60)
    world.submit(environment, number, round(chance.uniform(0.0, 0.1), 3))
    return f"{number} tasks of {environment}"


def outlive(world: World, chance: random.Random) -> str | None:
    """A few tasks that take longer than a lease."""
    environment, number = chance.choice([*POLICIES]), chance.randint(1, 3)
    world.submit(environment, number, world.lease * 1.2)
    return f"{number} long tasks of {environment}"


def scale(world: World, chance: random.Random) -> str | None:
    """Bounds in place of the policy's."""
    environment = chance.choice([*POLICIES])
    lowest, highest = sorted(chance.randint(0, 6) for _ in range(2))
    orders.scale(world.fleet.client, environment, lowest, highest)
    return f"env scale {environment} {lowest} {highest}"


def reset(world: World, chance: random.Random) -> str | None:
    """The policy's bounds again."""
    scaled = [name for name in POLICIES if orders.orders_of(world.fleet.client, name).highest is not None]
    if not scaled:
        return None
    orders.reset(world.fleet.client, environment := chance.choice(scaled))
    return f"env scale {environment} --reset"


def pause(world: World, chance: random.Random) -> str | None:
    """Nobody takes tasks."""
    orders.pause(world.fleet.client, environment := chance.choice([*POLICIES]))
    return f"env pause {environment}"


def drain(world: World, chance: random.Random) -> str | None:
    """Every replica of an environment goes, or of a host."""
    if chance.random() < 0.5:
        orders.drain(world.fleet.client, name := chance.choice([*POLICIES]))
    else:
        orders.drain_host(world.fleet.client, name := chance.choice(HOSTS))
    return f"env drain {name}"


def resume(world: World, chance: random.Random) -> str | None:
    """What was paused or drained serves again."""
    client = world.fleet.client
    held = [name for name in POLICIES if (order := orders.orders_of(client, name)).paused or order.drained]
    held += [host for host in HOSTS if orders.is_held_back(client, "", host)]
    if not held:
        return None
    name = chance.choice(held)
    (orders.resume if name in POLICIES else orders.resume_host)(client, name)
    return f"env resume {name}"


def prewarm(world: World, chance: random.Random) -> str | None:
    """Replicas ahead of the work."""
    environment, number = chance.choice([*POLICIES]), chance.randint(1, 4)
    orders.prewarm(world.fleet.client, environment, number)
    return f"env prewarm {environment} {number}"


def _of(member: Member) -> str:
    return f"{member.name}@{member.host}"


#: Every step, and how often it is tried beside the others.
STEPS: dict[Step, int] = {
    join: 16,
    deploy: 3,
    leave: 5,
    kill: 5,
    lose_host: 1,
    kill_replica: 5,
    stop: 4,
    go_on: 8,
    stall: 6,
    heal: 8,
    burst: 12,
    outlive: 6,
    scale: 5,
    reset: 4,
    pause: 3,
    drain: 4,
    resume: 12,
    prewarm: 2,
}
