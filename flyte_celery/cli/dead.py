"""`env dead list`, `requeue` and `drop`: tasks that were given up because their workers or replicas were lost."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..fleet.dead import DeadLetter, DeadLetters
from ..names import queue_name
from .chosen import check_chosen, chosen
from .fleet import fleet_client
from .known import known_environment, wanted_environments


@click.group("dead", help="Dead letters: tasks that were given up because each start of them was lost.")
def dead() -> None:
    """The group of commands."""


@dead.command("list", cls=CeleryCommand)
@click.argument("environment", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def list_dead(ctx: click.Context, environment: str | None, as_json: bool) -> None:
    """Every task that was given up, oldest first, with the reason."""
    app = ctx.obj.app
    client = fleet_client(app)
    found = {name: list(DeadLetters(client, queue_name(name))) for name in wanted_environments(app, environment)}
    if as_json:
        rows = [_described(name, letter) for name, letters in found.items() for letter in letters]
        click.echo(json.dumps(rows, indent=2))
        return
    for name, letters in found.items():
        for letter in letters:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.at))
            click.echo(f"{click.style(name, bold=True)}  {letter.task_id}  {at}  {letter.cause}")
    if not any(found.values()):
        click.echo("No task was given up.")


@dead.command("requeue", cls=CeleryCommand)
@chosen
def requeue_dead(ctx: click.Context, environment: str, ids: tuple[str, ...], everything: bool) -> None:
    """Run tasks again, with all their attempts: name their ids, or say --all."""
    letters, wanted = _letters(ctx, environment, ids, everything)
    _tell("requeued", letters.requeue(wanted), ids)


@dead.command("drop", cls=CeleryCommand)
@chosen
def drop_dead(ctx: click.Context, environment: str, ids: tuple[str, ...], everything: bool) -> None:
    """Forget tasks for good: name their ids, or say --all. Their recorded failures stay."""
    letters, wanted = _letters(ctx, environment, ids, everything)
    _tell("dropped", letters.drop(wanted), ids)


def _letters(
    ctx: click.Context, environment: str, ids: tuple[str, ...], everything: bool
) -> tuple[DeadLetters, tuple[str, ...] | None]:
    check_chosen(ids, everything)
    app = ctx.obj.app
    name = known_environment(environment, app)
    return DeadLetters(fleet_client(app), queue_name(name)), None if everything else ids


def _tell(what: str, done: list[DeadLetter], ids: tuple[str, ...]) -> None:
    for letter in done:
        click.echo(f"{letter.task_id}  {letter.task}  {what}")
    if missing := sorted(set(ids) - {letter.task_id for letter in done}):
        raise click.ClickException(f"No dead letter has the id {', '.join(missing)}: see `env dead list`.")
    if not done:
        click.echo("No task was given up.")


def _described(environment: str, letter: DeadLetter) -> dict[str, Any]:
    fields = asdict(letter)
    del fields["message"]  # arguments are nobody's business but the task's
    return {"environment": environment, **fields}
