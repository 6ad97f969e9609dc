"""`celery -A proj env down`, and how it finds the `env up` of the same directory: by the lock that it holds."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from celery.bin.base import CeleryCommand

from .. import embedded
from ..client.install import dispatcher_of
from ..errors import InitializationError
from ..worker.serving import CannotServe

#: Seconds between two looks whether an `env up` has ended.
_INTERVAL = 0.05


@contextmanager
def only_one(home: Path | None, application: str) -> Iterator[None]:
    """Be the only `env up` of an app on its bundled Redis; `env down` finds this process by the file.

    Raises:
        CannotServe: Another one runs.
    """
    if home is None:
        yield
        return
    with open(_locks(home) / f"up-{application}.lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotServe(
                f"`env up` of {application} already runs in {home}, as process {_pid(Path(lock.name))}. Use that one, "
                "or end it with `env down`."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _locks(home: Path) -> Path:
    return home / embedded.STATE_FOLDER


def _pid(lock: Path) -> int:
    return int(lock.read_text() or 0)


@click.command("down", cls=CeleryCommand)
@click.pass_context
def down_command(ctx: click.Context) -> None:
    """Stop this directory's `env up`, if it runs, and its bundled Redis; data stays for the next start."""
    try:
        home = dispatcher_of(ctx.obj.app).embedded_home
    except InitializationError as exc:
        raise click.ClickException(str(exc)) from None
    if home is None:
        raise click.ClickException("This app does not use the bundled Redis; its broker is yours to stop.")
    for path in sorted(_locks(home).glob("up-*.lock")):
        _stop_up(path)
    try:
        stopped = embedded.stop(home)
    except embedded.EmbeddedRedisError as exc:
        raise click.ClickException(str(exc)) from None
    click.echo("The bundled Redis has been stopped." if stopped else "The bundled Redis was not running.")


def _stop_up(path: Path) -> None:
    """Stop the `env up` that holds a lock, and wait for it: it knows best how long its workers may take."""
    with open(path) as lock:
        announced = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not announced and (pid := _pid(path)):
                    click.echo(f"Stopping `env up` (process {pid}), which waits for running tasks.")
                    os.kill(pid, signal.SIGTERM)
                    announced = True
                time.sleep(_INTERVAL)
