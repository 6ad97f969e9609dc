"""`env reap`: hand back what dead workers had claimed, without starting a worker."""

from __future__ import annotations

import click
from celery.bin.base import CeleryCommand

from ..fleet.reaper import reap
from .fleet import fleet_client


@click.command("reap", cls=CeleryCommand)
@click.pass_context
def reap_command(ctx: click.Context) -> None:
    """Put back into their queues the tasks of workers whose lease is over; every worker does the same by itself."""
    reports = reap(fleet_client(ctx.obj.app))
    for report in reports:
        click.echo(str(report))
    if not reports:
        click.echo("No dead worker holds a task.")
