"""Keeping a few processes alive in one terminal: prefixed output, restarts with back-off, an orderly end."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import click

#: Seconds before a process that died is started again; doubles up to the cap while it keeps dying young.
RESTART_BASE = 1.0
RESTART_CAP = 30.0

#: A process that lived this many seconds is no longer counted as dying young.
LONG_ENOUGH = 30.0

#: Seconds within which a second signal is the same wish: a terminal that closes, or a wrapper that forwards what the
#: terminal has sent already, signals twice.
SAME_WISH = 0.5

#: Seconds that a killed process gets to be gone, and the output of an ended one to arrive.
PATIENCE = 5.0

_READ_SIZE = 65536
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True, eq=False)
class Service:
    """One process that is started again whenever it ends.

    Args:
        name: What its lines are prefixed with.
        command: The command line.
        colour: The prefix's colour, on a terminal.
        width: Columns of the prefix, so that the lines of all services align.
    """

    name: str
    command: Sequence[str]
    colour: str = "white"
    width: int = 0
    _process: asyncio.subprocess.Process | None = None
    _failures: int = 0
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def keep(self) -> None:
        """Keep the process alive until `stop`, and return when it has ended."""
        while not self._stopping.is_set():
            started = asyncio.get_running_loop().time()
            try:
                ending = describe(await self._run_once())
            except OSError as exc:  # no memory or no process left
                ending = f"could not be started ({exc.strerror})"
            if self._stopping.is_set():
                return
            lived = asyncio.get_running_loop().time() - started
            self._failures = 1 if lived >= LONG_ENOUGH else self._failures + 1
            delay = restart_delay(self._failures)
            self.say(click.style(f"{ending} after {lived:.1f} s; starting it again in {delay:g} s", fg="red"))
            try:
                await asyncio.wait_for(self._stopping.wait(), delay)
            except TimeoutError:
                continue

    def stop(self, signum: int) -> None:
        """Send a signal to the process, and do not start it again."""
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):  # it has ended a moment ago
                self._process.send_signal(signum)

    def say(self, text: str) -> None:
        """Print a line under the service's name."""
        say(f"{click.style(self.name.ljust(self.width) + ' |', fg=self.colour)} {text}")

    async def _run_once(self) -> int:
        # A session of its own: Ctrl-C reaches this process alone, which then stops everything in order.
        process = self._process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent(),
        )
        if self._stopping.is_set():  # told so while the process was being made
            process.terminate()
        output = asyncio.ensure_future(self._show(process))
        status = await process.wait()
        # Something that the process started may hold its output open for ever.
        await asyncio.wait({output}, timeout=PATIENCE)
        output.cancel()
        return status

    async def _show(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in _lines(process.stdout):
            self.say(line)


def restart_delay(failures: int) -> float:
    """Seconds to wait before the next start, after so many deaths in a row."""
    return min(RESTART_CAP, RESTART_BASE * 2.0 ** min(failures - 1, 16))


def describe(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"ended with status {status}"
    hint = " (out of memory?)" if -status == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-status).name}{hint}"


def say(text: str) -> None:
    """Print a line; a terminal that is gone is no reason to stop what still has to be stopped in order."""
    try:
        click.echo(text)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def serve(services: Sequence[Service], grace: float) -> None:
    """Run all services until a signal, then stop them.

    SIGINT, SIGTERM and SIGHUP let running tasks finish. A second signal has them handed back at once, a third kills.

    Args:
        services: What to run.
        grace: Seconds that the services may take to end after the first signal.
    """
    wishes = _Wishes()
    keeping = asyncio.gather(*(service.keep() for service in services))
    await wishes.next_or(keeping, None)
    for signum, patience, announcement in (
        (signal.SIGTERM, grace, "Stopping: running tasks may finish. Ctrl-C again hands them back at once."),
        (signal.SIGQUIT, PATIENCE * 2, "Stopping now."),
        (signal.SIGKILL, PATIENCE, "Killing what is left."),
    ):
        say(announcement)
        for service in services:
            service.stop(signum)
        await wishes.next_or(keeping, patience)
        if keeping.done():
            break
    keeping.cancel()


class _Wishes:
    """The signals that this process gets, as wishes to stop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wished = asyncio.Event()
        self._last = -SAME_WISH
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._loop.add_signal_handler(signum, self._wish)

    def _wish(self) -> None:
        now = self._loop.time()
        if now - self._last >= SAME_WISH:
            self._last = now
            self._wished.set()

    async def next_or(self, keeping: asyncio.Future[list[None]], patience: float | None) -> None:
        """Wait for the next wish, or the end of everything, or until patience has run out."""
        wish = asyncio.ensure_future(self._wished.wait())
        both: set[asyncio.Future[Any]] = {keeping, wish}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED, timeout=patience)
        wish.cancel()
        self._wished.clear()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """The lines of a stream, however long they are; a very long one comes in pieces."""
    rest = b""
    while chunk := await stream.read(_READ_SIZE):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) >= _READ_SIZE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace")


def _end_with_parent() -> Callable[[], None] | None:
    """What a new process does first on Linux: ask for SIGTERM when this process dies, even by SIGKILL."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
