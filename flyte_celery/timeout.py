"""`Timeout`: how long a task may run, wait, and take altogether."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

#: What a time may be written as: seconds, or a `timedelta`. 0 and None mean no limit.
Time = timedelta | int | None


@dataclass
class Timeout:
    """Limits on a task's time, each as seconds or as a `timedelta`; 0 and None mean no limit.

    Nothing is checked or converted here: `Timeout.of` does both, where the limits are used.

    Args:
        max_runtime: Longest time that one attempt may run.
        max_queued_time: Longest time that one attempt may wait for a replica.
        deadline: Longest time for all attempts together, from the call on.
    """

    max_runtime: Time = None
    max_queued_time: Time = None
    deadline: Time = None

    @classmethod
    def of(cls, raw: Timeout | Time) -> Timeout:
        """What `timeout=` of a task means.

        Args:
            raw: Seconds or a `timedelta` for the longest runtime, a `Timeout` for more, 0 or None for no limit.

        Returns:
            A new object, whose fields are positive `timedelta`s, or None for no limit.

        Raises:
            ValueError: `raw`, or a field of it, is none of those, or negative.
        """
        if not isinstance(raw, Timeout):
            return cls(_limit("timeout", raw))
        return cls(
            _limit("max_runtime", raw.max_runtime),
            _limit("max_queued_time", raw.max_queued_time),
            _limit("deadline", raw.deadline),
        )

    @property
    def max_runtime_seconds(self) -> float | None:
        """`max_runtime` in seconds; None for no limit. Raises `ValueError` as `Timeout.of` does."""
        return _seconds("max_runtime", self.max_runtime)

    @property
    def max_queued_seconds(self) -> float | None:
        """`max_queued_time` in seconds; None for no limit. Raises `ValueError` as `Timeout.of` does."""
        return _seconds("max_queued_time", self.max_queued_time)

    @property
    def deadline_seconds(self) -> float | None:
        """`deadline` in seconds; None for no limit. Raises `ValueError` as `Timeout.of` does."""
        return _seconds("deadline", self.deadline)


def _limit(field: str, value: object) -> timedelta | None:
    limit = timedelta(seconds=value) if isinstance(value, int) else value
    if not isinstance(limit, timedelta | None):
        raise ValueError(f"{field}={value!r} is no time: use seconds as an int, a timedelta, or a Timeout.")
    if limit is not None and limit < timedelta(0):
        raise ValueError(f"{field}={value!r} is negative: use 0 for no limit.")
    return limit or None


def _seconds(field: str, value: object) -> float | None:
    limit = _limit(field, value)
    return None if limit is None else limit.total_seconds()
