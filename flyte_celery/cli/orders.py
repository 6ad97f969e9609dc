"""`env scale`, `pause`, `resume`, `drain` and `prewarm`: what operators order, from any machine with the app."""

from __future__ import annotations

from typing import Any

import click
import redis
from celery.bin.base import CeleryCommand

from ..environment import environments
from ..fleet import orders
from ..names import queue_name
from .fleet import fleet_client
from .known import all_environments, known_environment


@click.command("scale", cls=CeleryCommand)
@click.argument("environment")
@click.argument("lowest", metavar="MIN", type=click.IntRange(min=0), required=False)
@click.argument("highest", metavar="MAX", type=click.IntRange(min=0), required=False)
@click.option("--reset", is_flag=True, help="Let the policy's bounds hold again.")
@click.pass_context
def scale_command(ctx: click.Context, environment: str, lowest: int | None, highest: int | None, reset: bool) -> None:
    """Let MIN to MAX replicas hold in place of the policy's bounds, for all workers, until --reset."""
    client, queue = _queue(ctx, environment)
    if reset:
        if lowest is not None:
            raise click.UsageError("Give either MIN and MAX, or --reset.")
        done = orders.reset(client, queue)
        click.echo(f"{environment}: its policy's bounds hold again." if done else f"{environment} was not scaled.")
        return
    if lowest is None or highest is None:
        raise click.UsageError("Give MIN and MAX, or --reset.")
    if not _policy_of(environment):
        raise click.UsageError(f"{environment!r} has no reuse policy: pause it instead of scaling it.")
    try:
        orders.scale(client, queue, lowest, highest)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    click.echo(f"{environment}: {lowest} to {highest} replicas in all, until `env scale {environment} --reset`.")


@click.command("pause", cls=CeleryCommand)
@click.argument("environment")
@click.pass_context
def pause_command(ctx: click.Context, environment: str) -> None:
    """Have no worker take tasks; the queue accepts them, what runs goes on, replicas stay."""
    client, queue = _queue(ctx, environment)
    orders.pause(client, queue)
    click.echo(f"{environment}: paused. Its tasks wait until `env resume {environment}`.")


@click.command("resume", cls=CeleryCommand)
@click.argument("name", metavar="ENVIRONMENT|HOST")
@click.pass_context
def resume_command(ctx: click.Context, name: str) -> None:
    """End what `env pause` or `env drain` has ordered."""
    client = fleet_client(ctx.obj.app)
    known = name in all_environments(ctx.obj.app)
    done = orders.resume(client, queue_name(name)) if known else orders.resume_host(client, name)
    if not done and not known:
        _check_host(client, name, ctx.obj.app)
    click.echo(f"{name}: serves again." if done else f"{name} was neither paused nor drained.")


@click.command("drain", cls=CeleryCommand)
@click.argument("name", metavar="ENVIRONMENT|HOST")
@click.pass_context
def drain_command(ctx: click.Context, name: str) -> None:
    """Take no more tasks, finish what runs, and end all replicas of an environment, or on a host."""
    client = fleet_client(ctx.obj.app)
    if name in all_environments(ctx.obj.app):
        orders.drain(client, queue_name(name))
    else:
        _check_host(client, name, ctx.obj.app)
        orders.drain_host(client, name)
    click.echo(f"{name}: drains. It serves again with `env resume {name}`.")


@click.command("prewarm", cls=CeleryCommand)
@click.argument("environment")
@click.argument("replicas", metavar="[N]", type=click.IntRange(min=1), required=False)
@click.pass_context
def prewarm_command(ctx: click.Context, environment: str, replicas: int | None) -> None:
    """Start N replicas now, by default the minimum or one, as if work had come; they go as they would after it."""
    client, queue = _queue(ctx, environment)
    if (policy := _policy_of(environment)) is None:
        raise click.UsageError(f"{environment!r} has no reuse policy: its replicas run one task each, none is kept.")
    number = max(1, policy.min_replicas) if replicas is None else replicas
    orders.prewarm(client, queue, number)
    click.echo(f"{environment}: {number} replica(s) are asked for.")


def _policy_of(environment: str) -> Any:
    return environments()[environment].reusable


def _queue(ctx: click.Context, environment: str) -> tuple[redis.Redis, str]:
    name = known_environment(environment, ctx.obj.app)
    return fleet_client(ctx.obj.app), queue_name(name)


def _check_host(client: redis.Redis, host: str, app: Any) -> None:
    hosts = sorted(orders.hosts_of_workers(client))
    if host not in hosts:
        there = f"There are workers on {', '.join(hosts)}." if hosts else "No worker runs."
        raise click.UsageError(f"{host!r} is neither an environment of the app {app.main!r} nor a host. {there}")
