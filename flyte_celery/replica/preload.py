"""The launcher: imports the application once and forks itself for each replica.

Program of the process that `supervisor.processes.Launcher` starts, as `python -m flyte_celery.replica.preload FD`.
It has one thread and no connections, which is what makes its forks safe; it is the parent of every replica, so it
reaps them and reports how they ended. When the worker's end of its socket closes, for whatever reason, it kills the
replicas and exits: no task of a dead worker goes on running.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any

from .. import redaction
from ..clock import always_on
from ..names import REPLICA_VARIABLE
from ..supervisor import usage
from ..supervisor.cgroup import Group, Groups, delegated
from ..supervisor.confinement import Confinement, adopt_orphans, enter
from ..supervisor.cpus import Cpus
from ..supervisor.family import Family
from ..supervisor.processes import Broke, Ended, Enforces, Forked, KeepUntil, Preloaded, PreloadFailed, Start, Used
from ..supervisor.watchdog import Bound, Breach, KernelKills, Watchdog
from ..supervisor.wire import READ_SIZE, Decoder, encode
from . import main as replica_main
from .loading import load
from .plan import ReplicaPlan

#: Most descriptors taken from one read; each travels with one short command.
_MAX_FDS = 64

#: Seconds between two attempts to end what should have ended.
_BETWEEN_KILLS = 0.02

#: Seconds between two looks at the clock while there are replicas: a wait stands still while the machine is suspended.
_LONGEST_WAIT = 1.0

#: How replicas are kept to their limits: by groups of the kernel's or not.
_HOW = {
    True: "by the kernel (cgroup v2), and watched",
    False: "by a watchdog, because this worker may make no groups of cgroup v2",
}

#: What `confinement.enter` takes: bounds, cores and the kernel's group.
Beginning = tuple[Confinement, tuple[int, ...], Path | None]


class Launcher:
    """Serves the worker's commands until its socket closes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.decoder = Decoder()
        self.fds: deque[int] = deque()
        self.children: dict[int, int] = {}
        self.family = Family(os.getpid(), REPLICA_VARIABLE)
        self.watchdog = Watchdog(self.family)
        self.cpus = Cpus()
        self.groups: Groups | None = None
        self.group_of: dict[int, Group] = {}
        #: Open files of each replica: what it has locked is not free before all that it has started is ended.
        self.files_of: dict[int, list[int]] = {}
        self.kernel_kills = KernelKills()
        self.app: Any = None
        self.plan: ReplicaPlan
        #: When (by `clock.always_on`) every replica has to go because others may run in its place.
        self.keep_until = float("inf")

    def run(self) -> int:
        """Preload, then fork on command. Returns the exit code."""
        commands = deque(self._read())
        self.plan = commands.popleft()
        self.groups = delegated(lambda pid: pid in (os.getpid(), os.getppid()))
        self._tell(Enforces(_HOW[self.groups is not None]))
        if self.plan.preload and not self._preload():
            return 3
        wakeup = _wake_on_child_exit()
        adopt_orphans()
        with selectors.DefaultSelector() as selector:
            selector.register(self.sock, selectors.EVENT_READ)
            selector.register(wakeup, selectors.EVENT_READ)
            while True:
                while commands:
                    self._obey(commands.popleft())
                ready = selector.select(self._wait(time.monotonic()))
                if always_on() >= self.keep_until and not any(key.fileobj is self.sock for key, _ in ready):
                    self._kill_all()  # the worker may be stopped, and others may run replicas in place of these
                for key, _ in ready:
                    if key.fileobj is wakeup:
                        wakeup.recv(4096)
                        self._reap()
                    else:
                        try:
                            commands.extend(self._read())
                        except EOFError:
                            return self._kill_all()
                self._watch(time.monotonic())

    def _obey(self, command: Start | KeepUntil) -> None:
        if isinstance(command, KeepUntil):
            self.keep_until = command.moment
        else:
            self._start(command)

    def _wait(self, now: float) -> float | None:
        """Seconds until there is something to do; None when it is not a matter of time."""
        look = self.watchdog.wait(now)
        if not self.children or self.keep_until == float("inf"):
            return look
        left = min(_LONGEST_WAIT, max(_BETWEEN_KILLS, self.keep_until - always_on()))
        return left if look is None else min(look, left)

    def _watch(self, now: float) -> None:
        self.kernel_kills.look(now)
        for number, breach in self.watchdog.look(now).items():
            pid = next(pid for pid, each in self.children.items() if each == number)
            self.watchdog.unwatch(number)
            self.family.end(number, pid)
            self._tell(Broke(number, breach))
        for number, used in self.watchdog.changed(now).items():
            self._tell(Used(number, used))

    def _preload(self) -> bool:
        started = time.monotonic()
        try:
            self.app = load(self.plan.application, self.plan.secrets)
        except BaseException:
            self._tell(PreloadFailed(redaction.current().text(traceback.format_exc())))
            return False
        # What is alive now lives as long as the launcher: keep it out of the replicas' garbage collections, which
        # would otherwise copy every page that they mark.
        gc.collect()
        gc.freeze()
        self._tell(Preloaded(time.monotonic() - started))
        return True

    def _read(self) -> list[Any]:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, READ_SIZE, _MAX_FDS)
            except ConnectionError:  # the worker was killed before it had read what was written to it
                raise EOFError from None
            self.fds.extend(fds)
            if not data:
                raise EOFError
            if messages := list(self.decoder.feed(data)):
                return messages

    def _tell(self, event: Any) -> None:
        with contextlib.suppress(OSError):  # the worker is gone; the next read says so
            self.sock.sendall(encode(event))

    def _start(self, start: Start) -> None:
        fd = self.fds.popleft()
        files = [self.fds.popleft() for _ in range(start.files)]
        forks = self.plan.preload and not start.fresh
        group = None if self.groups is None else self.groups.make(start.number, start.confinement)
        bound = group is None or self.groups is None or not self.groups.limits_cores
        cpus = self.cpus.take(start.number, start.confinement.cores if bound else None)
        begin = (start.confinement, cpus, None if group is None else group.path)
        inherited = usage.held(os.getpid()) if forks else 0
        try:
            pid = self._fork(start, fd, begin) if forks else self._spawn(start, fd, files, begin)
        except OSError as exc:  # no memory or no process left: for the worker, a replica that failed to start
            self.cpus.give_back(start.number)
            if group is not None:
                group.remove()
            self._tell(Ended(start.number, exc.errno or 1, 0))
            for each in files:
                os.close(each)
            return
        finally:
            os.close(fd)
        self.children[pid] = start.number
        self.files_of[start.number] = files
        with contextlib.suppress(OSError):  # it does so itself as well, whoever comes first
            os.setpgid(pid, pid)
        self.family.born(start.number, pid)
        if group is not None:
            self.group_of[start.number] = group
        self.watchdog.watch(start.number, pid, start.confinement, inherited)
        self._tell(Forked(start.number, pid))

    def _fork(self, start: Start, fd: int, begin: Beginning) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return pid
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.sock.close()
            for other in (*self.fds, *(file for files in self.files_of.values() for file in files)):
                os.close(other)
            os.environ.update({name: value for name, value in start.environ.items() if value is not None})
            enter(*begin)
            code = replica_main.run(socket.socket(fileno=fd), self.plan, self.app, start.number)
        except BaseException:
            print(redaction.current().text(traceback.format_exc()), file=sys.stderr)
            code = 1
        return replica_main.leave(code)

    def _spawn(self, start: Start, fd: int, files: list[int], begin: Beginning) -> int:
        environ = {**os.environ, **start.environ}
        process = subprocess.Popen(
            [sys.executable, "-m", replica_main.__name__, *map(str, (fd, *files))],
            pass_fds=[fd, *files],
            env={name: value for name, value in environ.items() if value is not None},
            stdin=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(pickle.dumps((start.config or self.plan, start.number, begin)))
        process.stdin.close()
        process.returncode = 0  # reaped here by pid, not by subprocess
        return process.pid

    def _reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            number = self.children.pop(pid, None)
            if number is not None:  # while it is a zombie its id is nobody else's
                self.family.end(number, pid)
                for each in self.files_of.pop(number, ()):
                    os.close(each)
            _, status, resources = os.wait4(pid, 0)
            if number is not None:
                self._ended(number, pid, os.waitstatus_to_exitcode(status), resources.ru_maxrss * 1024)

    def _ended(self, number: int, pid: int, status: int, peak: int) -> None:
        self.family.forget(pid)
        self.cpus.give_back(number)
        watched = self.watchdog.unwatch(number)
        group = self.group_of.pop(number, None)
        if watched is not None and status == -signal.SIGKILL:  # else it was the watchdog, or nobody
            limit, history = watched.bounds.memory, tuple(watched.history)
            used = max(watched.usage.memory, watched.peak, 0 if group is None else group.peak())
            if group is not None and group.was_out_of_memory():
                self._tell(Broke(number, Breach(Bound.MEMORY, used, limit, history)))
            elif self.kernel_kills.happened():
                self._tell(Broke(number, Breach(Bound.KERNEL, used, limit, history)))
        if group is not None:
            group.kill()
            group.remove()
        self._tell(Ended(number, status, peak))

    def _kill_all(self) -> int:
        for pid, number in self.children.items():
            self.family.end(number, pid)
        return 0


def _wake_on_child_exit() -> socket.socket:
    """A socket that becomes readable whenever a child has ended."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _keep.append(writer)
    return reader


_keep: list[socket.socket] = []


if __name__ == "__main__":
    try:
        replica_main.leave(Launcher(socket.socket(fileno=int(sys.argv[1]))).run())
    except EOFError:
        replica_main.leave(0)
