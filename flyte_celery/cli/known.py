"""Which environments a command speaks of."""

from __future__ import annotations

from typing import Any

import click

from ..environment import TaskEnvironment, environments


def all_environments(app: Any) -> dict[str, TaskEnvironment]:
    """Every environment of the app by its name, after importing everything that may define one."""
    app.loader.import_default_modules()
    app.finalize()
    return dict(sorted(environments().items()))


def known_environment(name: str, app: Any) -> str:
    """The name of one of the app's environments.

    Raises:
        click.UsageError: There is none; names those that there are.
    """
    known = all_environments(app)
    if name not in known:
        there = f"It has {', '.join(known)}." if known else "It defines none: is their module imported?"
        raise click.UsageError(f"The app {app.main!r} has no environment {name!r}. {there}")
    return name


def wanted_environments(app: Any, name: str | None) -> list[str]:
    """The one that was named, or all.

    Raises:
        click.UsageError: There is none of that name.
    """
    return list(all_environments(app)) if name is None else [known_environment(name, app)]
