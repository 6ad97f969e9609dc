"""Waiting for something to become true, in place of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds between two looks: short beside everything that tests wait for, long enough to leave the processor alone.
_INTERVAL = 0.01


def wait_until(predicate: Callable[[], T], timeout: float = 30.0, description: str = "the condition") -> T:
    """Call `predicate` until what it returns is true, and return that.

    Args:
        predicate: Looks at the world. What it raises is not caught.
        timeout: Seconds to wait at most. The predicate is asked at least once.
        description: What is being waited for, as in "Waited 10 s for *two replicas*".

    Returns:
        The first true value.

    Raises:
        AssertionError: The time is over; the message has the description and the last value.
    """
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"Waited {timeout:g} s for {description}; the last value was {value!r}.")
        time.sleep(_INTERVAL)
    return value
