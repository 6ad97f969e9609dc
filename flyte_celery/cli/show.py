"""`env list`, `env status` and `env explain`: what is defined, what runs, and why."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import click
from celery.bin.base import CeleryCommand
from kombu.exceptions import OperationalError
from redis import RedisError

from ..cache import Cache
from ..environment import TaskEnvironment
from ..fleet.catalogue import priority_steps
from ..fleet.connection import connect_to_broker
from ..fleet.needs import Unmet
from ..fleet.orders import orders_of
from ..fleet.seats import look
from ..names import queue_name
from ..urls import redacted
from .fleet import check_running
from .known import all_environments, known_environment, wanted_environments
from .unserved import Unserved, unserved_environments

#: Seconds that workers have to answer.
ANSWER_TIMEOUT = 1.0


@click.command("list", cls=CeleryCommand)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def list_command(ctx: click.Context, as_json: bool) -> None:
    """Every environment of the app: its queue, policy, resources and tasks."""
    rows = [_described(environment) for environment in all_environments(ctx.obj.app).values()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{click.style(row['name'], bold=True)}  queue {row['queue']}")
        click.echo(f"  replicas   {row['policy']}")
        click.echo(f"  resources  {row['resources'] or 'unlimited'}")
        for task in row["tasks"]:
            cached = row["cached"].get(task)
            click.echo(f"  task       {task}{f'  cached: {cached}' if cached else ''}")


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
        f"idle_ttl {_seconds(policy.get_idle_ttl())} s, scaledown_ttl {_seconds(policy.get_scaledown_ttl())} s"
        + (", each of one run alone" if policy.scope == "run" else ""),
        "resources": ", ".join(f"{name}={value}" for name, value in asked.items()),
        "tasks": sorted(environment.tasks),
        "cached": {name: _cache(task.cache) for name, task in environment.tasks.items() if task.cache.is_enabled()},
    }


def _cache(cache: Cache) -> str:
    words: list[str] = [cache.behavior]
    if isinstance(cache.max_age, timedelta):
        words.append(f"max_age {cache.max_age.total_seconds():g} s")
    if cache.serialize:
        words.append("one computes at a time")
    return ", ".join(words)


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
    wanted = wanted_environments(app, environment)
    redraw = watch and not as_json and sys.stdout.isatty()
    if redraw:
        click.clear()
    stopped = _on_ctrl_c() if watch else []
    with suppress(KeyboardInterrupt):
        while not stopped:
            try:
                text = _look(app, wanted, as_json)
            except click.ClickException as exc:
                if not watch:
                    raise
                text = exc.format_message()
            click.echo(_over_the_last(text) if redraw else text)
            if not watch:
                return
            time.sleep(interval)


def _on_ctrl_c() -> list[int]:
    """A list that is empty until Ctrl-C, which still raises: what it interrupts may swallow a `KeyboardInterrupt`."""
    pressed: list[int] = []

    def press(signum: int, _: object) -> None:
        pressed.append(signum)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, press)
    return pressed


def _look(app: Any, wanted: list[str], as_json: bool) -> str:
    found = [status for status in ask(app, "env_status") if status["environment"] in wanted]
    served = {status["environment"] for status in found}
    unserved = unserved_environments(app, [name for name in wanted if name not in served])
    if as_json:
        return json.dumps([*found, *map(asdict, unserved)])
    parts = [*map(_shown, found), *map(_shown_unserved, unserved)]
    return "\n".join(parts) or "The app defines no environment."


def _over_the_last(text: str) -> str:
    """Text that replaces what a terminal shows, line by line: to clear the screen first would flicker."""
    lines = [f"{time.strftime('%H:%M:%S')}  Ctrl-C ends", *text.splitlines()]
    return "\x1b[H" + "\x1b[K\n".join(lines) + "\x1b[K\x1b[J"


@click.command("explain", cls=CeleryCommand)
@click.argument("environment")
@click.pass_context
def explain_command(ctx: click.Context, environment: str) -> None:
    """The last decisions about an environment's replicas, each with its reason."""
    app = ctx.obj.app
    known_environment(environment, app)
    for line in fleet_lines(app, environment):
        click.echo(line)
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


def fleet_lines(app: Any, environment: str) -> list[str]:
    """What all workers of an environment have together, and what operators have ordered; nothing without Redis."""
    check_running(app)
    try:
        if (client := connect_to_broker(app)) is None:
            return []
        queue = queue_name(environment)
        fleet, ordered = look(client, queue, priority_steps(client, queue)), orders_of(client, queue)
    except RedisError:
        return []
    lines = []
    if fleet.workers:
        lines.append(
            f"{click.style('fleet', bold=True)}  {fleet.all_live} of {fleet.target} replicas wanted, {fleet.all_seats} "
            f"seats taken, in {fleet.workers} worker(s), generation {fleet.current}"
        )
        if fleet.trial:
            lines.append(
                f"  trial   generation {fleet.trial} takes over when a replica of it is ready ({fleet.proving} there)"
            )
        waiting = fleet.ready + fleet.all_waiting
        beside = f" ({fleet.beside} of them for replicas of their own)" if fleet.beside else ""
        lines.append(f"  tasks   {waiting} ready{beside}, {fleet.all_running} running, {fleet.all_suspended} suspended")
    if str(ordered):
        lines.append(f"  orders  {environment} is {ordered}")
    return lines


def ask(app: Any, command: str) -> list[Any]:
    """Ask all environment workers and return their answers, ordered by host."""
    return [answer for _, answer in sorted(ask_by_host(app, command, None).items())]


def ask_by_host(app: Any, command: str, hosts: list[str] | None) -> dict[str, Any]:
    """Ask workers by Celery's remote control; plain workers do not know the command and are left out.

    Raises:
        click.ClickException: The bundled Redis does not run, or the broker cannot be reached.
    """
    check_running(app)
    try:
        listening = len(hosts) if hosts is not None else _listening(app)
        # Celery waits the whole time for answers unless it knows how many will come.
        replies = app.control.broadcast(command, reply=True, timeout=ANSWER_TIMEOUT, destination=hosts, limit=listening)
    except (OperationalError, OSError) as exc:
        broker, reason = redacted(app.conf.broker_url or "of the app"), str(exc).rstrip(".")
        raise click.ClickException(
            f"The broker {broker} does not answer ({reason}): start it or correct its URL."
        ) from None
    return {
        host: answer
        for reply in replies or []
        for host, answer in reply.items()
        if not (isinstance(answer, dict) and "error" in answer)
    }


def _listening(app: Any) -> int | None:
    """How many workers listen to remote control; None when the broker does not tell, or when there is none.

    kombu's Redis transport keeps a table of them. A worker that was killed stays in it, and then Celery waits for it.
    """
    with app.connection_for_read() as connection:
        table = getattr(connection.default_channel, "get_table", None)
        return (len(table(app.control.mailbox.namespace + ".pidbox")) if table is not None else 0) or None


def _shown(status: dict[str, Any]) -> str:
    states: dict[str, int] = {}
    for replica in status["replicas"]:
        states[replica["state"]] = states.get(replica["state"], 0) + 1
    words = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    ready = "?" if status["ready"] is None else status["ready"]
    bounded = status["room"] is not None and status["room"] < status["maximum"]
    room = f", room for {status['room']} here" if bounded else ""
    lines = [
        f"{click.style(status['environment'], bold=True)}  on {status['hostname']}",
        f"  replicas  {words} (between {status['minimum']} and {status['maximum']}{room})",
        f"  tasks     {status['running']} running, {status['waiting']} waiting, {ready} in the queue",
    ]
    if status["beside"]:
        lines.append(f"  beside    {status['beside']} of them wait for replicas of their own: calls with overrides")
    if runs := Counter(replica["run"][:8] for replica in status["replicas"] if replica["run"]):
        lines.append(f"  runs      {', '.join(f'{run} has {count}' for run, count in runs.items())}")
    if status.get("later"):
        lines.append(f"  later     {_future_work(status['later'], status['next_due'])}")
    lines += [f"  needs     {Unmet(**each)}" for each in status["elsewhere"]]
    if status["decision"]:
        lines.append(f"  decision  {status['decision']}")
    if status["obstacle"] and status["obstacle"] not in (status["decision"] or ""):
        lines.append(f"  waits     {status['obstacle']}")
    if status["dead"]:
        letters = "letter" if status["dead"] == 1 else "letters"
        lines.append(f"  given up  {status['dead']} dead {letters}: see `env dead list {status['environment']}`")
    for device, why in status["broken"].items():
        lines.append(click.style(f"  broken    {device}: {why}", fg="red"))
    if status["failure"]:
        lines.append(click.style(f"  failed    {status['failure']}", fg="red"))
    return "\n".join(lines)


def _shown_unserved(unserved: Unserved) -> str:
    lines = [f"{click.style(unserved.environment, bold=True)}  no worker answers"]
    if unserved.ready is not None:
        lines.append(f"  tasks     {unserved.ready} in the queue")
    if unserved.later:
        lines.append(f"  later     {_future_work(unserved.later, unserved.next_due)}")
    lines += [f"  needs     {each}" for each in unserved.elsewhere]
    if unserved.reason is not None:
        lines.append(f"  waits     {unserved.reason}")
    return "\n".join(lines)


def _future_work(count: int, next_due: float | None) -> str:
    """How many tasks wait for their time, and how long the first of them does."""
    words = f"{count} task{'s' if count > 1 else ''} whose time has not come"
    return words if next_due is None else f"{words}, the next in {max(0.0, next_due - time.time()):.0f} s"
