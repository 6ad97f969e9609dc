"""Cores and memory of this host, or of the container that stands for it."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("sys/fs/cgroup")


def cores(root: Path = Path("/")) -> float:
    """Cores that this process may use: those that it is bound to, or what its container is allowed.

    Args:
        root: The directory that has `sys`.
    """
    try:
        bound = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        bound = float(os.cpu_count() or 1)
    quotas = [text.split() for text in _limits(root, "cpu.max")]  # 150000 100000, or max 100000
    return min([bound, *(int(words[0]) / int(words[1]) for words in quotas if words and words[0].isdigit())])


def memory(root: Path = Path("/")) -> int | None:
    """Bytes that the processes here may use together: the host's, or what its container is allowed.

    Args:
        root: The directory that has `proc` and `sys`.

    Returns:
        None where nobody says.
    """
    sizes = [int(text) for text in _limits(root, "memory.max") if text.strip().isdigit()]
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            sizes.append(int(value.split()[0]) * 1024)
    return min(sizes, default=None)


def _limits(root: Path, name: str) -> list[str]:
    """What the control groups say, this process's own and all above it."""
    _, _, own = _read(root / "proc/self/cgroup").strip().rpartition("::")
    parts = Path(own.lstrip("/"))
    return [_read(root / _CGROUP / each / name) for each in (parts, *parts.parents)]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
