"""`env reap`: hand back what dead workers had claimed, and what is due by now, without starting a worker."""

from __future__ import annotations

import click
from celery.bin.base import CeleryCommand

from ..fleet.later import move_all_due
from ..fleet.reaper import reap_patiently
from .fleet import fleet_client


@click.command("reap", cls=CeleryCommand)
@click.pass_context
def reap_command(ctx: click.Context) -> None:
    """Put back into their queues the tasks of workers whose lease is over, and those whose time has come.

    Every worker does the same by itself. It takes some seconds: workers that were cut off have time to come back.
    """
    client = fleet_client(ctx.obj.app)
    reports = reap_patiently(client)
    move_all_due(client)
    for report in reports:
        click.echo(str(report))
    if not reports:
        click.echo("No dead worker holds a task.")
