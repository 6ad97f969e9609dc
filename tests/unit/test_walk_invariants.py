"""What a walk of the fleet looks for, on moments that are written by hand: a watch that sees nothing proves nothing."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.chaos.walk.invariants import LOOKS, RESTORED, Invariants
from tests.chaos.walk.snapshot import Environment, Holding, Seating, Snapshot

LEASE = 3.0

#: The moment at which each story begins.
NOW = 1000.0


@pytest.fixture
def invariants() -> Invariants:
    """Of one environment with one to three replicas, and one that rests."""
    return Invariants({"env": (1, 3), "resting": (0, 2)}, ("resting",), LEASE)


def worker(
    seats: int, looked: float = NOW, live: int | None = None, room: int = 0, generation: int = 1, name: str = "w"
) -> Seating:
    """A worker that has looked at some moment, and renewed its lease with that."""
    until = looked + LEASE
    return Seating(name, seats, seats if live is None else live, generation, until, until, room)


def moment(
    *workers: Seating,
    at: float = NOW,
    highest: int | None = None,
    lowest: int | None = None,
    drained: bool = False,
    awaited: float = 0.0,
    name: str = "env",
) -> Snapshot:
    """A moment whose sums are right."""
    environment = Environment(
        seats=sum(each.seats for each in workers),
        live=sum(each.live for each in workers),
        current=1,
        workers=workers,
        lowest=lowest,
        highest=highest,
        drained=drained,
    )
    return Snapshot(at, awaited, {name: environment})


def breaches(invariants: Invariants, *moments: Snapshot, replicas: Iterable[str] = ()) -> list[str]:
    """What was seen at the last of these moments, with nothing before it."""
    *before, last = moments
    for each in before:
        assert invariants.look(each, replicas) == []
    return invariants.look(last, replicas)


class TestBounds:
    """At no moment more seats than may be."""

    def test_within_them(self, invariants: Invariants) -> None:
        assert breaches(invariants, moment(worker(3)), replicas=["env"] * 3) == []

    def test_beyond_them(self, invariants: Invariants) -> None:
        assert breaches(invariants, moment(worker(4))) == ["env: 4 seats, of at most 3 (0 before, of at most 3)"]

    def test_an_order_holds_in_their_place(self, invariants: Invariants) -> None:
        assert breaches(invariants, moment(worker(5), lowest=0, highest=5)) == []

    def test_beyond_what_was_lowered_seats_only_become_fewer(self, invariants: Invariants) -> None:
        lowered = [moment(worker(seats), lowest=0, highest=1) for seats in (3, 2)]
        assert breaches(invariants, moment(worker(3)), *lowered) == []
        (breach,) = breaches(invariants, moment(worker(3), lowest=0, highest=1))
        assert breach == "env: 3 seats, of at most 1 (2 before, of at most 1)"

    def test_sums_are_those_of_the_reports(self, invariants: Invariants) -> None:
        wrong = Snapshot(NOW, 0.0, {"env": Environment(seats=2, live=1, current=1, workers=(worker(1),))})
        assert breaches(invariants, wrong) == ["env: the sum of seats is 2, and workers have reported 1"]

    def test_no_more_replicas_than_seats_for_long(self, invariants: Invariants) -> None:
        first, *_ = moments = [moment(worker(1, at), at=at) for at in (NOW, NOW + LOOKS, NOW + LOOKS + 0.1)]
        assert breaches(invariants, *moments, replicas=["env"] * 2) == ["env: 2 replicas exist, with 1 seats"]
        assert breaches(invariants, first, replicas=["env"]) == []


class TestLeases:
    """Nobody keeps seats beyond its lease."""

    def test_until_somebody_looks(self, invariants: Invariants) -> None:
        dead, over = worker(1, NOW, name="dead"), NOW + LEASE + 0.1
        assert breaches(invariants, moment(dead, at=over)) == []
        assert breaches(invariants, moment(dead, worker(1, NOW + LEASE - 0.1), at=over)) == []
        (breach,) = breaches(invariants, moment(dead, worker(1, over), at=over + 0.1))
        assert breach == "env: dead has 1 seat(s), and another worker has looked since its lease was over"

    def test_but_everybody_who_was_away_finds_what_he_had(self, invariants: Invariants) -> None:
        seen = moment(worker(1, NOW, name="dead"), worker(1, NOW + 10), at=NOW + 10.1, awaited=NOW + 13)
        assert breaches(invariants, seen) == []

    def test_and_somebody_looks(self, invariants: Invariants) -> None:
        """A worker that renews its lease, and does not look, is not enough."""
        dead = worker(1, NOW, name="dead")

        def at(now: float) -> Snapshot:
            return moment(dead, Seating("other", 1, 1, 1, now + LEASE, NOW + LEASE), at=now)

        (breach,) = breaches(invariants, at(NOW + LEASE + 0.1), at(NOW + LEASE + LOOKS + 0.2))
        assert breach == "env: dead has 1 seat(s) 2.2 s after its lease was over"


class TestMinimum:
    """What is missing comes back, where it can."""

    def story(self, *workers: Seating, drained: bool = False, name: str = "env") -> list[Snapshot]:
        """Workers that look all the time, until the minimum has to be there."""
        return [
            moment(
                *(
                    worker(each.seats, looked=at, live=each.live, room=each.room, generation=each.generation)
                    for each in workers
                ),
                at=at,
                drained=drained,
                name=name,
            )
            for at in (NOW, NOW + RESTORED, NOW + RESTORED + 0.1)
        ]

    def test_within_two_seconds(self, invariants: Invariants) -> None:
        found = breaches(invariants, *self.story(worker(0, room=1)))
        assert found == ["env: 0 live replicas, of at least 1, though w could start some"]

    def test_but_not_while_nobody_can(self, invariants: Invariants) -> None:
        for can_not in (worker(0), worker(0, room=1, generation=0), worker(3, live=0, room=1)):
            assert breaches(invariants, *self.story(can_not)) == []

    def test_nor_where_nobody_should(self, invariants: Invariants) -> None:
        assert breaches(invariants, *self.story(worker(0, room=1), drained=True)) == []
        assert breaches(invariants, *self.story(worker(0, room=1), name="resting")) == []

    def test_patience_is_added(self) -> None:
        patient = Invariants({"env": (1, 3)}, (), LEASE, patience=1.0)
        assert breaches(patient, *self.story(worker(0, room=1))) == []

    def test_seats_of_the_dead_do_not_count(self, invariants: Invariants) -> None:
        def at(now: float) -> Snapshot:
            renews = Seating("w", 0, lease=now + LEASE, owned_until=NOW, room=1)  # and has not looked lately
            return moment(worker(1, NOW - LEASE - 0.1, name="dead"), renews, at=now)

        found = breaches(invariants, at(NOW), at(NOW + RESTORED), at(NOW + RESTORED + 0.1))
        assert "env: 0 live replicas, of at least 1, though w could start some" in found


class TestDevices:
    """One device, one replica."""

    def said(self, owner: str, at: float, host: str = "h1") -> Snapshot:
        return Snapshot(at, holdings=(Holding(host, "L4 0", owner, "1", at),))

    def test_one_after_the_other(self, invariants: Invariants) -> None:
        said = [self.said("a", NOW), self.said("a", NOW + 5), self.said("b", NOW + 6), self.said("b", NOW + 20)]
        assert breaches(invariants, *said) == []

    def test_the_same_of_two_hosts(self, invariants: Invariants) -> None:
        said = [self.said(owner, NOW + at, host=owner) for at in range(10) for owner in "ab"]
        assert breaches(invariants, *said) == []

    def test_two_at_once(self, invariants: Invariants) -> None:
        said = [self.said("a", NOW), self.said("b", NOW + 1), self.said("a", NOW + 5), self.said("b", NOW + 5)]
        (breach,) = breaches(invariants, *said)
        assert breach == "L4 0 of h1 is replica 1's of b and replica 1's of a for 4.0 s"
