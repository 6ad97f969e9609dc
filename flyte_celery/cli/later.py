"""`env later list`, `now` and `drop`: tasks whose time has not come, such as retries with a back-off."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..fleet.later import Later
from ..names import queue_name
from .chosen import check_chosen, chosen
from .fleet import fleet_client
from .known import known_environment, wanted_environments


@click.group("later", help="Future work: tasks whose time has not come, such as retries with a back-off.")
def later() -> None:
    """The group of commands."""


@later.command("list", cls=CeleryCommand)
@click.argument("environment", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def list_later(ctx: click.Context, environment: str | None, as_json: bool) -> None:
    """Every task whose time has not come, the next one first."""
    app = ctx.obj.app
    client = fleet_client(app)
    rows: list[dict[str, Any]] = [
        {"environment": name, "task_id": task_id, "due": due}
        for name in wanted_environments(app, environment)
        for task_id, due in Later(client, queue_name(name)).entries()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["due"]))
        click.echo(f"{click.style(row['environment'], bold=True)}  {row['task_id']}  due {at}")
    if not rows:
        click.echo("No task waits for its time.")


@later.command("now", cls=CeleryCommand)
@chosen
def run_now(ctx: click.Context, environment: str, ids: tuple[str, ...], everything: bool) -> None:
    """Make tasks due now: name their ids, or say --all."""
    work, wanted = _work(ctx, environment, ids, everything)
    click.echo(f"{work.hurry(wanted)} task(s) are due now.")


@later.command("drop", cls=CeleryCommand)
@chosen
def drop_later(ctx: click.Context, environment: str, ids: tuple[str, ...], everything: bool) -> None:
    """Forget tasks for good: name their ids, or say --all. Who waits for their results is not told."""
    work, wanted = _work(ctx, environment, ids, everything)
    click.echo(f"{work.drop(wanted)} task(s) are forgotten.")


def _work(ctx: click.Context, environment: str, ids: tuple[str, ...], everything: bool) -> tuple[Later, list[str]]:
    check_chosen(ids, everything)
    app = ctx.obj.app
    work = Later(fleet_client(app), queue_name(known_environment(environment, app)))
    return work, [task_id for task_id, _ in work.entries()] if everything else list(ids)
