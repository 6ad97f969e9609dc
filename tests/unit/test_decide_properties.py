"""What no story may break, whatever happens in it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from flyte_celery.autoscaler.decide import (
    Decision,
    Limits,
    Memory,
    Observed,
    Reason,
    ReplicaState,
    ReplicaView,
    decide,
    victims,
)

seconds = st.floats(min_value=0, max_value=1_000, allow_nan=False)
counts = st.integers(min_value=0, max_value=60)


@st.composite
def some_limits(draw: st.DrawFn) -> Limits:
    lowest, highest = sorted((draw(st.integers(0, 12)), draw(st.integers(0, 12))))
    return Limits(lowest, highest, draw(st.integers(1, 8)), scaledown_ttl=draw(seconds), idle_ttl=draw(seconds))


looks = st.none() | st.builds(Observed, ready=counts, running=counts, suspended=counts)
#: Pauses before each look, and what it finds.
histories = st.lists(st.tuples(st.floats(min_value=0.01, max_value=400), looks), max_size=40)


def play(limits: Limits, history: list[tuple[float, Observed | None]], target: int) -> list[tuple[float, Decision]]:
    """Decide at every moment of a history that starts at 0 s."""
    now, memory, told = 0.0, Memory.fresh(0.0), []
    for pause, seen in history:
        now += pause
        decision = decide(limits, seen, memory, now, target)
        memory, target = decision.memory, decision.target
        told.append((now, decision))
    return told


@given(some_limits(), histories, st.data())
def test_bounds_are_never_broken(
    limits: Limits, history: list[tuple[float, Observed | None]], data: st.DataObject
) -> None:
    """The target is 0 or within the bounds; and 0 below the minimum only of an environment without work."""
    start = data.draw(st.sampled_from([0, *range(limits.lowest, limits.highest + 1)]))
    for (_, seen), (_, decision) in zip(history, play(limits, history, start), strict=True):
        assert decision.target == 0 or limits.lowest <= decision.target <= limits.highest
        if seen is not None and not seen.idle:
            assert decision.target >= limits.lowest


@given(some_limits(), histories, counts, counts, counts)
def test_the_target_rises_with_demand_where_all_else_is_equal(
    limits: Limits, history: list[tuple[float, Observed | None]], less: int, more: int, suspended: int
) -> None:
    less, more = sorted((less, more))
    told = play(limits, history, 0)
    now, last = told[-1] if told else (0.0, Decision(0, Reason.ASLEEP, Memory.fresh(0)))
    low, high = (
        decide(limits, Observed(ready=ready, suspended=suspended), last.memory, now + 1, last.target)
        for ready in (less, more)
    )
    assert low.target <= high.target


@given(some_limits(), histories)
def test_demand_within_the_bounds_is_met_at_once(limits: Limits, history: list[tuple[float, Observed | None]]) -> None:
    for (_, seen), (_, decision) in zip(history, play(limits, history, 0), strict=True):
        if seen is not None:
            slots = decision.target * limits.concurrency
            assert slots >= seen.demand or decision.target == limits.highest


@given(some_limits(), histories, counts)
def test_nothing_is_removed_inside_its_scaledown_window(
    limits: Limits, history: list[tuple[float, Observed | None]], found: int
) -> None:
    """No target is smaller than what any look of the last `scaledown_ttl` seconds wanted, unless all goes to rest."""
    told = play(limits, history, limits.clamp(found))
    for index, (now, decision) in enumerate(told):
        if decision.target == 0:
            continue
        for (then, earlier), (_, seen) in zip(told[: index + 1], history[: index + 1], strict=True):
            rested = any(d.target == 0 for t, d in told[:index] if t >= then)
            if now - then < limits.scaledown_ttl and not rested:
                wanted = earlier.target if seen is None else limits.clamp(limits.needed(seen))
                assert decision.target >= wanted


@given(some_limits(), histories)
def test_what_is_let_go_was_surplus_or_idle_for_long_enough(
    limits: Limits, history: list[tuple[float, Observed | None]]
) -> None:
    told = play(limits, history, 0)
    for (_, before), (_, after) in pairwise(told):
        if after.target < before.target:
            assert after.reason in (Reason.DRAINING, Reason.IDLE)


@given(some_limits(), histories)
def test_an_idle_environment_always_reaches_its_minimum_and_then_zero(
    limits: Limits, history: list[tuple[float, Observed | None]]
) -> None:
    told = play(limits, history, 0)
    now, last = told[-1] if told else (0.0, Decision(0, Reason.ASLEEP, Memory.fresh(0)))
    quiet = now + limits.scaledown_ttl + 1
    resting = decide(limits, Observed(), last.memory, quiet, last.target)
    assert resting.target in (0, limits.lowest)
    gone = decide(limits, Observed(), resting.memory, quiet + limits.idle_ttl, resting.target)
    assert gone.target == 0


@given(some_limits(), histories, st.integers(0, 20))
def test_no_data_holds_whatever_there_is(
    limits: Limits, history: list[tuple[float, Observed | None]], target: int
) -> None:
    told = play(limits, history, 0)
    now, last = told[-1] if told else (0.0, Decision(0, Reason.ASLEEP, Memory.fresh(0)))
    blind = decide(limits, None, last.memory, now + 1, target)
    assert (blind.target, blind.reason, blind.memory.busy_at) == (target, Reason.NO_DATA, last.memory.busy_at)


@given(some_limits(), histories)
def test_a_fixed_policy_never_changes_while_the_environment_is_live(
    limits: Limits, history: list[tuple[float, Observed | None]]
) -> None:
    fixed = Limits(limits.highest, limits.highest, limits.concurrency, limits.scaledown_ttl, limits.idle_ttl)
    assert {decision.target for _, decision in play(fixed, history, fixed.highest)} <= {0, fixed.highest}


@given(some_limits(), histories)
def test_memory_stays_small(limits: Limits, history: list[tuple[float, Observed | None]]) -> None:
    for _, decision in play(limits, history, limits.highest):
        assert len(decision.memory.peaks) <= limits.highest + 2


replicas = st.lists(
    st.builds(
        ReplicaView,
        number=st.integers(1, 99),
        state=st.sampled_from(ReplicaState),
        running=st.integers(0, 3),
        suspended=st.integers(0, 3),
        idle_since=seconds,
        started_at=seconds,
    ),
    unique_by=lambda replica: replica.number,
)


@given(replicas, st.integers(0, 20))
def test_no_busy_replica_is_chosen_while_another_one_could_go(fleet: list[ReplicaView], n: int) -> None:
    def busy(replica: ReplicaView) -> bool:
        return replica.state is ReplicaState.READY and bool(replica.running or replica.suspended)

    chosen = victims(fleet, n)
    able = [replica for replica in fleet if replica.state is not ReplicaState.DRAINING]
    assert len(chosen) == min(n, len(able)) == len({replica.number for replica in chosen})
    if any(busy(replica) for replica in chosen):
        assert all(busy(replica) for replica in able if replica not in chosen)
