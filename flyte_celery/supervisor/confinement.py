"""What a replica may use, and how its process is confined to that from within, as its first act."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

#: Added to how likely the kernel is to end a replica, of 1000, when memory runs out: before its worker, which would
#: take all others with it.
_OOM_SCORE = 300


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a replica, with all processes that its tasks start, may use. None: as much as there is."""

    #: Bytes of memory.
    memory: int | None = None
    #: Cores.
    cores: float | None = None
    #: Processes at once.
    processes: int | None = None
    #: Files that each of its processes may have open at once.
    files: int | None = None


def enter(confinement: Confinement, cpus: Collection[int] = (), group: Path | None = None) -> None:
    """Confine the calling process, which is about to become a replica, and whatever it will start.

    Args:
        confinement: What it may use; memory and processes are watched from outside.
        cpus: The cores that it is bound to; none: it may run on all.
        group: Its group of the kernel's, see `cgroup`.
    """
    if group is not None:
        with contextlib.suppress(OSError):
            (group / "cgroup.procs").write_text(str(os.getpid()))
    with contextlib.suppress(PermissionError):  # it leads a session, which has a group of its own
        os.setpgid(0, 0)
    if sys.platform == "linux":
        # Ended with the launcher, however busy it is by then.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+") as score:
            score.write(str(min(1000, int(score.read()) + _OOM_SCORE)))
        if cpus:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, cpus)
    if confinement.files is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = [
            confinement.files if each == resource.RLIM_INFINITY else min(each, confinement.files)
            for each in (soft, hard)
        ]
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most[0], most[1]))


def adopt_orphans() -> None:
    """Make the calling process the parent of what its descendants leave behind (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
