"""The launcher of a worker, seen from the worker: asks for replicas and hears of their ends.

One *launcher* process per worker starts the replicas: it is a fresh interpreter, started before it matters what
threads and connections the worker has, it imports the application once, and forks itself for each replica
(`flyte_celery.replica.preload` is its program). For environments on devices, whose drivers do not survive a
fork, it starts fresh interpreters instead. Either way it is the parent that reaps them, so every exit is
reported with its status and peak memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from .confinement import Confinement
from .watchdog import Breach, Usage
from .wire import Line, encode


class Poller(Protocol):
    """What this package needs of an event loop; kombu's `Hub` has it."""

    def add_reader(self, fds: Any, callback: Callable[..., Any], *args: Any) -> Any:
        """Call `callback(*args)` whenever the descriptor can be read."""

    def add_writer(self, fds: Any, callback: Callable[..., Any], *args: Any) -> Any:
        """Call `callback(*args)` whenever the descriptor can be written."""

    def remove_reader(self, fd: Any) -> Any:
        """Stop watching for reading."""

    def remove_writer(self, fd: Any) -> Any:
        """Stop watching for writing."""


@dataclass(frozen=True, slots=True)
class Preloaded:
    """The launcher has imported the application; replicas are forks of it from now on."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Enforces:
    """How the launcher keeps replicas to their limits, in words for the log."""

    how: str


@dataclass(frozen=True, slots=True)
class PreloadFailed:
    """The launcher could not import the application; it has ended, and no replica can be started."""

    error: str


@dataclass(frozen=True, slots=True)
class Forked:
    """A replica's process exists."""

    number: int
    pid: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A replica's process has ended and was reaped."""

    number: int
    status: int
    peak_memory: int


@dataclass(frozen=True, slots=True)
class Broke:
    """A replica has used more than it may: it is being killed, and will be told of as `Ended`."""

    number: int
    breach: Breach


@dataclass(frozen=True, slots=True)
class Used:
    """What a replica uses has changed."""

    number: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class LauncherEnded:
    """The launcher itself is gone, and with it every replica that it started."""

    status: int | None


LauncherEvent = Enforces | Preloaded | PreloadFailed | Forked | Ended | Broke | Used | LauncherEnded


@dataclass(frozen=True, slots=True)
class Start:
    """Command to the launcher: start replica `number` on the socket that travels with this message.

    Behind the socket travel `files` more open files, which are the replica's for as long as it lives, and the
    launcher's until it has ended what the replica has started: what they hold locked is free then.
    """

    number: int
    #: Variables to set, and with None to remove.
    environ: Mapping[str, str | None]
    confinement: Confinement = field(default_factory=Confinement)
    #: Whether it is a fresh interpreter, which imports everything anew, with these variables.
    fresh: bool = False
    #: What a fresh interpreter is told in place of what the launcher was told; None: the same.
    config: object = field(default=None, repr=False)
    files: int = 0


@dataclass(frozen=True, slots=True)
class KeepUntil:
    """Command to the launcher: replicas may live until then, unless another one of these comes.

    What ends them is a clock, not the worker: the worker may be stopped.
    """

    #: By `clock.always_on`, which all processes of a machine count alike, also while it is suspended.
    moment: float


class Launcher:
    """The worker's end of its launcher process.

    Args:
        config: What the program needs to know; travels as its first message.
        environ: Environment variables of the launcher and, by inheritance, of every replica. They are set before
            any user module is imported.
        module: The program, run with `python -m`.
        imports: Whether the program first imports the application, and reads no command before it says `Preloaded`.
    """

    def __init__(
        self,
        config: object,
        environ: Mapping[str, str],
        module: str = "flyte_celery.replica.preload",
        *,
        imports: bool = False,
    ) -> None:
        ours, theirs = socket.socketpair()
        # A session of its own: Ctrl-C and signals to the worker's process group must not reach running tasks.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self.line = Line(ours)
        # A command with a descriptor is one sendmsg call that must not be cut, so this socket blocks; the launcher
        # reads at once, but while it imports, and its commands are tiny.
        ours.setblocking(True)
        ours.sendall(encode(config))
        self.ended = False
        #: Starts, with their open files, that wait until the launcher reads; None when it does. An import may take
        #: minutes, and a full socket would stop the worker's event loop.
        self._held: list[tuple[bytes, list[int]]] | None = [] if imports else None
        #: Until when replicas may live, as was last said.
        self._moment: float | None = None

    @property
    def pid(self) -> int:
        """Process id of the launcher."""
        return self._process.pid

    def start(self, start: Start, files: Sequence[int] = ()) -> Line:
        """Ask for a replica.

        Args:
            start: What is asked for.
            files: Open files that it inherits; the caller closes its own.

        Returns:
            The worker's end of the replica's socket; it reads end of file when the replica is gone.
        """
        ours, theirs = socket.socketpair()
        message, given = encode(replace(start, files=len(files))), [theirs.fileno(), *files]
        if self._held is None:
            self._ask(message, given)
        else:
            self._held.append((message, [os.dup(each) for each in given]))
        theirs.close()
        return Line(ours)

    def keep_until(self, moment: float) -> None:
        """Have every replica ended at a moment (by `clock.always_on`) unless this is called again."""
        self._moment = moment
        if self._held is None:
            self._ask(encode(KeepUntil(moment)))

    def _ask(self, message: bytes, files: Sequence[int] = ()) -> None:
        # Where the launcher is gone, its socket and a replica's read end of file.
        with contextlib.suppress(OSError):
            socket.send_fds(self.line.sock, [message], files)

    def _reads_now(self) -> None:
        """Send what has waited; a replica is started only when it is known until when it may live."""
        held, self._held = self._held or [], None
        if self._moment is not None:
            self.keep_until(self._moment)
        for message, files in held:
            self._ask(message, files)
            _close(files)

    def receive(self) -> list[LauncherEvent]:
        """Everything that the launcher reported since the last call; call it when `line` is readable."""
        self.line.sock.setblocking(False)
        try:
            events, closed = self.line.receive()
        finally:
            if not self.line.closed:
                self.line.sock.setblocking(True)
        if any(isinstance(event, Preloaded) for event in events):
            self._reads_now()
        if closed and not self.ended:
            self.ended = True
            self._drop()
            events.append(LauncherEnded(self._reap()))
        return events

    def close(self) -> None:
        """End the launcher and every replica that is left. Safe to call twice."""
        self.ended = True
        self._drop()
        self.line.close()  # end of file is the launcher's order to kill its children and exit
        self._reap()

    def _drop(self) -> None:
        """What has waited is not started any more: those replicas' sockets read end of file."""
        held, self._held = self._held or [], None
        for _, files in held:
            _close(files)

    def _reap(self) -> int | None:
        try:
            return self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _close(files: Sequence[int]) -> None:
    for each in files:
        os.close(each)


def kill(pid: int, signum: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may already be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
