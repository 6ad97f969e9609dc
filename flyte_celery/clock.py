"""Where the time comes from: pure code takes `now` as an argument, whatever drives it takes a `Clock`."""

from __future__ import annotations

import time
from typing import Protocol


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
