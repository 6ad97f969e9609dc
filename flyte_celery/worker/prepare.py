"""Which environment a worker serves, and with what settings: decided once, before it takes any work.

`prepare` runs at Celery's `worker_init`, which fires before the pool class is resolved and passes the worker itself;
so plain `celery -A proj worker -Q ENV` becomes an environment's worker without any other option.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from celery.utils.nodenames import gethostname
from celery.utils.quorum_queues import detect_quorum_queues

from ..environment import TaskEnvironment, environments
from ..fleet.connection import connect_to_broker, is_cluster, is_too_old
from ..gpu.host import Host, missing, this_host
from ..names import PRIORITY_STEPS, queue_name
from ..queues import environment_queue
from ..registry import check_conflicts
from ..settings import Settings
from ..urls import redacted
from . import revoking, transport
from .assembly import assembled
from .events import wait_for_no_event
from .keeper import Keeper
from .pool import ReplicaPool
from .provisions import CannotProvide, Provisions, provide
from .serving import CannotServe

#: Seconds that a worker waits at its start for a broker that does not answer before it gives up.
BROKER_PATIENCE = 10.0

#: kombu's options for the Redis connections of an environment's worker, where the app has none of its own: a connection
#: that is dead without having said so is noticed within seconds, not within a minute or never.
BROKER_OPTIONS = {
    "health_check_interval": 5,
    "socket_timeout": 5,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
}


def prepare(worker: Any) -> None:
    """Turn a Celery worker into an environment's worker when its queue is an environment's.

    Exits the process with a message when it cannot: Celery logs and ignores exceptions of signal handlers, but a
    worker that would serve the wrong thing must not start.
    """
    try:
        environment = _environment_of(worker)
        revoking.register()
        if environment is None:
            return
        settings = Settings.from_environ(os.environ)
        host = host_of(worker.options, settings)
        _check_host(environment, host)
        provisions = provide(worker.app, environment, strict_image=bool(worker.options.get("strict_image")))
        check_broker(worker.app)
        _become(worker, environment, settings, host, provisions)
    except (CannotServe, LookupError, CannotProvide) as exc:
        print(f"Error: {exc}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except Exception:  # else Celery would log it, and serve the environment's queue as any other
        traceback.print_exc()
        raise SystemExit(1) from None


def _environment_of(worker: Any) -> TaskEnvironment | None:
    known = environments()
    queues = list(worker.app.amqp.queues.consume_from)
    named = [name for name in queues if name in known]
    if not named:
        return None
    refuse_conflicts()
    if len(queues) > 1:
        raise CannotServe(
            f"One worker serves one environment, but this one was asked for the queues {', '.join(sorted(queues))}. "
            f"Start a worker for each: `celery -A ... env worker {named[0]}`, and so on, or all with `env up`."
        )
    return known[named[0]]


def refuse_conflicts() -> None:
    """Refuse to take work while two definitions claim one name.

    Raises:
        CannotServe: Names both places of every conflict.
    """
    try:
        check_conflicts()
    except ValueError as exc:
        raise CannotServe(str(exc)) from None


def check_broker(app: Any) -> None:
    """Make sure that there is a broker and that it answers.

    Raises:
        CannotServe: No broker is configured, or it did not answer within `BROKER_PATIENCE` seconds.
    """
    if app.conf.broker_url is None and app.conf.broker_read_url is None:
        raise CannotServe(
            "The Celery app has no broker. Set `broker_url`, or FLYTE_CELERY_BROKER_URL, or use the bundled Redis of "
            'this directory with `flyte.init(app=app, broker="embedded")`.'
        )
    if app.conf.broker_connection_retry_on_startup:
        return  # the user asked Celery to wait for the broker as long as it takes
    connection = app.connection_for_read()
    try:
        connection.ensure_connection(max_retries=4, interval_start=0.2, interval_step=0.5, timeout=BROKER_PATIENCE)
    except Exception as exc:
        why = str(exc).rstrip(".")
        raise CannotServe(
            f"The broker {redacted(connection.as_uri())} does not answer: {why}. Start it or correct `broker_url`; to "
            "wait for it instead, set `broker_connection_retry_on_startup=True`."
        ) from None
    finally:
        connection.release()


def _become(worker: Any, environment: TaskEnvironment, settings: Settings, host: Host, provisions: Provisions) -> None:
    app = worker.app
    name = environment.name
    nick, _, machine = worker.hostname.partition("@")
    if nick == "celery":  # nobody gave it a name
        worker.hostname = f"{name}@{machine or gethostname()}"
    broker_url = app.conf.broker_read_url or app.conf.broker_url
    # What `-Q` has made of the name is not what clients declare, where the app says how its queues are.
    app.amqp.queues.select_add(environment_queue(app, name))
    keeper = _claiming(worker, environment, settings, broker_url)
    serving = assembled(worker, environment, settings, host, provisions, broker_url, keeper)
    worker.pool_cls = type("ReplicaPool", (ReplicaPool,), {"serving": serving, "__module__": ReplicaPool.__module__})
    # Celery's consumer takes its prefetch count from these two: as many messages as can run at once.
    worker.concurrency = max(1, serving.capacity)
    worker.prefetch_multiplier = 1
    # The same mapping that Celery hands to every bootstep next. Our own autoscaler replaces Celery's, and a node of
    # an environment neither mingles (about 1 s at start) nor gossips.
    worker.options.update(autoscale=None, without_mingle=True, without_gossip=True)
    app.conf.worker_cancel_long_running_tasks_on_connection_loss = False
    # A command that the broker refuses for a while would end the worker, with everything that it runs. RabbitMQ closes
    # the channel of one that has not acknowledged a message for 30 minutes.
    app.conf.broker_channel_error_retry = True
    # After a lost connection Celery would claim as many messages as there are processes; a replica runs many tasks.
    app.conf.worker_enable_prefetch_count_reduction = False
    if serving.redelivers:
        _check_queue(app, name)


def _check_queue(app: Any, name: str) -> None:
    """Declare the queue, as the worker will do again and again; beside quorum queues, all that the app knows.

    Celery's delayed delivery, which comes with quorum queues, binds them all, and takes one that nobody has declared
    yet for a failure.

    Raises:
        CannotServe: The environment's queue exists as something else.
    """
    with app.connection_for_read() as connection:
        try:
            environment_queue(app, name)(connection.default_channel).declare()
        except connection.channel_errors as exc:
            raise CannotServe(
                f"RabbitMQ refuses the queue {queue_name(name)!r}: {exc} Serve it with the settings that it was "
                "declared with (`task_default_queue_type` and the like), or delete it when it is empty."
            ) from None
        if not detect_quorum_queues(app, "amqp")[0]:
            return
        for other in [queue for queue in app.amqp.queues.values() if not queue.auto_delete]:
            with contextlib.suppress(*connection.channel_errors), connection.channel() as channel:
                other(channel).declare()


def _claiming(worker: Any, environment: TaskEnvironment, settings: Settings, url: str) -> Keeper | None:
    """Choose the transport with claims where the broker can have them; elsewhere Celery's own serves the queue.

    Raises:
        CannotServe: The broker is a Redis Cluster.
    """
    conf = worker.app.conf
    scheme = url.split("://", 1)[0]
    options = conf.broker_transport_options or {}
    several = ";" in url and scheme != "sentinel"  # claims live on one server
    client = None if several else connect_to_broker(worker.app)
    if client is not None and is_cluster(client):
        raise CannotServe(
            f"The broker {redacted(url)} is a Redis Cluster, where neither kombu's transport nor claims work: their "
            "commands have keys of several slots. Use one Redis without cluster mode, with Sentinels for a fail-over."
        )
    if client is None or options.get("global_keyprefix") or options.get("sep") or is_too_old(client):
        return None
    queue = queue_name(environment.name)
    steps = tuple(options.get("priority_steps") or PRIORITY_STEPS)
    keeper = Keeper(client, queue, steps, worker.hostname, settings.lease)
    keeper.begin()
    wait_for_no_event(worker.app, keeper)
    transport.Claiming.keeper = keeper
    conf.broker_transport_options = {**BROKER_OPTIONS, **options}
    alias = transport.SENTINEL_ALIAS if scheme == "sentinel" else transport.ALIAS
    if "+" in scheme:  # kombu takes the transport of such URLs from the URL alone
        conf.broker_read_url = url.replace("redis+", f"{alias}+", 1)
    else:
        conf.broker_transport = alias
    return keeper


def host_of(options: Mapping[str, Any], settings: Settings) -> Host:
    """This host, as the options `devices` and `labels`, or the settings of that name, describe it.

    Raises:
        CannotServe: They cannot be read.
    """
    devices, labels = (options.get(name) or getattr(settings, name) for name in ("devices", "labels"))
    try:
        return this_host(os.environ, devices, labels)
    except ValueError as exc:
        raise CannotServe(str(exc)) from None


def _check_host(environment: TaskEnvironment, host: Host) -> None:
    """Make sure that this host can serve an environment.

    Raises:
        CannotServe: Says what it lacks.
    """
    if lacks := missing(environment, host):
        raise CannotServe(
            f"This host ({host.name}) cannot serve the environment {environment.name!r}: it needs "
            f"{', and '.join(map(str, lacks))}. Start its worker on a host that has that, or say what this one "
            "has with --devices and --labels."
        )
