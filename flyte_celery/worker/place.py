"""What a worker tells its fleet of itself: its definition of the environment, its host, and a proof of life."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import redis
from celery.utils.log import get_logger

from ..environment import TaskEnvironment
from ..fleet.seats import Place, Seats
from .bounds import Machine, Share

logger = get_logger("flyte_celery.worker")

_MEGABYTE = 2**20


def place_of(
    environment: TaskEnvironment, code_version: str | None, hostname: str, share: Share, machine: Machine
) -> Place:
    """What does not change in a worker's life.

    Args:
        environment: What it serves.
        code_version: The version of its code, see `Settings`.
        hostname: Its node name.
        share: What one replica takes of the host.
        machine: What the host has.
    """
    return Place(
        definition=definition_of(environment, code_version),
        host=hostname.partition("@")[2].replace(" ", "_") or "-",
        millicores=round(share.cores * 1000),
        megabytes=-(-share.memory // _MEGABYTE),
        host_millicores=round(machine.cores * 1000),
        host_megabytes=machine.memory // _MEGABYTE,
    )


def definition_of(environment: TaskEnvironment, code_version: str | None) -> str:
    """A word that differs when what an environment's replicas are differs: policy, resources, variables, code."""
    variables = sorted((environment.env_vars or {}).items())
    what = (environment.reusable, environment.buffer, environment.resources, variables, code_version)
    return hashlib.sha1(repr(what).encode(), usedforsecurity=False).hexdigest()[:12]


def succeed(seats: Seats, launcher: int | None) -> None:
    """Say which processes prove that this worker lives, and free what an earlier life of it on this machine left.

    Without this a worker that was killed and starts again would wait for the end of its own lease.
    """
    seats.place = replace(seats.place, proof=proof_of_life(os.getpid(), launcher or os.getpid()))
    try:
        for name in seats.free_those_of_the_dead(is_gone):
            logger.info("The seats of %s, which has ended without giving them back, are free.", name)
    except redis.RedisError as exc:
        logger.warning("Seats of an earlier life of this worker cannot be looked for: %s", exc)


def proof_of_life(*pids: int) -> str:
    """Where processes live, and which: a machine since its start, a space of process ids, and the ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return "-"
    return "/".join([boot, space, *map(str, pids)])


def is_gone(proof: str) -> bool:
    """Whether processes of this machine are gone for sure."""
    where = proof_of_life()
    if where == "-" or not proof.startswith(f"{where}/"):
        return False
    return not any(_lives(int(pid)) for pid in proof.removeprefix(f"{where}/").split("/"))


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
