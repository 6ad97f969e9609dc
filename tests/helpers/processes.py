"""The processes of this machine, read from `/proc`: whose child is whose, and which test started which."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.helpers.waiting import wait_until

_PROC = Path("/proc")


def everything() -> set[int]:
    """The ids of all processes that this one can see."""
    return {int(name) for name in os.listdir(_PROC) if name.isdecimal()}


def alive(pid: int) -> bool:
    """Whether the process exists and has not ended; one that merely waits to be reaped has ended."""
    return _state_and_parent(pid) is not None


def parent(pid: int) -> int:
    """The parent of a living process."""
    found = _state_and_parent(pid)
    assert found is not None, f"The process {pid} has ended."
    return found[1]


def command_line(pid: int) -> str:
    """The command line of a process, or an empty text when it is gone."""
    return _read(pid, "cmdline").replace("\0", " ").strip()


def descendants(pid: int) -> list[int]:
    """The living children of a process, their children, and so on, each parent before its own children.

    A process whose parent ended belongs to nobody and is not found; `carrying` finds it.
    """
    children: dict[int, list[int]] = {}
    for candidate in everything():
        if (found := _state_and_parent(candidate)) is not None:
            children.setdefault(found[1], []).append(candidate)
    family = [pid]
    for member in family:
        family.extend(children.get(member, ()))
    return family[1:]


def carrying(variable: str, value: str) -> list[int]:
    """The living processes that were started with this environment variable, and what they forked.

    This follows a process through everything that hides it from `descendants`: a parent that ended, a session or a
    process group of its own.
    """
    wanted = f"{variable}={value}"
    return [pid for pid in everything() if wanted in _read(pid, "environ").split("\0") and alive(pid)]


def kill_carrying(variable: str, value: str) -> None:
    """Kill every process that `carrying` finds, and those that it forks meanwhile, until none is left."""

    def none_left() -> bool:
        left = carrying(variable, value)
        for pid in left:
            kill(pid)
        return not left

    wait_until(none_left, description=f"the end of all processes with {variable}={value}")


def kill(pid: int) -> None:
    """Send SIGKILL to one process, which may be gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _state_and_parent(pid: int) -> tuple[str, int] | None:
    """The state letter and the parent of a process that has not ended."""
    # The second field is the program's name in brackets, which may itself hold brackets and blanks.
    fields = _read(pid, "stat").rpartition(")")[2].split()
    if not fields or fields[0] in "ZX":
        return None
    return fields[0], int(fields[1])


def _read(pid: int, name: str) -> str:
    try:
        return (_PROC / str(pid) / name).read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
