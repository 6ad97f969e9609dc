"""Which process belongs to which replica: the processes that its tasks start, and theirs.

A process belongs to the replica that its parent belonged to when it was first seen, so one that lost its parent since
still does. A look costs one small read while nothing was started on the machine, else one more for each new process.
"""

from __future__ import annotations

import contextlib
import os
import signal

from . import usage


class Family:
    """The processes of a launcher's replicas.

    Args:
        launcher: Process id of the launcher, which orphans of its replicas are given to.
        variable: Environment variable of a replica, and of the programs that it starts, that has its number.
    """

    def __init__(self, launcher: int, variable: str) -> None:
        self._launcher = launcher
        self._variable = variable
        #: The owner of every process that was ever seen and lives: a replica's number, None for what is not ours.
        self._owners: dict[int, int | None] = {}
        self._replicas: dict[int, int] = {}
        self._newest = -1

    def born(self, number: int, pid: int) -> None:
        """A replica's process exists, and leads a process group of its own."""
        self._replicas[pid] = number
        self._owners[pid] = number

    def members(self, number: int) -> list[int]:
        """A replica's process and those that came from it, as of the last look."""
        return [pid for pid, owner in self._owners.items() if owner == number]

    def look(self) -> None:
        """See who is new, and who is gone."""
        newest = usage.last_pid()
        if newest == self._newest:
            return
        if newest < self._newest:  # numbers are given anew: what is known of them may be about others
            self._owners = dict(self._replicas.items())
        self._newest = newest
        alive = set(usage.all_pids())
        self._owners = {pid: owner for pid, owner in self._owners.items() if pid in alive}
        kin = {pid: found for pid in alive - self._owners.keys() if (found := usage.kinship(pid)) is not None}
        for pid in kin:
            self._adopt(pid, kin)

    def _adopt(self, pid: int, kin: dict[int, usage.Kinship]) -> int | None:
        if pid in self._owners:
            return self._owners[pid]
        found = kin.get(pid)
        if found is None:
            return None
        self._owners[pid] = None  # ends the recursion where numbers were given anew meanwhile
        owner = self._replicas.get(found.group)
        if owner is None and found.parent == self._launcher:  # an orphan that left the group, never seen before
            number = usage.variable(pid, self._variable)
            owner = int(number) if number.isdigit() else None
        elif owner is None:
            owner = self._adopt(found.parent, kin)
        self._owners[pid] = owner
        return owner

    def end(self, number: int, pid: int) -> None:
        """Kill a replica, or what is left of it: its process group, and what has left that.

        Args:
            number: The replica.
            pid: Its process id, which must not have been reaped yet, so that it is nobody else's.
        """
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        for _ in range(_ROUNDS):
            self._newest = -1
            self.look()
            left = [each for each in self.members(number) if each != pid]
            if not left:
                return
            for each in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(each, signal.SIGKILL)

    def forget(self, pid: int) -> None:
        """A replica's process was reaped."""
        self._replicas.pop(pid, None)
        self._owners.pop(pid, None)


#: How often what a replica leaves behind is looked for: each time kills what was started since the last.
_ROUNDS = 20
