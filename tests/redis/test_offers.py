"""What hosts offer, on a real Redis: for as long as a worker's lease, by the server's clock."""

from __future__ import annotations

import redis

from flyte_celery.fleet.offers import offers, publish, withdraw
from flyte_celery.names import offers_key, offers_until_key
from tests.helpers.waiting import wait_until


def test_offers_are_read_until_they_are_withdrawn(redis_client: redis.Redis) -> None:
    """In the order of their workers."""
    publish(redis_client, "b@there", {"labels": {"zone": "b"}}, 60)
    publish(redis_client, "a@there", {"labels": {"zone": "a"}}, 60)
    assert [offer["labels"]["zone"] for offer in offers(redis_client)] == ["a", "b"]
    publish(redis_client, "a@there", {"labels": {"zone": "c"}}, 60)
    withdraw(redis_client, "b@there")
    assert [offer["labels"]["zone"] for offer in offers(redis_client)] == ["c"]


def test_an_offer_ends_with_its_lease(redis_client: redis.Redis) -> None:
    """And its traces with the next one that is published."""
    publish(redis_client, "dead@there", {}, 0.05)
    wait_until(lambda: offers(redis_client) == [])
    publish(redis_client, "alive@there", {}, 60)
    assert redis_client.hkeys(offers_key()) == ["alive@there"]
    assert redis_client.zrange(offers_until_key(), 0, -1) == ["alive@there"]


def test_nothing_stays_for_ever(redis_client: redis.Redis) -> None:
    """When the whole fleet is gone nobody tidies up."""
    publish(redis_client, "last@there", {}, 60)
    assert all(0 < int(redis_client.ttl(key)) <= 86400 for key in (offers_key(), offers_until_key()))  # type: ignore[arg-type]
