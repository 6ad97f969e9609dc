"""What can go wrong: one function per fault. It strikes, mends what does not mend itself, and says whom it hit."""

from __future__ import annotations

from tests.chaos.faults.fault import Fault, Scene
from tests.chaos.faults.redis import REDIS
from tests.chaos.faults.replicas import REPLICAS
from tests.chaos.faults.work import WORK
from tests.chaos.faults.workers import WORKERS

__all__ = ["FAULTS", "Fault", "Scene"]

#: All of them, in the order of the report.
FAULTS: tuple[Fault, ...] = (*REPLICAS, *WORKERS, *REDIS, *WORK)
