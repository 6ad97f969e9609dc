"""Which of Redis's errors pass by themselves, and how long to wait before the next attempt."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

_PASSING = (
    ConnectionError,
    TimeoutError,
    OutOfMemoryError,
    ReadOnlyError,
    NoPermissionError,
    MasterDownError,
    ClusterDownError,
    TryAgainError,
    OSError,
)

#: The same among errors without a class of their own, or wrapped by a script in words of its own.
_WORDS = re.compile(
    r"\b(OOM|MISCONF|READONLY|LOADING|BUSY|MASTERDOWN|NOREPLICAS|CLUSTERDOWN|NOPERM|NOAUTH)\b"
    r"|can't run this command|read only replica"
)


def passes(error: BaseException) -> bool:
    """Whether the same command can succeed later: the server is away, full, read-only, loading, or refuses for now."""
    return isinstance(error, _PASSING) or (isinstance(error, ResponseError) and bool(_WORDS.search(str(error))))


def backoff(first: float = 0.1, most: float = 5.0) -> Iterator[float]:
    """Seconds to wait before each further attempt, without end, spread so that many do not come at once."""
    delay = first
    while True:
        yield delay * random.uniform(0.75, 1.25)
        delay = min(delay * 2, most)
