"""Which queue a task goes to: environment tasks to their environment's, everything else as the app says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import current_app

from ..environment import environments
from ..fleet.catalogue import Catalogue
from ..fleet.connection import connect_to_broker
from ..names import split_task_name
from ..queues import environment_queue


def route(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> dict[str, Any] | None:
    """Celery router: a task named `environment.function` goes to the environment's queue.

    It serves `app.send_task("env.func")` in processes that have not imported the task; a task object carries its
    queue itself. An environment that this process has not imported either is looked up among those that workers have
    published; plain tasks of this app, whose names may look the same, are never looked up.

    Celery's own tasks that run the items of `map`, `starmap` and `chunks` go where the task goes whose items they are.
    """
    if name in _OF_ITEMS:
        name = _task_of_items(kwargs)
    split = split_task_name(name)
    if split is None or (split[0] not in environments() and (name in current_app.tasks or not _published(split[0]))):
        return None
    # As an object: naming it would add it to the queues that a plain worker of this process consumes after a reconnect.
    return {"queue": environment_queue(current_app, split[0])}


def _task_of_items(kwargs: Any) -> str:
    """The name of the task that runs for each item; "" where the call is no such call."""
    signature = kwargs.get("task") if isinstance(kwargs, Mapping) else None
    return str(signature.get("task") or "") if isinstance(signature, Mapping) else ""


def _published(environment: str) -> bool:
    conf: Any = current_app.conf
    url = conf.broker_read_url or conf.broker_url
    catalogue = _catalogues.get(url)
    if catalogue is None:
        catalogue = _catalogues[url] = Catalogue(connect_to_broker(current_app))
    return catalogue.knows(environment)


_catalogues: dict[str | None, Catalogue] = {}

#: Celery's tasks that run another one for each of some items, which they take as `kwargs["task"]`.
_OF_ITEMS = frozenset({"celery.map", "celery.starmap", "celery.chunks"})


def route_environments(sender: Any, **_: Any) -> None:
    """Put the router before the app's own routes; Celery calls this whenever it has read the app's configuration."""
    conf = sender.conf
    routes = conf.task_routes
    routes = [] if routes is None else list(routes) if isinstance(routes, list | tuple) else [routes]
    if route not in routes:
        conf.task_routes = [route, *routes]
