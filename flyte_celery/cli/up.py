"""`celery -A proj env up`: everything that one machine needs, in one command and one terminal."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from celery.bin.base import CeleryCommand
from celery.utils.nodenames import gethostname

from .. import embedded
from ..client.dispatch import CeleryDispatcher
from ..client.install import dispatcher_of
from ..environment import environments
from ..errors import InitializationError
from ..gpu.host import Host, missing
from ..names import worker_name
from ..options import check_grace
from ..replica.application import ApplicationReference, find
from ..settings import Settings
from ..urls import redacted
from ..worker.prepare import check_broker, host_of, refuse_conflicts
from ..worker.serving import CannotServe
from .down import only_one
from .options import with_host_options
from .services import Service, say, serve

#: Seconds in which a worker that runs already answers.
ANSWER_TIMEOUT = 0.5

#: Seconds beyond the grace period of its tasks that a worker may take to end.
WORKER_PATIENCE = 15.0

#: Seconds between two looks whether the bundled Redis is still there.
BROKER_INTERVAL = 2.0

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")


@with_host_options
@click.option(
    "--flower-port",
    type=click.IntRange(0, 65535),
    default=5555,
    show_default=True,
    help="Flower's port on 127.0.0.1; 0 takes any free one.",
)
@click.option("--no-flower", is_flag=True, help="Do not start Flower.")
@click.option(
    "-l",
    "--loglevel",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], case_sensitive=False),
    default="INFO",
    show_default=True,
    help="Of every worker.",
)
@click.option("--idle-ttl", type=click.FloatRange(min=0), help="Passed to every worker.")
@click.option("--scaledown-ttl", type=click.FloatRange(min=0), help="Passed to every worker.")
@click.option("--grace", type=click.FloatRange(min=0), help="Passed to every worker.")
@click.option("--strict-image", is_flag=True, help="Passed to every worker.")
@click.option("--venv", is_flag=True, help="Passed to every worker.")
@click.command("up", cls=CeleryCommand)
@click.pass_context
def up_command(
    ctx: click.Context,
    flower_port: int,
    no_flower: bool,
    loglevel: str,
    idle_ttl: float | None,
    scaledown_ttl: float | None,
    grace: float | None,
    strict_image: bool,
    venv: bool,
    devices: str | None,
    labels: str | None,
) -> None:
    """Start this machine's broker (if none is configured), a worker for each environment, and Flower.

    What dies is started again. Ctrl-C stops everything but the bundled Redis, which `env down` stops.
    """
    app = ctx.obj.app
    app.loader.import_default_modules()
    app.finalize()
    times = {"--idle-ttl": idle_ttl, "--scaledown-ttl": scaledown_ttl, "--grace": grace}
    options = {option: f"{seconds:g}" for option, seconds in times.items() if seconds is not None}
    options |= {option: "" for option, given in (("--strict-image", strict_image), ("--venv", venv)) if given}
    options |= {name: text for name, text in (("--devices", devices), ("--labels", labels)) if text}
    try:
        dispatcher = dispatcher_of(app)
        refuse_conflicts()
        reference = find(app)
        settings = Settings.from_environ(os.environ)
        host = host_of({"devices": devices, "labels": labels}, settings)
        workers = worker_commands(app, reference, {"--loglevel": loglevel, **options}, host)
        port = None if no_flower else _flower_port(flower_port)
        others_possible = dispatcher.has_broker
        dispatcher.ensure_broker()
        check_broker(app)
        with only_one(dispatcher.embedded_home, _spelled(reference)):
            if others_possible:
                _check_names(app, list(workers))
            _announce(dispatcher, list(workers), port)
            commands = workers if port is None else {**workers, "flower": _flower_command(reference, port)}
            os.environ["PYTHONUNBUFFERED"] = "1"
            graces = (check_grace(environment.grace) for environment in environments().values())
            patience = max((settings.grace_for(grace, each) for each in graces), default=0.0) + WORKER_PATIENCE
            asyncio.run(_serve(commands, patience, dispatcher.embedded_home))
    except (CannotServe, InitializationError, LookupError, embedded.EmbeddedRedisError) as exc:
        raise click.ClickException(str(exc)) from None
    if dispatcher.embedded_home is not None:
        click.echo(f"Stopped. The bundled Redis keeps running; `celery -A {_spelled(reference)} env down` stops it.")


async def _serve(commands: Mapping[str, list[str]], patience: float, home: Path | None) -> None:
    width = max(map(len, commands))
    services = [
        Service(name, command, _COLOURS[index % len(_COLOURS)], width)
        for index, (name, command) in enumerate(commands.items())
    ]
    keeper = asyncio.ensure_future(_keep_broker(home))
    await serve(services, patience)
    keeper.cancel()


async def _keep_broker(home: Path | None) -> None:
    """Start the bundled Redis again when it has ended; its data is on disk, and workers reconnect by themselves."""
    while home is not None:
        await asyncio.sleep(BROKER_INTERVAL)
        if embedded.running(home) is None:
            say(click.style(f"The bundled Redis of {home} has ended; starting it again", fg="red"))
            try:
                await asyncio.to_thread(embedded.start, home)
            except embedded.EmbeddedRedisError as exc:
                say(click.style(str(exc), fg="red"))


def worker_commands(
    app: Any, reference: ApplicationReference, options: Mapping[str, str], host: Host
) -> dict[str, list[str]]:
    """The command line of a worker for each environment that this host can serve, by environment.

    Args:
        app: The Celery app.
        reference: Where it is found.
        options: Passed to every worker: values by option, an empty one for an option that takes none.

    Raises:
        CannotServe: There is none.
    """
    known = environments()
    if not known:
        raise CannotServe(
            f"The app {app.main!r} defines no environment: is the module with flyte.TaskEnvironment(...) imported?"
        )
    passed = [text for option, value in options.items() for text in (option, value) if text]
    commands: dict[str, list[str]] = {}
    for name, environment in sorted(known.items()):
        if lacks := missing(environment, host):
            click.echo(f"{name}: not served here, it needs {', and '.join(map(str, lacks))}")
        else:
            commands[name] = [*_celery(reference), "env", "worker", name, "--task-events", *passed]
    if not commands:
        raise CannotServe(
            "This machine can serve none of the environments: run `env up` on one that has what they need, or say what "
            "this one has with --devices and --labels."
        )
    return commands


def _flower_command(reference: ApplicationReference, port: int) -> list[str]:
    return [*_celery(reference), "flower", "--address=127.0.0.1", f"--port={port}", "--logging=error"]


def _celery(reference: ApplicationReference) -> list[str]:
    return [sys.executable, "-m", "celery", "--quiet", "-A", _spelled(reference)]


def _spelled(reference: ApplicationReference) -> str:
    if reference.module is None:
        raise CannotServe(
            f"The app lives in the script {reference.script}: move it into a module, so that workers can import it."
        )
    return f"{reference.module}:{reference.attribute}"


def _flower_port(wanted: int) -> int | None:
    """The port that Flower can have, None when Flower is not installed.

    Raises:
        CannotServe: Another program has it.
    """
    if importlib.util.find_spec("flower") is None:
        click.echo("Flower is not installed: `pip install 'flyte-celery[flower]'` to watch in the browser.")
        return None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Flower does
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as exc:
            raise CannotServe(
                f"Flower cannot have port {wanted} on 127.0.0.1 ({exc.strerror}), perhaps because another `env up` has "
                "it. Give another one with --flower-port, any free one with --flower-port 0, or leave Flower out with "
                "--no-flower."
            ) from None
        return int(probe.getsockname()[1])


def _check_names(app: Any, names: list[str]) -> None:
    """Refuse to start a second worker under a node name: commands and monitoring could not tell the two apart."""
    nodes = [worker_name(name, gethostname()) for name in names]
    replies = app.control.ping(destination=nodes, timeout=ANSWER_TIMEOUT, limit=len(nodes))
    if answering := sorted(node for reply in replies or [] for node in reply):
        raise CannotServe(
            f"{', '.join(answering)} already runs on this broker, from another `env up` or `env worker`. Stop it first "
            "(Ctrl-C in its terminal), or use another broker or directory for this one."
        )


def _announce(dispatcher: CeleryDispatcher, names: list[str], flower_port: int | None) -> None:
    home = dispatcher.embedded_home
    broker = redacted(dispatcher.app.conf.broker_url or "the app's") if home is None else f"bundled Redis of {home}"
    click.echo(f"Broker       {broker}")
    click.echo(f"Environments {', '.join(names)}")
    if flower_port is not None:
        click.echo(f"Flower       http://127.0.0.1:{flower_port}")
