"""`env cache show` and `clear`: what an environment has cached, what it has saved, and forgetting it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click
import redis
from celery.bin.base import CeleryCommand

from ..environment import environments
from ..fleet.cached import EnvironmentCache
from ..names import task_name
from ..urls import redacted
from .fleet import check_running
from .known import known_environment


@click.group("cache", help="Cached results: what is kept, how often it was used, forgetting it.")
def cache() -> None:
    """The group of commands."""


@cache.command("show", cls=CeleryCommand)
@click.argument("environment")
@click.argument("task", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def show_cache(ctx: click.Context, environment: str, task: str | None, as_json: bool) -> None:
    """Entries, bytes, hits and stores of each task of an environment, or of one."""
    found, wanted = _cache(ctx.obj.app, environment, task)
    try:
        counts = found.counts()
    except redis.RedisError as exc:
        raise _away(ctx.obj.app, exc) from None
    tasks = {name: each for name, each in sorted(counts.tasks.items()) if wanted in (None, name)}
    if as_json:
        rows = {name: asdict(each) for name, each in tasks.items()}
        click.echo(json.dumps({"environment": environment, "evicted": counts.evicted, "tasks": rows}, indent=2))
        return
    for name, each in tasks.items():
        click.echo(
            f"{click.style(name, bold=True)}  {each.entries} entries, {each.bytes:,} bytes, "
            f"{each.hits} hits, {each.stored} stored"
        )
    if not tasks:
        click.echo(f"Nothing of {wanted or environment} was cached.")
    elif counts.evicted:
        click.echo(f"{counts.evicted} entries of {environment} have made room for others (cache_bytes).")


@cache.command("clear", cls=CeleryCommand)
@click.argument("environment")
@click.argument("task", required=False)
@click.pass_context
def clear_cache(ctx: click.Context, environment: str, task: str | None) -> None:
    """Forget the cached results of an environment, or of one of its tasks. Results under their ids stay."""
    found, wanted = _cache(ctx.obj.app, environment, task)
    try:
        forgotten = found.clear(wanted)
    except redis.RedisError as exc:
        raise _away(ctx.obj.app, exc) from None
    click.echo(f"{forgotten} cached results of {wanted or environment} are forgotten.")


def _cache(app: Any, environment: str, task: str | None) -> tuple[EnvironmentCache, str | None]:
    """The cache of an environment, and the full name of the task that was asked for."""
    name = known_environment(environment, app)
    check_running(app)
    backend = app.backend
    if not hasattr(backend, "replies"):
        raise click.ClickException(
            f"The result backend {_backend(app)} is no Redis, so nothing is cached: set result_backend to a Redis."
        )
    if task is None:
        return EnvironmentCache(backend.client, name), None
    wanted = task if task.startswith(f"{name}.") else task_name(name, task)
    known = environments()[name].tasks
    if wanted not in known:
        raise click.UsageError(f"The environment {name!r} has no task {task!r}. It has {', '.join(sorted(known))}.")
    return EnvironmentCache(backend.client, name), wanted


def _backend(app: Any) -> str:
    return redacted(str(app.conf.result_backend or "disabled"))


def _away(app: Any, exc: redis.RedisError) -> click.ClickException:
    reason = str(exc).rstrip(".")
    return click.ClickException(
        f"The result backend {_backend(app)} does not answer ({reason}): start it or correct its URL."
    )
