"""Where the bundled Redis listens, and the URLs that mean it.

The path of a unix socket has at most 108 bytes (104 on macOS). Where the project's path is too long, `redis.sock` is a
link to a socket in the folder `flyte-celery-<user id>-<hash of the directory>` of the directory for temporary files
(`XDG_RUNTIME_DIR` would be emptied when the user logs out, and the server stays). The folder must be a real one of
this user's, and nobody else may enter it. The link is made once and then believed, whatever `TMPDIR` says later, so
that a URL that was given out stays right.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from .error import EmbeddedRedisError

#: The folder of a project directory that holds what runs for it.
STATE_FOLDER = ".flyte-celery"

#: Longest path of a socket in bytes: the limit of macOS, which is the smallest, without the closing zero.
_LONGEST_ADDRESS = 103


@dataclass(frozen=True, slots=True)
class Address:
    """The socket of the server whose files are in `directory`."""

    directory: Path
    """Absolute, without symbolic links."""

    @property
    def _socket(self) -> Path:
        return self.directory / "redis.sock"

    def find(self) -> Path | None:
        """Where the server listens, as far as that is settled: the socket, or what it links to if that is ours."""
        if _fits(self._socket):
            return self._socket
        try:
            target = Path(os.readlink(self._socket))
        except OSError:
            return None
        return target if target.parent.name == self._short_name() else None

    def settle(self) -> Path:
        """Where the server listens or will listen; its folder exists and is private.

        Raises:
            EmbeddedRedisError: The directory's path is too long, and there is no shorter one that can be used.
            OSError: A folder or link cannot be made.
        """
        found = self.find()
        if found is not None and found.parent.parent.is_dir():
            make_private(found.parent)
            return found
        base = Path(tempfile.gettempdir()).resolve()
        address = base / self._short_name() / self._socket.name
        if not _fits(address):
            raise EmbeddedRedisError(
                f"The path {self._socket} is too long for a socket (at most {_LONGEST_ADDRESS} bytes), and so is "
                f"{address}: set TMPDIR to a directory with a short path, such as /tmp."
            )
        make_private(address.parent)
        self._socket.unlink(missing_ok=True)
        self._socket.symlink_to(address)
        return address

    def tidy(self) -> None:
        """Remove what a server that has ended left outside of its directory; the link stays, and so the address."""
        found = self.find()
        if found is not None and found.parent != self.directory:
            with suppress(OSError):
                found.parent.rmdir()

    def _short_name(self) -> str:
        digest = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:12]
        return f"flyte-celery-{os.geteuid()}-{digest}"


def broker_url(address: Path) -> str:
    """The URL of a unix socket as kombu's Redis transport and Celery's Redis result backend both read it."""
    return f"redis+socket://{quote(str(address))}?virtual_host=0"


def client_url(url: str) -> str:
    """The same server as `redis.Redis.from_url` reads it: `unix://` for Celery's `redis+socket://`.

    A worker has its own transport in that URL: `flyte-redis+socket://`.

    Args:
        url: A broker or result backend URL. All others come back unchanged.
    """
    parts = urlsplit(url)
    if parts.scheme.rpartition("+")[2] != "socket":
        return url
    options = [
        ("db", value.strip("/")) if key == "virtual_host" else (key, value) for key, value in parse_qsl(parts.query)
    ]
    return f"unix://{parts.netloc}{parts.path}" + (f"?{urlencode(options)}" if options else "")


def make_private(folder: Path) -> None:
    """Make a folder that only this user may enter, and refuse one that somebody else put there."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise EmbeddedRedisError(
            f"{folder} belongs to user {found.st_uid} (this process is user {os.geteuid()}), or is no real directory: "
            "the embedded Redis does not trust it. Remove it, or run as its owner."
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)


def _fits(address: Path) -> bool:
    """Whether a path can be a socket's, and part of a URL (a URL cannot carry bytes that are no text)."""
    return len(os.fsencode(address)) <= _LONGEST_ADDRESS and str(address).isprintable()
