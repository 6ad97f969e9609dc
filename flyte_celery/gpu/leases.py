"""Who has which device of this host: locks that a replica's process holds until it is gone.

```
GPU-5d5b...          byte 0, 1, 2, ...   its shares; a device that is given as a whole is locked as a whole
GPU-5d5b....broken   the reason, while nobody is to be given the device
GPU-5d5b....suspect  the same, until the moment at which the file says that it was written
several              held while somebody takes more than one: two that each have the half get none
```
A lock belongs to an open file (`F_OFD_SETLK`). The worker takes it, hands the file to the launcher and the process
that becomes the replica, and closes its own; so the kernel gives the device back when that process, and what it has
forked, is gone, and the launcher has ended what it has started, or is gone itself. What is left then is ended by who
gets the device next, see `leftovers`. No clock and no message is part of it, and workers of all environments on the
host meet in one directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..devices import Device
from .inventory import Accelerator, fitting, replicas_of
from .leftovers import Leftovers, variable_of
from .visibility import variables

#: Where programs of all users keep locks, where they may.
_RUN_LOCK = Path("/run/lock")
_TEMPORARY = Path("/tmp")

#: The kernel's `struct flock`: type, whence, start, length, process.
_FLOCK = "hhqqi"

#: Bytes of a lock's file in which its holder is named, for each share.
_WIDTH = 256

#: The lock of who takes several devices.
_SEVERAL = "several"

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def default_directory() -> Path:
    """Where the locks of this host are: the same for every user who asks."""
    try:
        shared = bool(_RUN_LOCK.stat().st_mode & stat.S_IWOTH)
    except OSError:
        shared = False
    return (_RUN_LOCK if shared else _TEMPORARY) / "flyte-celery-devices"


@dataclass(slots=True, eq=False)
class Lease:
    """Devices of one replica."""

    accelerators: tuple[Accelerator, ...]
    """What it has."""

    shares: tuple[int, ...]
    """Which share of each, 0 for a device that it has alone."""

    files: list[int] = field(default_factory=list)
    """The open locks, one for each device; who holds them open has the devices."""

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables by which the replica sees these devices and no other, while this has their locks."""
        parts = [share if each.shares > 1 else None for each, share in self._parts]
        locks = variable_of(zip(self.files, parts, strict=True))
        return variables(self.accelerators[0].device_class, self.accelerators) | locks

    @property
    def labels(self) -> list[str]:
        """For people: each device, with the number of its share."""
        return [f"{each.label}#{share}" if each.shares > 1 else each.label for each, share in self._parts]

    @property
    def _parts(self) -> list[tuple[Accelerator, int]]:
        return list(zip(self.accelerators, self.shares, strict=True))

    def close(self) -> None:
        """Let go of the locks here; who was handed them has the devices still."""
        while self.files:
            os.close(self.files.pop())


class Leases:
    """The devices of this host that replicas of one environment may be given.

    Args:
        directory: Where the locks are.
        wanted: What one replica needs.
        accelerators: What this worker offers.
    """

    def __init__(self, directory: Path, wanted: Device, accelerators: Iterable[Accelerator]) -> None:
        self.directory = directory
        self.wanted = wanted
        self.accelerators = fitting(wanted, accelerators)
        self._number = int(-(-wanted.quantity // 1))
        #: Processes that the last `take` has found with a device that nobody has locked, and killed.
        self.left_behind: dict[str, list[int]] = {}

    def take(self, holder: str) -> Lease | None:
        """Devices for one more replica, None when too few are free, or somebody else is just taking several.

        Args:
            holder: What others are told of who has them.

        Raises:
            OSError: The locks cannot be used.
        """
        lease = Lease((), ())
        turn = None
        if self._number > 1 and (turn := lock(self.directory / _SEVERAL, None, holder)) is None:
            return None
        try:
            self._fill(lease, holder)
        except BaseException:
            lease.close()
            raise
        finally:
            if turn is not None:
                os.close(turn)
        if len(lease.accelerators) == self._number:
            return lease
        lease.close()
        return None

    def _fill(self, lease: Lease, holder: str) -> None:
        broken, leftovers = self.broken(), Leftovers()
        self.left_behind = {}
        # The first share of every device, then the second of each: work is spread.
        for share in range(max((each.shares for each in self.accelerators), default=0)):
            for accelerator in self.accelerators:
                if len(lease.accelerators) == self._number:
                    return
                if accelerator in lease.accelerators or share >= accelerator.shares or accelerator.id in broken:
                    continue
                part = None if accelerator.shares == 1 else share
                if (file := lock(self._path(accelerator), part, holder)) is None:
                    continue
                if ended := leftovers.end(file, part):  # they are gone when it is asked for again
                    self.left_behind[accelerator.label] = ended
                    os.close(file)
                    continue
                lease.files.append(file)
                lease.accelerators += (accelerator,)
                lease.shares += (share,)

    def free(self) -> int:
        """For how many more replicas there are devices."""
        broken = self.broken()
        parts = [
            sum(holder_of(self._path(each), share if each.shares > 1 else None) is None for share in range(each.shares))
            for each in self.accelerators
            if each.id not in broken
        ]
        return replicas_of(self._number, parts)

    def holders(self) -> dict[str, str]:
        """Who has what cannot be had now, by device or share, for people."""
        held: dict[str, str] = {}
        for accelerator in self.accelerators:
            for share in range(accelerator.shares):
                part = None if accelerator.shares == 1 else share
                if (holder := holder_of(self._path(accelerator), part)) is not None:
                    held[accelerator.label if part is None else f"{accelerator.label}#{part}"] = holder
        return held

    def touch(self, lease: Lease) -> None:
        """Keep the locks from programs that remove old files from directories of temporary ones."""
        for accelerator in lease.accelerators:
            with contextlib.suppress(OSError):
                os.utime(self._path(accelerator))

    # -- Broken devices ----------------------------------------------------------------------------------------------

    def condemn(self, accelerator: Accelerator, why: str, seconds: float | None = None) -> Path:
        """Give the device to nobody on this host until the file that is returned is removed.

        Args:
            accelerator: The device.
            why: For people.
            seconds: Give it to somebody again after that, to see whether it works; None: never.

        Raises:
            OSError: The note cannot be written; the device stays in use.
        """
        path = self._path(accelerator, "broken" if seconds is None else "suspect")
        with os.fdopen(_opened(path), "w") as file:
            file.truncate(0)
            file.write(why)
            file.flush()
            if seconds is not None:
                until = time.time() + seconds
                os.utime(file.fileno(), (until, until))
        return path

    def broken(self) -> dict[str, str]:
        """The devices that nobody is given, with the reason, by their ids."""
        found: dict[str, str] = {}
        for accelerator in self.accelerators:
            with contextlib.suppress(OSError):
                path = self._path(accelerator, "suspect")
                if (until := path.stat().st_mtime) > time.time():
                    tried = time.strftime("%H:%M:%S", time.localtime(until))
                    found[accelerator.id] = f"{path.read_text()}; it is tried again at {tried}"
            with contextlib.suppress(OSError):
                found[accelerator.id] = self._path(accelerator, "broken").read_text()
        return found

    def _path(self, accelerator: Accelerator, part: str | None = None) -> Path:
        name = _UNSAFE.sub("_", f"{accelerator.device_class}-{accelerator.id}")
        return self.directory / (f"{name}.{part}" if part else name)


def lock(path: Path, part: int | None, holder: str) -> int | None:
    """Lock a file, or one byte of it, without waiting.

    Args:
        path: The file; it is made where it is missing.
        part: The byte, None for all of them.
        holder: What is written into the file, for others to read.

    Returns:
        The open file that has the lock, None when somebody else has it.

    Raises:
        OSError: The file cannot be made or opened.
    """
    while True:
        file = _opened(path)
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _request(part))
        except (BlockingIOError, PermissionError):
            os.close(file)
            return None
        except BaseException:
            os.close(file)
            raise
        # Somebody who tidies up may have removed the file meanwhile: a lock on what nobody finds protects nothing.
        if _is(path, file):
            os.pwrite(file, holder.encode()[:_WIDTH].ljust(_WIDTH), (part or 0) * _WIDTH)
            return file
        os.close(file)


def holder_of(path: Path, part: int | None) -> str | None:
    """Who has a lock that is in the way of this one, None when it can be had."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        answer = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_OFD_GETLK, _request(part)))
        if answer[0] == fcntl.F_UNLCK:
            return None
        return os.pread(file, _WIDTH, answer[2] * _WIDTH).decode(errors="replace").strip() or "somebody"
    finally:
        os.close(file)


def _request(part: int | None) -> bytes:
    start, length = (0, 0) if part is None else (part, 1)  # a length of 0 is all that there is, or ever will be
    return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)


def _opened(path: Path) -> int:
    for _ in range(100):
        # Without O_CREAT first: Linux forbids it in a directory like /tmp for what another user has made.
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        _make(path.parent)
        with contextlib.suppress(FileExistsError):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            os.fchmod(file, 0o666)  # workers of all users take it, whatever our umask
            return file
    raise OSError(f"{path} appears and disappears: something removes the locks of devices while they are used.")


def _make(directory: Path) -> None:
    with contextlib.suppress(FileExistsError):
        directory.mkdir(parents=True)
        directory.chmod(0o1777)


def _is(path: Path, file: int) -> bool:
    try:
        there, ours = path.stat(follow_symlinks=False), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
