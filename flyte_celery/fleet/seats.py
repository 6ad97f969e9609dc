"""Seats: the right to run one replica of an environment, of which the whole fleet has at most its maximum.

Each worker looks once per interval, in one round trip: it says what it has and what it would find right for the whole
fleet, and hears what all workers have, which further replicas it may start and which it should let go. The script
behind it decides alone, by the server's clock, so there is no leader; `fleet/lua/seats.lua` says how.

A seat holds for as long as its worker's lease, which each look renews. It is given back by not telling of it any
more, which a worker does when the replica's process is gone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import redis

from .. import names
from .claims import LeaseLostError
from .scripts import script

#: Seconds for which the numbers of a fleet are kept after its last worker has said anything.
KEPT = 24 * 3600


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker has, and wants."""

    exist: int = 0
    """Replicas whose process is there, or was asked for; each has a seat."""

    live: int = 0
    """Of these, those that take tasks, or will."""

    revivable: int = 0
    """Of these, those that drain and can be taken back."""

    waiting: int = 0
    running: int = 0
    suspended: int = 0
    starting: int = 0

    room: int = 0
    """Replicas that the worker's host has room for besides."""

    target: int = 0
    """Replicas that the worker finds right for the whole fleet."""

    ready: int = 0
    """Replicas that are ready to take tasks."""

    may_start: bool = True
    """Whether one more may be started: none has failed to so lately that the next one has to wait."""


@dataclass(frozen=True, slots=True)
class View:
    """What a worker hears. The names that begin with `all_` are sums over the fleet."""

    seats: int = 0
    """Replicas of this worker that may exist."""

    given: int = 0
    """Replicas that it is to start, or to take back from draining."""

    to_drain: int = 0
    """Replicas that it is to let go."""

    ready: int = 0
    """Tasks in the queue, over all priorities."""

    beside: int = 0
    """Of these, calls for replicas other than the environment's own, which wait for none of its seats.

    The first ones are counted, a thousand or half a mebibyte, and fewer where these are work for all replicas that may
    be; what is behind is taken for the like of it.
    """

    all_waiting: int = 0
    all_running: int = 0
    all_suspended: int = 0
    all_starting: int = 0
    all_seats: int = 0
    all_live: int = 0

    target: int = 0
    """Replicas that the fleet should have: the most that any worker finds right."""

    workers: int = 0
    """Workers of the environment, of every generation."""

    generation: int = 0
    """This worker's: it counts how the environment's definition has changed."""

    current: int = 0
    """The newest one of which a replica has been ready, which alone takes tasks; the newest where there is none."""

    trial: int = 0
    """The newest one, while none of its replicas has been ready; 0 when that is the current one."""

    proving: int = 0
    """Replicas of that one, which take no task yet and are not among `all_live`."""

    lowest: int | None = None
    highest: int | None = None
    """The operator's bounds in place of the policy's."""

    paused: bool = False
    """The operator wants nothing of the queue to be taken."""

    drained: bool = False
    """The operator wants no replica of this environment, or on this host."""

    proves: bool = False
    """Whether this worker is the one that starts a replica of the generation on trial."""

    prewarm: int = 0
    prewarm_id: int = 0
    """Replicas that an operator wants now, and which order that was."""

    @property
    def serves(self) -> bool:
        """Whether this worker may have replicas at all."""
        return not self.drained and self.generation == self.current

    @classmethod
    def from_reply(cls, reply: list[int]) -> View:
        """What the script has answered."""
        *sums, lowest, highest, flags, prewarm, prewarm_id = reply
        return cls(
            **dict(zip(_SUMS, sums, strict=True)),
            lowest=None if lowest < 0 else lowest,
            highest=None if highest < 0 else highest,
            paused=bool(flags & 1),
            drained=bool(flags & 6),
            proves=bool(flags & 8),
            prewarm=prewarm,
            prewarm_id=prewarm_id,
        )


#: The fields that the script answers as they are, in its order.
_SUMS = [*itertools.takewhile(lambda name: name != "lowest", (each.name for each in fields(View)))]


@dataclass(frozen=True, slots=True)
class Place:
    """Where and what a worker is, which does not change in its life."""

    definition: str
    """A word that differs when the environment's definition does."""

    host: str

    millicores: int = 0
    megabytes: int = 0
    """What one replica takes of the host."""

    host_millicores: int = 0
    host_megabytes: int = 0
    """What the host has to give; 0 for no bound."""

    proof: str = "-"
    """By which another process of the same machine can tell that this worker's replicas are gone."""


class Seats:
    """One worker's seats.

    Args:
        client: With time-outs: nobody waits for long.
        queue: The environment's queue.
        steps: Its priority steps.
        worker: The worker's present name, as it has its lease by; a lost lease changes it.
        lease: Seconds.
        place: The worker.
    """

    def __init__(
        self,
        client: redis.Redis,
        queue: str,
        steps: tuple[int, ...],
        worker: Callable[[], str],
        lease: float,
        place: Place,
    ) -> None:
        self._client = client
        self._queue = queue
        self._keys = seat_keys(queue, steps)
        self._worker = worker
        self._lease = lease
        self.place = place

    def report(self, report: Report, most: int, slots: int, now: float | None = None) -> View:
        """Say what there is and hear what may be; renews the worker's lease.

        Args:
            report: What there is.
            most: Replicas that the policy allows the fleet.
            slots: Tasks that a replica runs at once.
            now: Seconds in place of the server's clock, for tests.

        Raises:
            LeaseLostError: The seats are free for others: every replica has to go.
            redis.RedisError: Nothing is known, and nothing may be started.
        """
        place = self.place
        args = [
            "report",
            "" if now is None else int(now * 1000),
            names.worker_member(self._queue, self._worker()),
            int(self._lease * 1000),
            place.definition,
            place.host,
            most,
            slots,
            report.exist,
            report.live,
            report.revivable,
            report.waiting,
            report.running,
            report.suspended,
            report.starting,
            report.room,
            report.target,
            place.proof,
            place.millicores,
            place.megabytes,
            place.host_millicores,
            place.host_megabytes,
            names.host_shares_key(""),
            KEPT,
            report.ready,
            int(report.may_start),
        ]
        reply = script("seats").run(self._client, self._keys, args)
        if reply == -1:
            raise LeaseLostError(f"The lease of {self._worker()} on {self._queue!r} was over.")
        return View.from_reply(reply)

    def leave(self) -> None:
        """Give every seat back: no replica of this worker is left."""
        leave(self._client, self._keys, names.worker_member(self._queue, self._worker()))

    def free_those_of_the_dead(self, is_gone: Callable[[str], bool]) -> list[str]:
        """Give back the seats of earlier lives of this worker on the same machine, whose leases are not over yet.

        Args:
            is_gone: Says of a worker's proof of life whether its replicas are gone for sure.

        Returns:
            The workers' names.
        """
        own = names.worker_member(self._queue, self._worker())
        node = own.rpartition(":")[0] + ":"
        reports: dict[bytes, bytes] = self._client.hgetall(self._keys[2])  # type: ignore[assignment]
        freed = []
        for member, report in reports.items():
            name = member.decode()
            if name != own and name.startswith(node) and is_gone(report.decode().rpartition(" ")[2]):
                leave(self._client, self._keys, name)
                freed.append(name)
        return freed


def seat_keys(queue: str, steps: tuple[int, ...]) -> list[str]:
    """The keys of `fleet/lua/seats.lua`."""
    return [
        names.workers_key(),
        *(names.fleet_key(queue, part) for part in ("sums", "reports", "owners", "live", "rooms", "targets")),
        names.orders_key(queue),
        names.drained_hosts_key(),
        names.pulse_key(),
        *names.priority_lists(queue, steps),
    ]


def leave(client: redis.Redis, keys: list[str], member: str) -> None:
    """Give back every seat of a worker, whose replicas are gone."""
    script("seats").run(client, keys, ["leave", "", member, *[0] * 19, names.host_shares_key(""), 0])


def look(client: redis.Redis, queue: str, steps: tuple[int, ...], now: float | None = None) -> View:
    """What a fleet has, for somebody who is no worker of it."""
    at: Any = "" if now is None else int(now * 1000)
    args: list[Any] = ["look", at, "", 0, "-", "-", 0, 1, *[0] * 14, names.host_shares_key(""), 0]
    args[6] = 2**31  # no policy is known here
    return View.from_reply(script("seats").run(client, seat_keys(queue, steps), args))
