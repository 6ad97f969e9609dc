"""`env reap`: hand back what dead workers had claimed, and end what has waited too long, without starting a worker."""

from __future__ import annotations

import os
import socket
import time

import click
from celery.bin.base import CeleryCommand

from ..fleet.later import move_all_due
from ..fleet.reaper import reap_patiently
from ..settings import Settings
from ..worker.unattended import Unattended
from .fleet import fleet_client
from .known import all_environments


@click.command("reap", cls=CeleryCommand)
@click.pass_context
def reap_command(ctx: click.Context) -> None:
    """Put back into their queues the tasks of workers whose lease is over, and those whose time has come.

    Tasks that have waited too long for an environment without a worker fail. Every worker does the same by itself. It
    takes some seconds: workers that were cut off have time to come back.
    """
    app = ctx.obj.app
    client = fleet_client(app)
    reports = reap_patiently(client)
    move_all_due(client)
    for report in reports:
        click.echo(str(report))
    if not reports:
        click.echo("No dead worker holds a task.")
    all_environments(app)
    unattended = Unattended(app, client, f"reap@{socket.gethostname()}", Settings.from_environ(os.environ).lease)
    for queue in unattended.queues():
        ended, again = unattended.end_some(queue)
        while again is not None:
            time.sleep(again)
            more, again = unattended.end_some(queue, first_ones=not again)
            ended += more
        if ended:
            click.echo(f"{queue}: no worker serves it; {ended} task(s) that have waited too long have ended.")
