"""What happens to Redis, and between it and the workers."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis

from tests.chaos.faults.fault import Fault, Scene
from tests.chaos.verdict import Impact


def restart(scene: Scene) -> list[Impact]:
    """Kill the server and start it again with what it had written."""
    at = time.monotonic()
    scene.fleet.server.stop()
    time.sleep(scene.chance.uniform(0.1, 1.0))
    scene.fleet.server.start()
    scene.fleet.note_silence(at)  # a server that loads its data is no longer one that does not run
    return [Impact(at)]


def close_connections(scene: Scene) -> list[Impact]:
    """Close every connection of every worker, several times."""
    at = time.monotonic()
    for _ in range(5):
        scene.fleet.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        scene.fleet.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
        time.sleep(scene.chance.uniform(0.05, 0.5))
    return [Impact(at)]


def pause(scene: Scene) -> list[Impact]:
    """Let the server answer nobody for longer than a lease."""
    at = time.monotonic()
    scene.fleet.client.execute_command("CLIENT", "PAUSE", int(scene.fleet.lease * 1300), "ALL")
    time.sleep(scene.fleet.lease * 1.3)
    scene.fleet.wait(lambda: answers(scene), 10, "Redis to answer again")
    scene.fleet.note_silence(at)
    return [Impact(at)]


def sigstop(scene: Scene) -> list[Impact]:
    """Stop the server's process for longer than a lease."""
    at = time.monotonic()
    with scene.fleet.stopped(scene.fleet.server.pid):
        time.sleep(scene.fleet.lease * 1.3)
    scene.fleet.note_silence(at)
    return [Impact(at)]


def black_hole(scene: Scene) -> list[Impact]:
    """Let no byte through between Redis and one more worker of each environment, for longer than the lease."""
    fleet = scene.fleet
    members = [fleet.start(environment, proxied=True) for environment in fleet.wanted]
    for member in members:
        scene.occupy(member)
    at = time.monotonic()
    for member in members:
        assert member.proxy is not None
        member.proxy.stall()
    hit = set().union(*(fleet.claimed(member) for member in members))
    fleet.wait(lambda: not any(fleet.claimed(m) for m in members), fleet.lease * 2 + 5, "claims that are back")
    for member in members:
        assert member.proxy is not None
        member.proxy.heal()
    for member in members:
        scene.occupy(member, since=time.monotonic())
        fleet.retire(member)
    return [Impact(at, hit)]


def lose_replies(scene: Scene) -> list[Impact]:
    """Cut the connections of one more worker of each environment while replies of Redis are on their way."""
    fleet = scene.fleet
    members = [fleet.start(environment, proxied=True) for environment in fleet.wanted]
    at = time.monotonic()
    for _ in range(5):
        for member in members:
            assert member.proxy is not None
            scene.keep_busy(member.environment)
            member.proxy.stall_replies()
            time.sleep(scene.chance.uniform(0.05, 0.3))
            member.proxy.cut()
    for member in members:
        fleet.retire(member)
    return [Impact(at)]


def no_memory(scene: Scene) -> list[Impact]:
    """Let the server refuse whatever needs memory for a while: results among it."""

    def heal() -> None:
        scene.fleet.client.config_set("maxmemory", 0)

    scene.fleet.client.config_set("maxmemory", 1)
    return refuse(scene, heal)


def no_results(scene: Scene) -> list[Impact]:
    """Let the server refuse to store results, and nothing else, for a while."""

    def heal() -> None:
        scene.fleet.client.execute_command("ACL", "SETUSER", "default", "+@all")

    scene.fleet.client.execute_command("ACL", "SETUSER", "default", "-setex", "-set")
    return refuse(scene, heal)


def refuse(scene: Scene, heal: Callable[[], None]) -> list[Impact]:
    """Let tasks end meanwhile, then heal."""
    at = time.monotonic()
    try:
        time.sleep(scene.chance.uniform(0.5, 1.0))
    finally:
        heal()
    return [Impact(at)]


def answers(scene: Scene) -> bool:
    """Whether Redis answers."""
    try:
        return bool(scene.fleet.client.ping())
    except redis.RedisError:
        return False


REDIS = (
    Fault("Redis restart", restart),
    Fault("Redis CLIENT KILL", close_connections),
    Fault("Redis CLIENT PAUSE beyond the lease", pause, times=1),
    Fault("Redis SIGSTOP beyond the lease", sigstop, times=1),
    Fault("black hole beyond the lease", black_hole, times=1),
    Fault("connections cut before replies", lose_replies, times=1),
    Fault("Redis out of memory", no_memory),
    Fault("Redis refuses results", no_results),
)
