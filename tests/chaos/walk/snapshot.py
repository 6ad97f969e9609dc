"""One moment of the whole fleet, read from Redis in one step."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flyte_celery import names


@dataclass(frozen=True, slots=True)
class Seating:
    """One worker's report, as Redis keeps it."""

    worker: str
    seats: int
    live: int = 0
    generation: int = 1
    #: The end of its lease in seconds, 0 or less when it was condemned, None when nothing is known of one.
    lease: float | None = None
    #: The end of its seats, which may be older.
    owned_until: float = 0.0
    #: Replicas that it could start besides.
    room: int = 0

    @property
    def until(self) -> float:
        """When its seats are others'."""
        return max(self.owned_until, self.lease or 0.0)


@dataclass(frozen=True, slots=True)
class Environment:
    """What the workers of one environment tell each other, and what was ordered of it."""

    seats: int = 0
    live: int = 0
    current: int = 0
    workers: tuple[Seating, ...] = ()
    lowest: int | None = None
    highest: int | None = None
    drained: bool = False


@dataclass(frozen=True, slots=True)
class Holding:
    """A replica says which device it has."""

    host: str
    device: str
    worker: str
    replica: str
    #: Seconds.
    said_at: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment, by the server's clock in seconds."""

    at: float
    #: Until when seats of workers that were cut off with everybody else are left to them.
    awaited: float = 0.0
    environments: dict[str, Environment] = field(default_factory=dict)
    holdings: tuple[Holding, ...] = ()


def take(client: Any, environments: Iterable[str], lease: float) -> Snapshot:
    """Read the fleet.

    Args:
        client: A redis-py client that returns bytes.
        environments: Those that are looked at.
        lease: Seconds of every lease.
    """
    wanted = list(environments)
    pipe = client.pipeline(transaction=True)
    pipe.time()
    pipe.get(names.pulse_key())
    pipe.zrange(names.workers_key(), 0, -1, withscores=True)
    pipe.hgetall(names.offers_key())
    pipe.zrange(names.offers_until_key(), 0, -1, withscores=True)
    for name in wanted:
        pipe.hgetall(names.fleet_key(name, "sums"))
        pipe.hgetall(names.fleet_key(name, "reports"))
        pipe.zrange(names.fleet_key(name, "owners"), 0, -1, withscores=True)
        pipe.zrange(names.fleet_key(name, "rooms"), 0, -1, withscores=True)
        pipe.hmget(names.orders_key(name), ["min", "max", "drained"])
    (seconds, micros), pulse, scores, offers, offers_until, *parts = pipe.execute()
    leases = {member: score / 1000 for member, score in scores}
    return Snapshot(
        at=seconds + micros / 1e6,
        awaited=int(pulse.split()[1]) / 1000 if pulse else 0.0,
        environments={
            name: _environment(leases, *parts[number * 5 : number * 5 + 5]) for number, name in enumerate(wanted)
        },
        holdings=_holdings(offers, {worker: score / 1000 - lease for worker, score in offers_until}),
    )


def _environment(
    leases: dict[bytes, float], sums: Any, reports: Any, owners: Any, rooms: Any, orders: Any
) -> Environment:
    owned, room = dict(owners), dict(rooms)
    workers = []
    for member, report in reports.items():
        seats, live, *_, generation, _, _, _ = report.split()
        workers.append(
            Seating(
                member.decode(),
                int(seats),
                int(live),
                int(generation),
                leases.get(member),
                owned.get(member, 0) / 1000,
                int(room.get(member, 0)),
            )
        )
    lowest, highest, drained = orders
    return Environment(
        seats=int(sums.get(b"seats", 0)),
        live=int(sums.get(b"live", 0)),
        current=int(sums.get(b"current", 0)),
        workers=tuple(workers),
        lowest=None if lowest is None else int(lowest),
        highest=None if highest is None else int(highest),
        drained=bool(drained),
    )


def _holdings(offers: dict[bytes, bytes], said: dict[bytes, float]) -> tuple[Holding, ...]:
    found = []
    for worker, text in offers.items():
        for replica, devices in json.loads(text)["held"].items():
            node = worker.decode()
            host = node.partition("@")[2]
            found += [Holding(host, device, node, replica, said.get(worker, 0.0)) for device in devices]
    return tuple(found)
