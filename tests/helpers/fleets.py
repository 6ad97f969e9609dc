"""A fleet without processes: workers that look at real seats in a real Redis, at times that a test gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import redis

from flyte_celery import names
from flyte_celery.fleet.claims import LeaseLostError
from flyte_celery.fleet.seats import Place, Report, Seats, View, seat_keys

#: Seconds of every lease.
LEASE = 15.0

#: Seconds before the end of its lease at which a worker that is cut off has ended its replicas.
MARGIN = 1.0


@dataclass
class SimulatedWorker:
    """One worker: it starts what it may, drains what it should, and ends what it must.

    Its replicas exist from the moment they are given until they are told of as gone.
    """

    client: redis.Redis
    environment: str
    name: str
    place: Place
    room: int
    highest: int
    slots: int = 1
    exist: int = 0
    draining: int = 0
    running: int = 0
    target: int = 0
    #: Until when others may not use its seats, as it knows itself.
    safe_until: float = 0.0
    cut_off: bool = False
    #: Whether what it starts fails to, so that it is gone with the next look, and nothing is started by the one after.
    broken: bool = False
    #: Replicas that have not been ready yet; they are with the next look.
    starting: int = 0
    may_start: bool = True
    lives: int = 1
    view: View = field(default_factory=View)

    def __post_init__(self) -> None:
        self.seats = Seats(
            self.client, self.environment, names.PRIORITY_STEPS, lambda: f"{self.name}:{self.lives}", LEASE, self.place
        )

    @property
    def live(self) -> int:
        """Replicas that do not drain."""
        return self.exist - self.draining

    @property
    def member(self) -> str:
        """Its name among all workers."""
        return names.worker_member(self.environment, f"{self.name}:{self.lives}")

    def join(self, now: float) -> None:
        """Begin to live."""
        self.client.zadd(names.workers_key(), {self.member: int((now + LEASE) * 1000)})
        self.safe_until = now + LEASE - MARGIN

    def pass_time(self, now: float) -> None:
        """Do without Redis what the time asks for: who is cut off ends its replicas."""
        if now >= self.safe_until:
            self.exist = self.draining = self.running = 0

    def look(self, now: float) -> None:
        """Report, and do what the answer says."""
        self.pass_time(now)
        if self.cut_off:
            return
        self.may_start = not (self.broken and self.starting)
        if self.broken:
            self.crash(self.starting)
        self.starting = 0
        report = Report(
            exist=self.exist,
            live=self.live,
            revivable=self.draining,
            running=self.running,
            room=max(0, self.room - self.exist),
            target=self.target,
            ready=self.live,
            may_start=self.may_start,
        )
        try:
            self.view = self.seats.report(report, self.highest, self.slots, now)
        except LeaseLostError:
            self.exist = self.draining = self.running = 0
            self.lives += 1
            self.join(now)
            return
        self.safe_until = now + LEASE - MARGIN
        revived = min(self.view.given, self.draining)
        self.draining -= revived
        self.starting = self.view.given - revived
        self.exist += self.starting
        self.draining += self.view.to_drain
        self.running = min(self.running, self.exist)

    @property
    def serves(self) -> int:
        """Replicas that take tasks."""
        return self.live - self.starting if self.view.serves else 0

    def finish(self, number: int) -> None:
        """So many draining replicas have ended."""
        gone = min(number, self.draining)
        self.draining -= gone
        self.exist -= gone
        self.running = min(self.running, self.exist)

    def crash(self, number: int) -> None:
        """So many replicas are gone at once."""
        self.exist = max(0, self.exist - number)
        self.starting = min(self.starting, self.exist)
        self.draining = min(self.draining, self.exist)
        self.running = min(self.running, self.exist)

    def leave(self) -> None:
        """Stop in order."""
        self.exist = self.draining = self.running = 0
        self.seats.leave()
        self.client.zadd(names.workers_key(), {self.member: -1})


def seats_in_redis(client: redis.Redis, environment: str) -> dict[str, int]:
    """The seats of each worker, from its report."""
    reports: dict[bytes, bytes] = client.hgetall(names.fleet_key(environment, "reports"))  # type: ignore[assignment]
    return {member.decode(): int(report.split()[0]) for member, report in reports.items()}


def check_sums(client: redis.Redis, environment: str) -> None:
    """The sums that are kept are those of the reports, and all parts know the same workers.

    Raises:
        AssertionError: They are not.
    """
    keys = seat_keys(environment, names.PRIORITY_STEPS)
    reports: dict[bytes, bytes] = client.hgetall(keys[2])  # type: ignore[assignment]
    rows = {member: [int(word) for word in report.split()[:7]] for member, report in reports.items()}
    sums: dict[bytes, bytes] = client.hgetall(keys[1])  # type: ignore[assignment]
    for index, name in enumerate(("seats", "live", "waiting", "running", "suspended", "starting")):
        assert int(sums.get(name.encode(), 0)) == sum(row[index] for row in rows.values()), (name, sums, rows)
    listed: list[Any] = [client.zrange(key, 0, -1) for key in keys[3:7]]
    owners = set(listed[0])
    assert owners == rows.keys()
    assert all(set(members) <= owners for members in listed)
    scores: Any = client.zrange(keys[4], 0, -1, withscores=True)
    lives = {member: int(score) for member, score in scores}
    current, trial = int(sums.get(b"current", 0)), int(sums.get(b"trial", b"0").split()[0])
    shown = {int(name[2:]) for name in sums if name.startswith(b"r:")}
    expected = {member: row[1] for member, row in rows.items() if row[1] and row[6] <= current}
    # Where the one before has gone, what a definition on trial has is known as live from its worker's next look on.
    tried = {member for member in expected.keys() - lives.keys() if rows[member][6] not in shown}
    assert lives == {member: live for member, live in expected.items() if member not in tried}
    generations: dict[int, int] = {}
    for row in rows.values():
        generations[row[6]] = generations.get(row[6], 0) + 1
    counted = {int(name[2:]): int(value) for name, value in sums.items() if name.startswith(b"g:")}
    assert counted == generations
    assert shown <= generations.keys()
    if rows:
        assert current in generations
        assert trial == (max(generations) if max(generations) > current else 0)
        assert current >= max(shown, default=0)
        assert sum(row[1] for row in rows.values() if row[6] > current) <= 1, "replicas of definitions on trial"
