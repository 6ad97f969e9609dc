"""The clocks of this machine."""

from __future__ import annotations

import time

from flyte_celery.clock import Clock, SystemClock


def test_the_system_clock_tells_this_machines_times() -> None:
    clock: Clock = SystemClock()
    assert time.monotonic() <= clock.monotonic() <= time.monotonic()
    assert time.time() - 1 < clock.time() < time.time() + 1
