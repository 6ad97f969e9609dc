"""The catalogue of environments on a real Redis: published by workers, read by whoever routes."""

from __future__ import annotations

import redis

from flyte_celery.fleet.catalogue import Catalogue
from flyte_celery.fleet.connection import connect
from flyte_celery.names import environment_key
from tests.helpers.redis_server import RedisServer


def test_a_published_environment_is_known_to_other_processes(redis_url: str) -> None:
    Catalogue(connect(redis_url)).publish("predict", {"queue": "predict"})
    assert Catalogue(connect(redis_url)).knows("predict")
    assert not Catalogue(connect(redis_url)).knows("nothing")


def test_an_entry_expires_by_itself(redis_url: str, redis_client: redis.Redis) -> None:
    Catalogue(connect(redis_url)).publish("predict", {})
    assert 0 < redis_client.ttl(environment_key("predict")) <= 30 * 24 * 3600


def test_an_answer_is_remembered_for_a_while(redis_url: str, redis_client: redis.Redis) -> None:
    """Routing a burst of unknown names costs one question, not one each."""
    catalogue = Catalogue(connect(redis_url))
    assert not catalogue.knows("late")
    Catalogue(connect(redis_url)).publish("late", {})
    assert not catalogue.knows("late")


def test_a_redis_that_does_not_answer_knows_nothing_and_breaks_nothing(own_redis_server: RedisServer) -> None:
    catalogue = Catalogue(connect(own_redis_server.url()))
    own_redis_server.stop()
    assert not catalogue.knows("predict")
    catalogue.publish("predict", {})


def test_brokers_that_are_no_redis_have_no_catalogue() -> None:
    assert connect("amqp://guest@localhost//") is None
    assert connect(None) is None
    assert not Catalogue(None).knows("predict")
