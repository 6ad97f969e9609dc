"""The queue of an environment, as clients publish to it and its worker consumes it: both must declare the same.

RabbitMQ refuses whoever declares a queue differently from the one that exists, so there is one place that says what an
environment's queue is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu.entity import Exchange

from .names import queue_name

#: Queue argument of RabbitMQ that names the type of a queue.
TYPE_ARGUMENT = "x-queue-type"


def environment_queue(app: Any, environment: str) -> Any:
    """The queue of an environment: the one in the app's `task_queues`, else declared like the app's default queue.

    Args:
        app: The Celery app.
        environment: The environment's name.

    Returns:
        A `kombu.Queue`.
    """
    name, conf = queue_name(environment), app.conf
    configured = conf.task_queues or ()
    if name in (configured if isinstance(configured, Mapping) else [queue.name for queue in configured]):
        return app.amqp.queues[name]
    queue = app.amqp.queues.new_missing(name)
    arguments = dict(queue.queue_arguments or {})
    if conf.task_default_queue_type == "quorum" and TYPE_ARGUMENT not in arguments:
        arguments[TYPE_ARGUMENT] = "quorum"
        if not conf.task_create_missing_queue_exchange_type:
            # Celery's delayed delivery, which belongs to quorum queues, needs a topic exchange: users set this then.
            queue.exchange = Exchange(name, type=conf.task_default_exchange_type)
    if conf.task_queue_max_priority is not None:
        arguments.setdefault("x-max-priority", conf.task_queue_max_priority)
    queue.queue_arguments = arguments or None
    return queue
