"""Where the time comes from: pure code takes `now` as an argument, whatever drives it takes a `Clock`."""

from __future__ import annotations

import time
from typing import Protocol

#: Linux has a clock that goes on while the machine is suspended; on others the usual one has to do.
_ALWAYS_ON: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def always_on() -> float:
    """Seconds since some moment, counted while the machine is suspended, too, and alike by all of its processes.

    For what ends by the clock of another machine: a lease is over whether or not its owner was awake.
    """
    return time.clock_gettime(_ALWAYS_ON)


class Clock(Protocol):
    """Two clocks that must not be mixed: one for durations, one for dates."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back. For durations and deadlines within one process."""
        ...

    def time(self) -> float:
        """Seconds since 1970 (UTC). For what people and other machines read; may jump."""
        ...


class SystemClock:
    """This machine's clocks."""

    def monotonic(self) -> float:
        """`time.monotonic()`."""
        return time.monotonic()

    def time(self) -> float:
        """`time.time()`."""
        return time.time()
