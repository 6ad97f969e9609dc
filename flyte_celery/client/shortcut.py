"""Where a publish may leave out Celery's general path, because nothing of what that path offers is in use.

Celery and kombu let nearly every step of a publish be replaced: signals, routers, producers, serializers, transports,
classes. This module knows these places. What is looked at once, when a task is first submitted, is what a program
sets up at its start; what is looked at for each call is what tests and tools switch while it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from celery import Celery, signals
from celery.app import base as celery_app_base
from celery.app import task as celery_app_task
from celery.app.amqp import AMQP
from celery.app.routes import Router
from kombu import messaging as kombu_messaging
from kombu.connection import Connection
from kombu.messaging import Producer
from kombu.transport import redis as kombu_redis

from .. import kombu_json
from .results import needs_no_preparation
from .routing import route


def closed_for_now(app: Celery) -> bool:
    """Whether something is switched on at this moment that each call must go through Celery's general path for."""
    conf: Any = app.conf
    router = app.amqp.router
    return bool(
        signals.before_task_publish.receivers
        or signals.after_task_publish.receivers
        or signals.task_sent.receivers
        or conf.task_always_eager
        or conf.task_send_sent_event
        # Ours comes first and always has an answer for a task that this process knows, so no router after it is asked.
        or type(router) is not Router
        or not router.routes
        or router.routes[0] is not route
    )


def closed_for(task: Any, inherited: Callable[..., Any], queue: Any) -> str | None:
    """Why the calls of a task must always go through Celery's general path; None when nothing speaks against it.

    Args:
        task: The registered Celery task.
        inherited: The `apply_async` that it would use without ours.
        queue: The environment's `kombu.Queue`.
    """
    app = task.app
    amqp, conf = app.amqp, app.conf
    options = celery_app_task.extract_exec_options(task)
    obstacles = {
        "its class has an apply_async of its own": not _defined_by(celery_app_task, inherited),
        "its class has a shadow_name of its own": not _defined_by(celery_app_task, type(task).shadow_name),
        "its app has a send_task of its own": (
            "send_task" in vars(app) or not _defined_by(celery_app_base, type(app).send_task)
        ),
        "its app has an AMQP class of its own": type(amqp) is not AMQP or amqp.Producer is not Producer,
        "kombu's producer is wrapped": not _defined_by(kombu_messaging, Producer.publish),
        "it uses an old message protocol": amqp.create_task_message != amqp.as_task_v2,
        "it uses another serializer than JSON": options["serializer"] != "json" or not kombu_json.is_kombus(),
        "its messages are compressed": bool(options["compression"] or conf.task_compression),
        "it has an exchange or a routing key of its own": bool(options["exchange"] or options["routing_key"]),
        "it has publish flags": bool(options["immediate"] or options["mandatory"] or options["delivery_mode"]),
        "its time limits contradict each other": bool(
            task.time_limit and task.soft_time_limit and task.soft_time_limit > task.time_limit
        ),
        "its queue has an exchange or arguments of its own": (
            queue.exchange.type != "direct" or bool(queue.expires) or "x-expires" in (queue.queue_arguments or {})
        ),
        "its delivery mode is not a number": type(delivery_mode(app, queue)) is not int,
        "its result backend prepares each result": not needs_no_preparation(task.backend),
    }
    return next((why for why, holds in obstacles.items() if holds), None)


def closed_for_broker(connection: Connection) -> str | None:
    """Why messages to a broker must be published by kombu; None when nothing speaks against it. Does not connect."""
    options = connection.transport_options or {}
    transport = type(connection.transport)
    obstacles = {
        # Nor is a subclass of its transport, such as Sentinel's, where the server may change; but for the worker's own.
        "the broker is not plain Redis": (
            transport is not kombu_redis.Transport and "publishes_as_kombus" not in vars(transport)
        ),
        "the broker has several URLs": len(connection.alt) > 1,
        "the broker's keys have a prefix": bool(options.get("global_keyprefix")),
        "message bodies are encoded in another way": options.get("body_encoding", "base64") != "base64",
    }
    return next((why for why, holds in obstacles.items() if holds), None)


def delivery_mode(app: Celery, queue: Any) -> Any:
    """AMQP's delivery mode of the messages of a queue; Redis carries it and does nothing with it."""
    return queue.exchange.delivery_mode or app.conf.task_default_delivery_mode


def _defined_by(module: Any, function: Any) -> bool:
    """Whether a function is the one that a module's own file defines, and neither an override nor a tool's wrapper."""
    return type(function) is FunctionType and function.__code__.co_filename == module.__file__
