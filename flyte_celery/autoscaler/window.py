"""The largest value of the last so many seconds, as an immutable and compact tuple.

A sliding-window maximum needs only the values that no later, larger one has overtaken: from left to right the times
rise and the values fall, so the first entry is the answer. Seen every second for a window of 300 s, a burst of
4, 2, 2, 1 wanted replicas is three entries, not 300; with values between 0 and `n` there are at most `n + 1`.
"""

from __future__ import annotations

#: Entries `(seconds, value)`: times rise, values fall strictly.
Peaks = tuple[tuple[float, int], ...]


def push(peaks: Peaks, now: float, value: int, span: float) -> Peaks:
    """Add what holds now and forget what is `span` seconds old or older.

    Args:
        peaks: What earlier calls returned; `()` at first.
        now: Monotonic seconds, not smaller than in earlier calls.
        value: What holds at `now`. It stays in the window even when `span` is 0.
        span: Length of the window in seconds.

    Returns:
        The new window, never empty.
    """
    kept = tuple(peak for peak in peaks if now - peak[0] < span and peak[1] > value)
    return (*kept, (now, value))


def largest(peaks: Peaks) -> int:
    """The largest value of a window that `push` returned."""
    return peaks[0][1]
