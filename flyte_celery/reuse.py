"""`ReusePolicy`: how many replicas an environment keeps warm, and for how long."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, get_args

logger = logging.getLogger("flyte_celery")

Scope = Literal["global", "run"]

#: The shortest time that either TTL may be.
MIN_TTL = timedelta(seconds=30)


@dataclass
class ReusePolicy:
    """Keeps replicas of an environment warm between tasks.

    The environment serves at most `max_replicas * concurrency` tasks at once. After construction `replicas` reads
    back as a pair and both TTLs as `timedelta`. A later assignment to a field is not checked.

    Args:
        replicas: How many replicas: a fixed number, or a pair (min, max).
        idle_ttl: Seconds, or a `timedelta`, of at least 30 s without any work after which the whole environment
            rests, its minimum included.
        concurrency: Tasks that one replica runs at once, at least 1. More than 1 is for `async def` tasks alone.
        scaledown_ttl: Seconds, or a `timedelta`, of at least 30 s for which a replica has to be surplus before it is
            let go. Never goes below the minimum.
        scope: `"global"`: all runs share the replicas. `"run"`: every run, a root task and all that it calls, has its
            own within the same bounds, which end with it.

    Raises:
        ValueError: A value has the wrong type, or is out of its range.
    """

    replicas: int | tuple[int, int] = 2
    idle_ttl: int | timedelta = 30
    concurrency: int = 1
    scaledown_ttl: int | timedelta = 30
    scope: Scope = "global"

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise ValueError(f'scope={self.scope!r} is not possible: use "global" or "run".')
        self.replicas = _checked_replicas(self.replicas)
        if not isinstance(self.concurrency, int):
            raise ValueError(f"concurrency={self.concurrency!r} must be an int: use a whole number, 1 or more.")
        if self.concurrency < 1:
            raise ValueError(f"concurrency={self.concurrency!r} must be at least 1: a replica runs tasks.")
        self.idle_ttl = _checked_ttl("idle_ttl", self.idle_ttl)
        if self.max_replicas == 1 and self.concurrency == 1:
            logger.warning(
                "One replica with a concurrency of 1 runs one task at a time. A task that waits for a child gives its "
                "slot away here; in Flyte it would starve a child of the same environment: where the code is to run "
                "there, too, use replicas=2 or more, or a higher concurrency."
            )
        self.scaledown_ttl = _checked_ttl("scaledown_ttl", self.scaledown_ttl)

    @property
    def min_replicas(self) -> int:
        """Fewest replicas while the environment is not at rest."""
        return self.replicas[0] if isinstance(self.replicas, tuple) else self.replicas

    @property
    def max_replicas(self) -> int:
        """Most replicas at any time."""
        return self.replicas[1] if isinstance(self.replicas, tuple) else self.replicas

    def get_idle_ttl(self) -> timedelta:
        """`idle_ttl` as a `timedelta`, also after it was assigned as seconds."""
        return _as_timedelta("idle_ttl", self.idle_ttl)

    def get_scaledown_ttl(self) -> timedelta | None:
        """`scaledown_ttl` as a `timedelta`, also after it was assigned as seconds; None after None was assigned."""
        return None if self.scaledown_ttl is None else _as_timedelta("scaledown_ttl", self.scaledown_ttl)


def _checked_replicas(replicas: object) -> tuple[int, int]:
    if replicas is None:
        raise ValueError("replicas=None is not possible, it cannot be None: use a number, or a pair (min, max).")
    if isinstance(replicas, int):
        replicas = (replicas, replicas)
    if not isinstance(replicas, tuple) or len(replicas) != 2:
        raise ValueError(f"replicas={replicas!r} must be an int or a tuple of two ints: use 2, or (1, 5).")
    for name, value in zip(("min", "max"), replicas, strict=True):
        if not isinstance(value, int):
            raise ValueError(f"replicas={replicas!r}: its {name} must be an int: use a pair such as (1, 5).")
    for name, value in zip(("min", "max"), replicas, strict=True):
        if value < 0:
            raise ValueError(f"replicas={replicas!r}: its {name} must be >= 0: use 0 or more.")
    low, high = replicas
    if low > high:
        raise ValueError(f"replicas={replicas!r}: its min must be <= its max: write ({high}, {low}).")
    return low, high


def _checked_ttl(field: str, value: object) -> timedelta:
    ttl = _as_timedelta(field, value)
    if ttl < MIN_TTL:
        raise ValueError(f"{field}={value!r} must be at least 30 seconds: use 30 or more.")
    return ttl


def _as_timedelta(field: str, value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, int):
        raise ValueError(f"{field}={value!r} must be an int (seconds) or timedelta: use 300 or timedelta(minutes=5).")
    return timedelta(seconds=value)
