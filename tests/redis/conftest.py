"""Tests of what is kept in Redis, against a real server: an empty database per test."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest
import redis


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the test's own database that returns text."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the test's database that returns bytes, as workers have it."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


class KeptKeys:
    """The keys that may stay for ever, as a test allows them."""

    def __init__(self) -> None:
        self._patterns: list[str] = []

    def allow(self, *patterns: str) -> None:
        """Allow keys that match a shell pattern (`celery`, `_kombu.binding.*`) to have no time to live."""
        self._patterns.extend(patterns)

    def allows(self, key: str) -> bool:
        """Whether some pattern matches the key."""
        return any(fnmatchcase(key, pattern) for pattern in self._patterns)


@pytest.fixture
def keys_expire(redis_client: redis.Redis) -> Iterator[KeptKeys]:
    """Fail the test when it leaves a key without a time to live: what nobody removes fills the server in the end."""
    kept = KeptKeys()
    yield kept
    forever = sorted(key for key in redis_client.scan_iter() if redis_client.ttl(key) == -1 and not kept.allows(key))
    if forever:
        pytest.fail(f"The test left keys without a time to live: {forever}", pytrace=False)
