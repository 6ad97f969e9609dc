"""Which of an environment's tasks a command acts on: some, by their ids, or all."""

from __future__ import annotations

from collections.abc import Callable

import click


def chosen(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments of a command that acts on some of an environment's tasks, by their ids, or on all of them."""
    for decorate in (
        click.pass_context,
        click.option("--all", "everything", is_flag=True, help="All of the environment."),
        click.argument("ids", nargs=-1),
        click.argument("environment"),
    ):
        command = decorate(command)
    return command


def check_chosen(ids: tuple[str, ...], everything: bool) -> None:
    """Make sure that there are ids, or `--all`, and not both.

    Raises:
        click.UsageError: Says what to give.
    """
    if bool(ids) == everything:
        raise click.UsageError("Name the ids of tasks, or say --all.")
