"""Programs that a replica has started and left behind with its devices, though their locks are free.

A fork of a replica has its locks. A program that it has started has not, for programs are started without the open
files of who starts them; the launcher ends those with their replica, but it may have been killed itself. They are found
by a variable that a replica has, and what it starts: which locks its devices are.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable

from ..names import REPLICA_DEVICES_VARIABLE
from ..supervisor import usage

#: A lock in the variable: the device and inode of its file, and the share, or this for all of them.
_WHOLE = "*"


def variable_of(locks: Iterable[tuple[int, int | None]]) -> dict[str, str]:
    """The variable of a replica with these locks, each an open file and the share of its device."""
    return {REPLICA_DEVICES_VARIABLE: ",".join(":".join(_mark(file, part)) for file, part in locks)}


def _mark(file: int, part: int | None) -> tuple[str, str]:
    found = os.fstat(file)
    return f"{found.st_dev}-{found.st_ino}", _WHOLE if part is None else str(part)


class Leftovers:
    """What is there now of this user's programs that have devices; asked of the system at the first question."""

    def __init__(self) -> None:
        self._found: dict[int, list[tuple[str, str]]] | None = None

    def end(self, file: int, part: int | None) -> list[int]:
        """Kill what has a device, or a share of it, whose lock nobody else has.

        Args:
            file: The lock, which is taken here.
            part: The share, None for all of them.

        Returns:
            The processes, which may not be gone yet.
        """
        wanted, share = _mark(file, part)
        ended = []
        for pid, marks in self._all().items():
            shares = [has for name, has in marks if name == wanted]
            if shares and (share == _WHOLE or _WHOLE in shares or share in shares) and self._kill(pid, marks):
                ended.append(pid)
        return ended

    def _all(self) -> dict[int, list[tuple[str, str]]]:
        if self._found is None:
            self._found = {pid: marks for pid in usage.all_pids() if (marks := _marks_of(pid))}
        return self._found

    def _kill(self, pid: int, marks: list[tuple[str, str]]) -> bool:
        try:
            process = os.pidfd_open(pid)  # its number may be another's by now
        except OSError:
            return False
        try:
            if _marks_of(pid) != marks:
                return False
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)
        return True


def _marks_of(pid: int) -> list[tuple[str, str]]:
    text = usage.variable(pid, REPLICA_DEVICES_VARIABLE)
    return [(name, share) for name, _, share in (each.partition(":") for each in text.split(",")) if share]
