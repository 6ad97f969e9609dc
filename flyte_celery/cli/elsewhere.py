"""`env elsewhere list` and `drop`: tasks that wait for a worker whose host has what their override asks for."""

from __future__ import annotations

import json
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..fleet.needs import Needs, in_words_of
from ..names import queue_name
from .chosen import check_chosen, chosen
from .fleet import fleet_client
from .known import known_environment, wanted_environments


@click.group("elsewhere", help="Tasks that wait for a worker whose host has what their override asks for.")
def elsewhere() -> None:
    """The group of commands."""


@elsewhere.command("list", cls=CeleryCommand)
@click.argument("environment", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def list_elsewhere(ctx: click.Context, environment: str | None, as_json: bool) -> None:
    """Every task that was passed on and not yet taken, with what it needs."""
    app = ctx.obj.app
    client = fleet_client(app)
    rows: list[dict[str, Any]] = [
        {"environment": name, "task_id": task_id, "needs": in_words_of(need)}
        for name in wanted_environments(app, environment)
        for task_id, need in Needs(client, queue_name(name)).entries()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{click.style(row['environment'], bold=True)}  {row['task_id']}  needs {row['needs']}")
    if not rows:
        click.echo("No task waits for another host.")


@elsewhere.command("drop", cls=CeleryCommand)
@chosen
def drop_elsewhere(ctx: click.Context, environment: str, ids: tuple[str, ...], everything: bool) -> None:
    """Forget tasks for good: name their ids, or say --all. Who waits for their results is not told."""
    check_chosen(ids, everything)
    app = ctx.obj.app
    needs = Needs(fleet_client(app), queue_name(known_environment(environment, app)))
    wanted = [task_id for task_id, _ in needs.entries()] if everything else list(ids)
    click.echo(f"{needs.drop(wanted)} task(s) are forgotten.")
