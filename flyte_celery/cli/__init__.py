"""`celery -A proj env ...`: what an operator types. Nobody imports this package; Celery finds it as an entry point."""

from __future__ import annotations

import click

from ..worker import commands
from .cache import cache
from .dead import dead
from .down import down_command
from .elsewhere import elsewhere
from .later import later
from .orders import drain_command, pause_command, prewarm_command, resume_command, scale_command
from .reap import reap_command
from .show import explain_command, list_command, status_command
from .up import up_command
from .worker import worker_command

__all__ = ["env"]


@click.group(name="env", help="Environments: warm replicas behind dedicated queues.")
def env() -> None:
    """The group of commands."""


for command in (
    worker_command,
    up_command,
    down_command,
    list_command,
    status_command,
    explain_command,
    scale_command,
    drain_command,
    pause_command,
    resume_command,
    prewarm_command,
    reap_command,
    dead,
    later,
    elsewhere,
    cache,
):
    env.add_command(command)

commands.register({})  # for `celery control` and `celery inspect`; a worker has handlers of its own
