"""What `Resources` mean on this machine: what a replica is confined to, and how many ephemeral ones fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..resources import Resources
from ..settings import Settings
from ..supervisor import usage
from ..supervisor.confinement import Confinement

#: Variables that say how many threads a library computes with, read when it is imported.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True, slots=True)
class Share:
    """What a replica is given at least: what it takes of the machine."""

    cores: float = 0.0
    #: Bytes.
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has to give.

    Args:
        cores: Cores that the worker may use.
        memory: Bytes.
    """

    cores: float
    memory: int

    @classmethod
    def here(cls, settings: Settings | None = None) -> Machine:
        """This machine, or the container that the worker runs in; what the settings say of it wins."""
        cores = None if settings is None else settings.host_cores
        memory = None if settings is None else settings.host_memory
        return cls(usage.cores() if cores is None else cores, usage.total_memory() if memory is None else memory)

    def fits(self, share: Share, taken: Iterable[Share]) -> bool:
        """Whether a replica fits in beside others."""
        beside = list(taken)
        return (
            sum(each.cores for each in beside) + share.cores <= self.cores
            and sum(each.memory for each in beside) + share.memory <= self.memory
        )

    def holds(self, share: Share) -> int:
        """How many replicas of one kind fit, at least 1."""
        by_cores = math.floor(self.cores / share.cores) if share.cores else math.inf
        by_memory = self.memory // share.memory if share.memory else math.inf
        most = min(by_cores, by_memory)
        return max(1, int(most) if math.isfinite(most) else int(self.cores))


def confinement(resources: Resources | None, settings: Settings) -> Confinement:
    """What a replica of these resources may use; a limit of 0 is none, as in Kubernetes.

    Raises:
        ValueError: An amount is no quantity, or a limit is below its request.
    """
    wanted = resources or Resources()
    wanted.check_amounts()
    return Confinement(
        memory=wanted.memory_limit() or None,
        cores=wanted.cpu_limit() or None,
        processes=settings.max_processes,
        files=settings.max_files,
    )


def share(resources: Resources | None, cores: float) -> Share:
    """What a replica of these resources takes.

    Args:
        resources: As asked for.
        cores: What it takes when no cores were asked for.
    """
    wanted = resources or Resources()
    asked = wanted.cpu_request()
    return Share(cores if asked is None else asked, wanted.memory_request() or 0)


def too_small(share: Share, machine: Machine, wanted: int) -> tuple[str, ...]:
    """Why this machine cannot run as many replicas as a policy allows, in a sentence, if it cannot."""
    if not (share.cores or share.memory) or machine.holds(share) >= wanted:
        return ()
    each = [f"{share.cores:g} core(s)"] * bool(share.cores) + [f"{share.memory / 2**30:.2g} GiB"] * bool(share.memory)
    return (
        f"This host has room for {machine.holds(share)} of up to {wanted} replicas: each takes {' and '.join(each)} of "
        f"its {machine.cores:g} cores and {machine.memory / 2**30:.2g} GiB. Workers on other hosts can have the rest; "
        "FLYTE_CELERY_HOST_CORES and FLYTE_CELERY_HOST_MEMORY say otherwise.",
    )


def thread_variables(resources: Resources | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that make numeric libraries use as many threads as the replica has cores; none where it has no limit.

    Args:
        resources: As asked for.
        environ: What is set already, and wins.
    """
    cores = None if resources is None else resources.cpu_limit()
    if not cores:
        return {}
    return {name: str(max(1, math.floor(cores))) for name in THREAD_VARIABLES if name not in environ}


def unenforced(resources: Resources | None) -> tuple[str, ...]:
    """What nothing here limits of what was asked for, in a sentence, if there is something to say."""
    wanted = resources or Resources()
    parts = []
    if not usage.AVAILABLE and (wanted.memory or wanted.cpu):
        parts.append(f"cpu={wanted.cpu!r} and memory={wanted.memory!r} (replicas are watched on Linux only)")
    cores = wanted.cpu_limit()
    if usage.AVAILABLE and cores and cores != math.ceil(cores):
        parts.append(f"cpu={wanted.cpu!r} but for its whole cores (replicas are bound to {math.ceil(cores)})")
    if wanted.disk:
        parts.append(f"disk={wanted.disk!r} (a file system has no limit for one process)")
    if wanted.shm and wanted.shm != "auto":
        parts.append(f"shm={wanted.shm!r} (shared memory that is in use counts as memory)")
    return (f"Of the resources, nothing limits {', nor '.join(parts)}.",) if parts else ()
