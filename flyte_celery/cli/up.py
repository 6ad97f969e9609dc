"""`celery -A proj env up`: everything that one machine needs, in one command and one terminal."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click
from celery.bin.base import CeleryCommand

from .. import embedded
from ..client.install import dispatcher_of
from ..environment import TaskEnvironment, environments
from ..gpu.discover import can_offer
from ..replica.application import ApplicationReference, find
from ..worker.prepare import CannotServe, check_broker, check_conflicts

#: Seconds before a process that died is started again; doubles up to the cap while it keeps dying young.
RESTART_BASE = 1.0
RESTART_CAP = 30.0

#: A process that lived this many seconds is no longer counted as dying young.
LONG_ENOUGH = 30.0

#: Seconds that everything gets to end after Ctrl-C, beyond the workers' own grace.
STOP_PATIENCE = 40.0

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")


@dataclass(slots=True)
class Service:
    """One process of `env up`."""

    name: str
    command: list[str]
    colour: str
    width: int = 0
    process: asyncio.subprocess.Process | None = None
    failures: int = 0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Keep the process alive until it is told to stop."""
        while not self.stopping.is_set():
            started = asyncio.get_running_loop().time()
            status = await self._run_once()
            if self.stopping.is_set():
                return
            lived = asyncio.get_running_loop().time() - started
            self.failures = 1 if lived >= LONG_ENOUGH else self.failures + 1
            delay = min(RESTART_CAP, RESTART_BASE * 2 ** (self.failures - 1))
            self.say(f"ended with status {status}; starting again in {delay:g} s")
            try:
                await asyncio.wait_for(self.stopping.wait(), delay)
            except TimeoutError:
                continue

    async def _run_once(self) -> int:
        # A session of its own: Ctrl-C reaches `env up` alone, which then stops everything in order.
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=2**20,
        )
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.say(line.decode(errors="replace").rstrip("\n"))
        return await self.process.wait()

    def say(self, text: str) -> None:
        """Print a line under the service's name."""
        click.echo(f"{click.style(self.name.ljust(self.width) + ' |', fg=self.colour)} {text}")

    def signal(self, signum: int) -> None:
        """Tell the process to end and not to come back."""
        self.stopping.set()
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signum)


async def serve(services: list[Service]) -> None:
    """Run all services until a signal, then stop them: a second signal does not wait for running tasks."""
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, signals.put_nowait, signum)
    running = asyncio.gather(*(service.run() for service in services))
    stop = asyncio.ensure_future(signals.get())
    await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
    click.echo("Stopping; press Ctrl-C again not to wait for running tasks.")
    for service in services:
        service.signal(signal.SIGTERM)
    again = asyncio.ensure_future(signals.get())
    await asyncio.wait({running, again}, return_when=asyncio.FIRST_COMPLETED, timeout=STOP_PATIENCE)
    if not running.done():
        for service in services:
            service.signal(signal.SIGQUIT)
        await asyncio.wait({running}, timeout=STOP_PATIENCE)
    again.cancel()
    for service in services:
        service.signal(signal.SIGKILL)
    await running


def plan(app: Any, flower_port: int | None, worker_options: Mapping[str, str]) -> list[Service]:
    """The processes for this machine: a worker for each environment that it can serve, and Flower."""
    reference = find(app)
    celery = [sys.executable, "-m", "celery", "-A", _spelled(reference)]
    services: list[Service] = []
    for name, environment in sorted(environments().items()):
        if (missing := _missing(environment)) is not None:
            click.echo(f"{name}: not served here, {missing}")
            continue
        options = [text for option, value in worker_options.items() for text in (option, value)]
        services.append(Service(name, [*celery, "env", "worker", name, "--loglevel", "INFO", "-E", *options], ""))
    if flower_port is not None:
        services.append(Service("flower", [*celery, "flower", "--address=127.0.0.1", f"--port={flower_port}"], ""))
    width = max((len(service.name) for service in services), default=0)
    for service, colour in zip(services, _COLOURS * (1 + len(services) // len(_COLOURS)), strict=False):
        service.colour, service.width = colour, width
    return services


def _spelled(reference: ApplicationReference) -> str:
    if reference.module is None:
        raise CannotServe(
            f"The app lives in the script {reference.script}: move it into a module, so that workers can import it."
        )
    return f"{reference.module}:{reference.attribute}"


def _missing(environment: TaskEnvironment) -> str | None:
    device = environment.resources.get_device() if environment.resources is not None else None
    if device is None or can_offer(device):
        return None
    return f"it needs {device.device or device.device_class} and this machine offers none"


@click.option(
    "--flower-port", type=click.IntRange(0, 65535), default=5555, show_default=True, help="Flower's port on 127.0.0.1."
)
@click.option("--no-flower", is_flag=True, help="Do not start Flower.")
@click.option("--idle-ttl", type=click.FloatRange(min=0), help="Passed to every worker.")
@click.option("--scaledown-ttl", type=click.FloatRange(min=0), help="Passed to every worker.")
@click.option("--grace", type=click.FloatRange(min=0), help="Passed to every worker.")
@click.command("up", cls=CeleryCommand)
@click.pass_context
def up_command(ctx: click.Context, flower_port: int, no_flower: bool, **passed: float | None) -> None:
    """Start this machine's broker (if none is configured), a worker for each environment, and Flower."""
    app = ctx.obj.app
    app.loader.import_default_modules()
    app.finalize()
    options = {f"--{name.replace('_', '-')}": f"{value:g}" for name, value in passed.items() if value is not None}
    try:
        check_conflicts()
        dispatcher = dispatcher_of(app)
        dispatcher.ensure_broker()
        check_broker(app)
        if not no_flower and importlib.util.find_spec("flower") is None:
            click.echo("Flower is not installed: pip install 'flyte-celery[flower]' to monitor in the browser.")
            no_flower = True
        services = plan(app, None if no_flower else flower_port, options)
    except (CannotServe, LookupError, RuntimeError) as exc:
        raise click.ClickException(str(exc)) from None
    if not environments():
        raise click.ClickException(
            f"The app {app.main!r} defines no environment: is the module with flyte.TaskEnvironment(...) imported?"
        )
    if not no_flower:
        click.echo(f"Flower: http://127.0.0.1:{flower_port}")
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    asyncio.run(serve(services))


@click.command("down", cls=CeleryCommand)
@click.pass_context
def down_command(ctx: click.Context) -> None:
    """Stop the bundled Redis of this directory; its data stays for the next start."""
    dispatcher = dispatcher_of(ctx.obj.app)
    if dispatcher.embedded_home is None:
        raise click.ClickException("This app does not use the bundled Redis; its broker is yours to stop.")
    stopped = embedded.stop(dispatcher.embedded_home)
    click.echo("The bundled Redis has been stopped." if stopped else "The bundled Redis was not running.")
