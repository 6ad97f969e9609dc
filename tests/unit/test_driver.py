"""The autoscaler's driver: what it asks of a pool, and when; the pool and the clock are a test's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest

from flyte_celery.autoscaler.decide import Limits, Observed, ReplicaState, ReplicaView
from flyte_celery.autoscaler.driver import KEPT_DECISIONS, Autoscaler, Explained
from flyte_celery.supervisor.lifecycle import StopReason

POLICY = Limits(lowest=1, highest=4, concurrency=2, scaledown_ttl=30, idle_ttl=300)


@dataclass
class FakePool:
    """Starts and drains at once, and writes down what it was told."""

    replicas: list[ReplicaView] = field(default_factory=list)
    #: Most replicas that it starts per call, as while start-ups fail.
    willing: int = 100
    #: What is in the way of more.
    obstacle: str | None = None
    asked: list[int] = field(default_factory=list)
    drained: list[tuple[list[int], StopReason]] = field(default_factory=list)

    @property
    def live(self) -> int:
        return len(self.replicas)

    def views(self) -> list[ReplicaView]:
        return self.replicas

    def start_replicas(self, n: int) -> int:
        self.asked.append(n)
        had = min(n, self.willing)
        first = max((view.number for view in self.replicas), default=0) + 1
        self.replicas += [ReplicaView(number, ReplicaState.READY) for number in range(first, first + had)]
        return had

    def drain(self, numbers: Iterable[int], reason: StopReason) -> None:
        gone = list(numbers)
        self.drained.append((gone, reason))
        self.replicas = [view for view in self.replicas if view.number not in gone]


class FakeClock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1e9


class World:
    """An autoscaler with everything around it."""

    def __init__(self, limits: Limits = POLICY) -> None:
        self.pool = FakePool()
        self.clock = FakeClock()
        self.seen: Observed | None = Observed()
        self.heard: list[Explained] = []
        self.autoscaler = Autoscaler(self.pool, limits, lambda: self.seen, self.clock, self.heard.append)

    def after(self, seconds: float, seen: Observed | None) -> int:
        """Time passes, something is seen; returns the replicas that exist then."""
        self.clock.now += seconds
        self.seen = seen
        self.autoscaler.consider()
        return self.pool.live


def test_the_pool_follows_the_decisions_from_start_to_rest_and_back() -> None:
    world = World()
    story: list[tuple[float, Observed | None, int]] = [
        (0, Observed(), 1),
        (1, Observed(ready=7), 4),
        (30, Observed(), 1),
        (9, None, 1),
        (300, Observed(), 0),
        (600, Observed(ready=1), 1),
    ]
    for seconds, seen, expected in story:
        assert world.after(seconds, seen) == expected, f"{seconds} s later, with {seen}"
    assert world.pool.asked == [1, 3, 1]


def test_a_replica_goes_with_the_reason_for_which_it_goes() -> None:
    world = World()
    world.after(0, Observed(ready=4))
    world.after(31, Observed())
    world.after(300, Observed())
    assert [reason for _, reason in world.pool.drained] == [StopReason.SURPLUS, StopReason.IDLE]


def test_idle_replicas_go_and_busy_ones_stay() -> None:
    world = World(replace(POLICY, lowest=0))
    world.after(0, Observed(ready=8))
    world.pool.replicas[0] = replace(world.pool.replicas[0], running=1)
    world.pool.replicas[2] = replace(world.pool.replicas[2], running=2)
    world.after(1, Observed(running=3))
    world.after(30, Observed(running=3))
    assert [view.number for view in world.pool.replicas] == [1, 3]


def test_what_the_pool_could_not_start_is_asked_for_again() -> None:
    """Start-ups that fail are held back by the pool; the autoscaler keeps asking, for the difference alone."""
    world = World()
    world.pool.willing = 1
    for _ in range(5):
        world.after(1, Observed(ready=8))
    assert world.pool.asked == [4, 3, 2, 1]
    assert world.autoscaler.target == 4


def test_a_replica_that_was_lost_is_replaced_without_a_new_decision() -> None:
    world = World()
    world.after(0, Observed(ready=8))
    del world.pool.replicas[1]
    assert world.after(0, Observed(ready=8)) == 4
    assert len(world.autoscaler.history) == 1


def test_nothing_seen_changes_nothing() -> None:
    world = World()
    world.after(0, Observed(ready=8))
    assert world.after(10_000, None) == 4
    assert world.pool.drained == []
    last = world.autoscaler.last
    assert last is not None and "could not be read" in last.text


def test_only_changes_are_kept_and_told_each_with_its_moment_and_its_reason() -> None:
    world = World()
    for seconds, ready in ((0, 0), (1, 0), (1, 3), (1, 3)):
        world.after(seconds, Observed(ready=ready))
    assert world.heard == list(world.autoscaler.history)
    assert [(each.at - 1e9, each.target, str(each.reason)) for each in world.heard] == [
        (1000.0, 1, "bounds"),
        (1002.0, 2, "demand"),
    ]
    assert all(each.text.endswith(".") for each in world.heard)


def test_what_is_in_the_way_is_told_once_and_asked_for_again() -> None:
    """A host without a free device: the decision stays, with its obstacle, until there is a place."""
    world = World(replace(POLICY, lowest=0))
    world.pool.willing, world.pool.obstacle = 0, "no free device"
    for _ in range(3):
        world.after(1, Observed(ready=1))
    world.pool.obstacle = "another reason"
    world.after(1, Observed(ready=1))
    assert world.pool.asked == [1, 1, 1, 1]
    assert [str(each.reason) for each in world.heard] == ["demand", "blocked", "blocked"]
    assert world.heard[1].text.endswith("need 1 replica of 2. Waits for 1 of them: no free device.")
    assert world.autoscaler.last == world.heard[-1]
    world.pool.willing, world.pool.obstacle = 1, None
    world.after(1, Observed(ready=1))
    assert world.autoscaler.last is not None
    assert world.autoscaler.last.reason == "steady"
    assert len(world.heard) == 3


def test_old_decisions_are_forgotten() -> None:
    world = World(replace(POLICY, lowest=0, scaledown_ttl=0))
    for turn in range(KEPT_DECISIONS + 10):
        world.after(1, Observed(ready=turn % 2))
    assert len(world.autoscaler.history) == KEPT_DECISIONS


class TestBoundsByCommand:
    """`celery control autoscale MAX MIN`, and what Flower's buttons send."""

    def test_act_at_once(self) -> None:
        world = World()
        assert world.autoscaler.update(max=6, min=3) == (6, 3)
        assert world.pool.live == 3
        world.after(400, Observed())
        world.after(0, Observed(ready=100))
        assert world.pool.live == 6

    def test_a_lower_maximum_drains(self) -> None:
        world = World()
        world.after(0, Observed(ready=8))
        world.seen = Observed(ready=8)
        world.autoscaler.update(max=2)
        assert world.pool.live == 2
        assert world.heard[-1].reason == "bounds"

    def test_a_maximum_below_the_minimum_takes_it_along(self) -> None:
        world = World(replace(POLICY, lowest=3))
        assert world.autoscaler.update(max=2) == (2, 2)

    @pytest.mark.parametrize(("highest", "lowest"), [(2, 3), (-1, None), (None, 9)])
    def test_that_are_no_bounds_change_nothing(self, highest: int | None, lowest: int | None) -> None:
        world = World()
        with pytest.raises(ValueError, match="are no bounds"):
            world.autoscaler.update(max=highest, min=lowest)
        assert world.autoscaler.limits == POLICY

    def test_are_what_inspect_stats_shows(self) -> None:
        world = World()
        assert world.autoscaler.info()["reason"] is None
        world.after(0, Observed(ready=3))
        info = world.autoscaler.info()
        assert {name: info[name] for name in ("min", "max", "current", "target")} == {
            "min": 1,
            "max": 4,
            "current": 2,
            "target": 2,
        }
        assert "3 ready" in str(info["reason"])
