"""`RetryStrategy` and `Backoff`: how often a failed task is tried again, and how long to wait in between."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Backoff:
    """Waiting times between attempts, which may grow.

    A base of 10 s, a factor of 2 and a cap of 5 min mean 10, 20, 40, 80, 160, 300, 300, ... seconds.

    Args:
        base: Time before the first retry.
        factor: Each waiting time is this many times the one before, at least 1.
        cap: Longest waiting time; needed when `factor` is above 1.

    Raises:
        TypeError: `base` or `cap` is no `timedelta`.
        ValueError: `base` or `cap` is negative, `factor` is below 1 or not finite, or grows without a cap.
    """

    base: timedelta
    factor: float = 1.0
    cap: timedelta | None = None

    def __post_init__(self) -> None:
        for field, value in (("base", self.base), ("cap", self.cap)):
            if value is None and field == "cap":
                continue
            if not isinstance(value, timedelta):
                raise TypeError(f"{field}={value!r} is no timedelta: use one, such as timedelta(seconds=10).")
            if value < timedelta(0):
                raise ValueError(f"{field}={value!r} is negative: use a time of 0 or more.")
        if not isinstance(self.factor, int | float) or not math.isfinite(self.factor):
            raise ValueError(f"factor={self.factor!r} is no finite number: use 1 or more.")
        if self.factor < 1:
            raise ValueError(f"factor={self.factor!r} would shorten each wait: use 1 or more.")
        if self.factor > 1 and self.cap is None:
            raise ValueError(f"factor={self.factor!r} grows without bound: give a cap, such as timedelta(minutes=5).")

    def compute_delay(self, n: int) -> timedelta:
        """How long to wait before a retry.

        Args:
            n: Number of the retry; 0 is the first.

        Raises:
            ValueError: `n` is negative.
        """
        if n < 0:
            raise ValueError(f"n={n!r} is no number of a retry: use 0 for the first one.")
        if not self.base or self.cap is None:
            # Without a cap the factor is 1.
            return self.base
        # Compared as logarithms first: factor**n alone overflows from some n on.
        if not self.cap or n * math.log(self.factor) > math.log(self.cap / self.base) + 1e-9:
            return self.cap
        return min(self.base * self.factor**n, self.cap)


@dataclass
class RetryStrategy:
    """How often a failed task is tried again; `count=3` means up to four attempts.

    Args:
        count: Most retries, 0 or more.
        backoff: Waiting times. None: those of the place where the task runs. Not checked.

    Raises:
        ValueError: `count` is no int, or negative.
    """

    count: int
    backoff: Backoff | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.count, int):
            raise ValueError(f"count={self.count!r} is no number of retries: use an int, 0 or more.")
        if self.count < 0:
            raise ValueError(f"count={self.count!r} is negative: use 0 for no retry.")

    @classmethod
    def of(cls, raw: int | RetryStrategy) -> RetryStrategy:
        """What `retries=` of a task means: a count alone, or a strategy.

        Raises:
            ValueError: It is neither, or the count is negative.
        """
        return raw if isinstance(raw, RetryStrategy) else cls(raw)
