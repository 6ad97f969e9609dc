"""Clients and workers declare the same queue for an environment, as the app's settings say."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue

from flyte_celery.queues import environment_queue


def declared(**settings: Any) -> tuple[str, dict[str, Any]]:
    """The exchange type and the arguments of an environment's queue."""
    app = Celery("proj", broker="amqp://nowhere//", set_as_current=False)
    app.conf.update(settings)
    queue = environment_queue(app, "ml")
    assert (queue.name, queue.routing_key, queue.exchange.name) == ("ml", "ml", "ml")
    return queue.exchange.type, queue.queue_arguments or {}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("direct", {})),
        ({"task_default_exchange_type": "topic"}, ("direct", {})),
        ({"task_queue_max_priority": 9}, ("direct", {"x-max-priority": 9})),
        ({"task_default_queue_type": "quorum"}, ("direct", {"x-queue-type": "quorum"})),
        ({"task_create_missing_queue_type": "quorum"}, ("direct", {"x-queue-type": "quorum"})),
        (
            {"task_default_queue_type": "quorum", "task_default_exchange_type": "topic"},
            ("topic", {"x-queue-type": "quorum"}),
        ),
        (
            {"task_create_missing_queue_type": "quorum", "task_create_missing_queue_exchange_type": "topic"},
            ("topic", {"x-queue-type": "quorum"}),
        ),
    ],
    ids=str,
)
def test_the_queue_follows_the_apps_settings(settings: dict[str, Any], expected: tuple[str, dict[str, Any]]) -> None:
    assert declared(**settings) == expected


def test_the_queue_is_none_that_a_plain_worker_consumes() -> None:
    app = Celery("proj", broker="amqp://nowhere//", set_as_current=False)
    environment_queue(app, "ml")
    assert list(app.amqp.queues) == ["celery"]


def test_a_queue_in_task_queues_is_used_as_it_is() -> None:
    app = Celery("proj", broker="amqp://nowhere//", set_as_current=False)
    app.conf.task_queues = [Queue("ml", Exchange("work"), routing_key="m", queue_arguments={"x-max-length": 10})]
    queue = environment_queue(app, "ml")
    assert (queue.exchange.name, queue.routing_key, queue.queue_arguments) == ("work", "m", {"x-max-length": 10})
