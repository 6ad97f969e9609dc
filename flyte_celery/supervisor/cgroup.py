"""Groups of processes that the kernel itself limits: cgroup v2, where the launcher may make some.

It may where its own group was delegated to it (`Delegate=yes` of a systemd service, or a container with a writable
group) and holds nothing but this worker. The worker's own processes move into a group `worker` beside those of its
replicas, because the kernel limits either the children of a group or its processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .confinement import Confinement

#: Where the kernel's groups are.
ROOT = Path("/sys/fs/cgroup")

#: What a replica is limited by. The launcher makes groups only where the first is to be had.
CONTROLLERS = ("memory", "pids", "cpu")

#: Microseconds of the period that a quota of cores is counted in.
_PERIOD = 100_000


@dataclass(frozen=True, slots=True)
class Group:
    """The group of one replica."""

    path: Path

    def was_out_of_memory(self) -> bool:
        """Whether the kernel has killed in it because it held more than it may."""
        return _number(self.path / "memory.events", "oom_kill") > 0

    def peak(self) -> int:
        """Most bytes that it ever held; 0 where the kernel does not count that."""
        return _number(self.path / "memory.peak")

    def kill(self) -> None:
        """Kill whatever is in it, at once."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")

    def remove(self) -> None:
        """Remove it, empty as it must be."""
        with contextlib.suppress(OSError):
            self.path.rmdir()


class Groups:
    """The groups of a launcher's replicas.

    Args:
        own: The delegated group, prepared by `delegated`.
        controllers: What can be limited in it.
    """

    def __init__(self, own: Path, controllers: frozenset[str]) -> None:
        self._own = own
        self._controllers = controllers

    def make(self, number: int, bounds: Confinement) -> Group | None:
        """A group for a replica; None when the kernel refuses, and the watchdog alone is left."""
        path = self._own / f"replica-{os.getpid()}-{number}"
        group = Group(path)
        try:
            path.mkdir()
            for name, value in self._limits(bounds).items():
                (path / name).write_text(value)
        except OSError:
            group.remove()
            return None
        return group

    def _limits(self, bounds: Confinement) -> dict[str, str]:
        limits: dict[str, str] = {}
        if "memory" in self._controllers and bounds.memory is not None:
            limits |= {"memory.max": str(bounds.memory), "memory.oom.group": "1"}
        if "pids" in self._controllers and bounds.processes is not None:
            limits["pids.max"] = str(bounds.processes)
        if "cpu" in self._controllers and bounds.cores is not None:
            limits["cpu.max"] = f"{max(1000, round(bounds.cores * _PERIOD))} {_PERIOD}"
        return limits

    @property
    def limits_cores(self) -> bool:
        """Whether replicas need not be bound to cores."""
        return "cpu" in self._controllers


def delegated(is_ours: Callable[[int], bool], root: Path = ROOT, own: str | None = None) -> Groups | None:
    """The groups that this process may make; None where it may make none.

    Args:
        is_ours: Whether a process belongs to this worker.
        root: Where the kernel's groups are.
        own: The path of this process's group; None: as the kernel says.
    """
    path = _own_path() if own is None else own
    if path is None:
        return None
    group = root / path.lstrip("/")
    try:
        offered = frozenset((group / "cgroup.controllers").read_text().split())
        pids = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
        if "memory" not in offered or not os.access(group / "cgroup.subtree_control", os.W_OK):
            return None
        if not all(is_ours(pid) for pid in pids):
            return None
        wanted = [name for name in CONTROLLERS if name in offered]
        worker = group / "worker"
        worker.mkdir(exist_ok=True)
        for pid in pids:
            (worker / "cgroup.procs").write_text(str(pid))
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))
    except OSError:
        return None
    return Groups(group, frozenset(wanted))


def _own_path() -> str | None:
    """The path of this process's group of version 2; None where there is none, or where the limits are version 1's."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)


def _number(path: Path, name: str | None = None) -> int:
    """A file's number, or the one behind a name in it; 0 when there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        words = line.split()
        if name is None and words and words[0].isdigit():
            return int(words[0])
        if name is not None and words[:1] == [name]:
            return int(words[1])
    return 0
