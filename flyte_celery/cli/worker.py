"""`celery -A proj env worker ENV`: a Celery worker for one environment."""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import CeleryCommand, CeleryOption
from celery.bin.worker import worker as celery_worker

from ..queues import environment_queue
from .known import known_environment
from .options import worker_options
from .venv import OPTION, continue_in_venv

#: Options of `celery worker` that mean the same for an environment's worker. What is missing chooses queues, a pool
#: or its size, which are the environment's.
KEPT = frozenset(
    {
        "hostname", "detach", "statedb", "loglevel", "optimization", "task_events", "without_heartbeat",
        "heartbeat_interval", "time_limit", "soft_time_limit", "max_tasks_per_child", "max_memory_per_child",
        "purge", "include", "logfile",
        "pidfile", "uid", "gid", "umask", "workdir", "executable", "concurrency",
    }
)  # fmt: skip


@click.pass_context
def _worker(ctx: click.Context, /, environment: str, venv: bool, **options: Any) -> None:
    """Start a worker for one environment: its queue, its replicas, its autoscaler."""
    app = ctx.obj.app
    name = known_environment(environment, app)
    if venv:
        continue_in_venv(ctx, name)
    if app.amqp.queues.get(name) is None:
        app.amqp.queues.add(environment_queue(app, name))
    ctx.invoke(celery_worker, queues=[name], **{key: value for key, value in options.items() if value is not None})


worker_command = CeleryCommand(
    "worker",
    callback=_worker,
    help=_worker.__doc__,
    params=[
        click.Argument(["environment"], metavar="ENV"),
        *[option for option in celery_worker.params if option.name in KEPT],
        *worker_options(),
        CeleryOption(
            [OPTION],
            is_flag=True,
            help_group="Environment Options",
            help="Serve from a virtual environment with the Python packages of the environment's image.",
        ),
    ],
)
