"""What has to hold at every moment, as a pure function of the moments: what is seen goes in, breaches come out.

| invariant | tolerance |
|---|---|
| seats within the bound that is in force; beyond one that was lowered, they only become fewer | none |
| the sums that Redis keeps are those of the workers' reports | none |
| no seat whose worker's lease is over, once another worker has looked | none: that look frees it |
| and somebody looks | `LOOKS` after the lease |
| the minimum, where a worker is heard that has room | `RESTORED` after the leases of those who had it |
| no two replicas with one device | those that say so do it at moments of their own: `lease` |
| no more replicas than seats | `LOOKS`: processes and Redis are read one after the other |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.chaos.walk.snapshot import Environment, Holding, Snapshot

#: Seconds within which somebody looks at a fleet whose workers are heard: they do so five times per second.
LOOKS = 2.0

#: Seconds from the end of the leases of those who had the minimum to when others have it. Of them 1.5 belong to roomier
#: hosts, which are waited for.
RESTORED = 2.0


@dataclass
class Invariants:
    """Compares each moment with what has to hold, and with those before it.

    Args:
        bounds: Least and most replicas of each environment, by its policy.
        resting: Environments that have no replica, whatever their bounds, when nothing has been to do for a while.
        lease: Seconds of every lease.
        patience: Seconds on top of each promise about time.
    """

    bounds: Mapping[str, tuple[int, int]]
    resting: Collection[str]
    lease: float
    patience: float = 0.0
    _before: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Since when something is as it must not stay.
    _since: dict[str, float] = field(default_factory=dict)
    #: When each replica said first and last that it has a device.
    _held: dict[tuple[str, str], dict[tuple[str, str], tuple[float, float]]] = field(default_factory=dict)

    def look(self, seen: Snapshot, replicas: Iterable[str] = ()) -> list[str]:
        """Say what does not hold.

        Args:
            seen: This moment, not before any earlier one.
            replicas: The environment of each process that is a replica.
        """
        found = [*self._two_with_one_device(seen.holdings)]
        processes = Counter(replicas)
        for name, environment in seen.environments.items():
            found += [f"{name}: {each}" for each in self._bound(name, environment)]
            found += [f"{name}: {each}" for each in self._books(environment)]
            found += [f"{name}: {each}" for each in self._expired(name, environment, seen)]
            found += [f"{name}: {each}" for each in self._minimum(name, environment, seen)]
            excess = processes[name] > environment.seats
            if self._lasts(f"{name} processes", excess, seen.at, LOOKS):
                found.append(f"{name}: {processes[name]} replicas exist, with {environment.seats} seats")
        return found

    def in_force(self, name: str, environment: Environment) -> tuple[int, int]:
        """Least and most replicas that are promised now."""
        lowest, highest = self.bounds[name]
        if environment.lowest is not None and environment.highest is not None:
            lowest, highest = environment.lowest, environment.highest
        return 0 if name in self.resting else lowest, highest

    def _bound(self, name: str, environment: Environment) -> Iterator[str]:
        highest = self.in_force(name, environment)[1]
        # Between two moments at most one order is given, before or after others took seats.
        seats, bound = self._before.get(name, (0, highest))
        if environment.seats > max(highest, bound, seats):
            yield f"{environment.seats} seats, of at most {highest} ({seats} before, of at most {bound})"
        self._before[name] = environment.seats, highest

    def _books(self, environment: Environment) -> Iterator[str]:
        for what, summed, reported in (
            ("seats", environment.seats, sum(each.seats for each in environment.workers)),
            ("live replicas", environment.live, sum(each.live for each in environment.workers)),
        ):
            if summed != reported:
                yield f"the sum of {what} is {summed}, and workers have reported {reported}"

    def _expired(self, name: str, environment: Environment, seen: Snapshot) -> Iterator[str]:
        for each in environment.workers:
            others = [other for other in environment.workers if other is not each]
            over = seen.at > each.until
            # Whoever renews does so for a whole lease, so its end says when it was heard; and a look notes that.
            looked = max((other.owned_until - self.lease for other in others), default=0.0)
            if over and each.seats and looked > each.until and looked >= seen.awaited:
                yield f"{each.worker} has {each.seats} seat(s), and another worker has looked since its lease was over"
            heard = max((other.until - self.lease for other in others), default=0.0)
            unfreed = over and bool(each.seats) and seen.at > seen.awaited and heard > seen.at - self.lease / 2
            if self._lasts(f"{name} {each.worker}", unfreed, seen.at, LOOKS):
                yield f"{each.worker} has {each.seats} seat(s) {seen.at - each.until:.1f} s after its lease was over"

    def _minimum(self, name: str, environment: Environment, seen: Snapshot) -> Iterator[str]:
        lowest, highest = self.in_force(name, environment)
        live = sum(each.live for each in environment.workers if each.until > seen.at)
        could = [
            each.worker
            for each in environment.workers
            if each.room and each.generation == environment.current and each.until - self.lease > seen.at - 1.0
        ]
        short = live < lowest and bool(could) and environment.seats < highest and not environment.drained
        if self._lasts(f"{name} minimum", short and seen.at > seen.awaited, seen.at, RESTORED):
            yield f"{live} live replicas, of at least {lowest}, though {', '.join(could)} could start some"

    def _lasts(self, what: str, holds: bool, now: float, seconds: float) -> bool:
        if not holds:
            self._since.pop(what, None)
            return False
        return now - self._since.setdefault(what, now) > seconds + self.patience

    def _two_with_one_device(self, holdings: Iterable[Holding]) -> Iterator[str]:
        # A replica has its devices for its whole life, so it had them between the first time it said so and the last.
        for each in holdings:
            known = self._held.setdefault((each.host, each.device), {})
            owner = each.worker, each.replica
            first, last = known.get(owner, (each.said_at, each.said_at))
            known[owner] = first, max(last, each.said_at)
            for other, (since, until) in known.items():
                both = min(until, known[owner][1]) - max(since, first)
                if other != owner and both > self.lease:
                    yield (
                        f"{each.device} of {each.host} is replica {each.replica}'s of {each.worker} and replica "
                        f"{other[1]}'s of {other[0]} for {both:.1f} s"
                    )
