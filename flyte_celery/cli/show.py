"""`env list`, `env status` and `env explain`: what is defined, what runs, and why."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..client.install import dispatcher_of
from ..environment import TaskEnvironment, environments
from ..names import queue_name

#: Seconds that workers have to answer.
ANSWER_TIMEOUT = 1.0


@click.command("list", cls=CeleryCommand)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def list_command(ctx: click.Context, as_json: bool) -> None:
    """Every environment of the app: its queue, policy, resources and tasks."""
    _load(ctx.obj.app)
    rows = [_described(environment) for _, environment in sorted(environments().items())]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{click.style(row['name'], bold=True)}  queue {row['queue']}")
        click.echo(f"  replicas   {row['policy']}")
        click.echo(f"  resources  {row['resources'] or 'unlimited'}")
        for task in row["tasks"]:
            click.echo(f"  task       {task}")


def _described(environment: TaskEnvironment) -> dict[str, Any]:
    policy = environment.reusable
    resources = environment.resources
    asked = {
        name: str(value)
        for name in ("cpu", "memory", "gpu", "disk", "shm")
        if resources is not None and (value := getattr(resources, name)) is not None
    }
    return {
        "name": environment.name,
        "queue": queue_name(environment.name),
        "policy": "ephemeral, one process per task"
        if policy is None
        else f"{policy.min_replicas} to {policy.max_replicas}, {policy.concurrency} task(s) each, "
        f"idle_ttl {_seconds(policy.get_idle_ttl())} s, scaledown_ttl {_seconds(policy.get_scaledown_ttl())} s",
        "resources": ", ".join(f"{name}={value}" for name, value in asked.items()),
        "tasks": sorted(environment.tasks),
    }


def _seconds(ttl: timedelta | None) -> str:
    return "0" if ttl is None else f"{ttl.total_seconds():g}"


@click.command("status", cls=CeleryCommand)
@click.argument("environment", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document per look.")
@click.option("--watch", is_flag=True, help="Look again and again until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds of --watch.")
@click.pass_context
def status_command(ctx: click.Context, environment: str | None, as_json: bool, watch: bool, interval: float) -> None:
    """Replicas by state, running and waiting tasks, the queue's depth, the last decision and its reason."""
    app = ctx.obj.app
    _load(app)
    _ensure(app)
    for _ in _looks(watch, interval):
        found = ask(app, "env_status")
        if environment is not None:
            found = [status for status in found if status["environment"] == environment]
        if as_json:
            click.echo(json.dumps(found))
            continue
        if watch:
            click.clear()
        _show(found, environment)


@click.command("explain", cls=CeleryCommand)
@click.argument("environment")
@click.pass_context
def explain_command(ctx: click.Context, environment: str) -> None:
    """The last decisions about an environment's replicas, each with its reason."""
    app = ctx.obj.app
    _load(app)
    _ensure(app)
    serving = {status["hostname"] for status in ask(app, "env_status") if status["environment"] == environment}
    if not serving:
        raise click.ClickException(
            f"No worker serves {environment!r} now: start one with `env worker {environment}` or `env up`."
        )
    for host, decisions in sorted(ask_by_host(app, "env_explain", sorted(serving)).items()):
        click.echo(click.style(host, bold=True))
        for decision in decisions:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(decision["at"]))
            click.echo(f"  {at}  {decision['reason']:9}  {decision['text']}")


def ask(app: Any, command: str) -> list[Any]:
    """Ask all environment workers and return their answers, ordered by host."""
    return [answer for _, answer in sorted(ask_by_host(app, command, None).items())]


def ask_by_host(app: Any, command: str, hosts: list[str] | None) -> dict[str, Any]:
    """Ask workers by Celery's remote control; plain workers do not know the command and are left out."""
    replies = app.control.broadcast(command, reply=True, timeout=ANSWER_TIMEOUT, destination=hosts) or []
    return {
        host: answer
        for reply in replies
        for host, answer in reply.items()
        if not (isinstance(answer, dict) and "error" in answer)
    }


def _show(found: list[dict[str, Any]], environment: str | None) -> None:
    if not found:
        which = f"the environment {environment!r}" if environment else "any environment"
        click.echo(f"No worker of {which} answers.")
    for status in found:
        states: dict[str, int] = {}
        for replica in status["replicas"]:
            states[replica["state"]] = states.get(replica["state"], 0) + 1
        words = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
        ready = "?" if status["ready"] is None else status["ready"]
        click.echo(f"{click.style(status['environment'], bold=True)}  on {status['hostname']}")
        click.echo(f"  replicas  {words} (between {status['minimum']} and {status['maximum']})")
        click.echo(f"  tasks     {status['running']} running, {status['waiting']} waiting, {ready} in the queue")
        if status["decision"]:
            click.echo(f"  decision  {status['decision']}")
        if status["failure"]:
            click.echo(click.style(f"  failed    {status['failure']}", fg="red"))


def _looks(watch: bool, interval: float) -> Iterator[None]:
    yield
    while watch:
        time.sleep(interval)
        yield


def _load(app: Any) -> None:
    app.loader.import_default_modules()
    app.finalize()


def _ensure(app: Any) -> None:
    dispatcher = dispatcher_of(app)
    if not dispatcher.has_broker:
        raise click.ClickException(
            "Nothing runs here: the bundled Redis of this directory is not started. Try `env up`."
        )
