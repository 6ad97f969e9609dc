"""Which replica is whose, in stories and properties: no run is left waiting for ever, none loses its parents."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from flyte_celery.supervisor.lifecycle import State
from flyte_celery.worker.runs import WORTH, Held, homeless, is_stuck, makes_way, next_spare_at, replicas_needed

NOW = 1000.0


def held(*runs: str | None, **fields: object) -> list[Held]:
    """Idle replicas of these runs, numbered from 1."""
    return [Held(number, run, **fields) for number, run in enumerate(runs, 1)]  # type: ignore[arg-type]


class TestNeeded:
    """How many replicas the work of all runs needs."""

    def test_a_run_needs_whole_replicas(self) -> None:
        assert replicas_needed({"a": 1, "b": 5}, [], concurrency=4) == 3

    def test_what_runs_counts_with_what_waits(self) -> None:
        assert replicas_needed({"a": 2}, [Held(1, "a", running=3)], concurrency=4) == 2

    def test_nothing_to_do_needs_nothing(self) -> None:
        assert replicas_needed({}, held("a", "b", None), concurrency=1, buffer=2) == 0

    def test_an_idle_replica_of_another_run_is_no_supply(self) -> None:
        assert replicas_needed({"b": 1}, held("a"), concurrency=1) == 2

    def test_an_idle_replica_is_surplus_when_nobody_lacks_one(self) -> None:
        assert replicas_needed({}, [*held("a"), Held(2, "b", running=1)], concurrency=1) == 1

    def test_a_buffer_is_beyond_replicas_that_others_may_not_have(self) -> None:
        assert replicas_needed({}, [*held("a"), Held(2, "b", running=1)], concurrency=1, buffer=1) == 2

    def test_parents_that_wait_keep_their_replicas(self) -> None:
        waiting = [Held(number, "a", suspended=3) for number in (1, 2)]
        assert replicas_needed({"a": 1}, waiting, concurrency=4) == 2

    def test_what_drains_or_is_being_replaced_is_no_supply(self) -> None:
        leaving = [Held(1, "a", State.DRAINING, running=1), Held(2, "a", lasting=False, running=1)]
        assert replicas_needed({"a": 1}, leaving, concurrency=1) == 2


class TestMakingWay:
    """Which replica ends for a run that has none."""

    def test_nobody_goes_while_every_run_has_a_replica(self) -> None:
        assert makes_way({"a": 5}, held("a", "b"), NOW) is None

    def test_nobody_goes_where_one_that_any_run_may_have_is_there_or_comes(self) -> None:
        for other in (Held(9), Held(9, state=State.STARTING), Held(9, "x", State.STOPPING)):
            assert makes_way({"b": 5}, [*held("a"), other], NOW) is None

    def test_of_idle_ones_the_longest_idle_goes_at_once(self) -> None:
        replicas = [Held(1, "a", idle_since=9), Held(2, "b", idle_since=7), Held(3, "c", running=1)]
        going = makes_way({"z": 1}, replicas, NOW)
        assert going is not None and going.number == 2

    def test_an_idle_one_of_a_run_that_goes_on_has_a_moment_for_the_next_task(self) -> None:
        """As long as its start took, and never longer than its start was worth."""
        idle = [Held(1, "a", idle_since=NOW, bound_at=NOW - 10, start_took=3)]
        assert makes_way({"z": 1}, idle, NOW + 2.9) is None
        assert next_spare_at({"z": 1}, idle) == NOW + 3
        assert makes_way({"z": 1}, idle, NOW + 3) == idle[0]
        busy_until_now = [replace(idle[0], bound_at=NOW - 3 * WORTH)]
        assert makes_way({"z": 1}, busy_until_now, NOW) == busy_until_now[0]
        assert next_spare_at({"a": 1}, idle) is None

    def test_an_idle_one_whose_run_is_over_goes_at_once_and_first(self) -> None:
        replicas = [Held(1, "a", idle_since=1), Held(2, "b", idle_since=NOW, start_took=3, over=True)]
        assert makes_way({"z": 1}, replicas, NOW) == replicas[1]

    def test_an_idle_one_goes_though_another_one_drains(self) -> None:
        replicas = [Held(1, "a", State.DRAINING, running=1), Held(2, "b")]
        assert makes_way({"z": 1}, replicas, NOW) == replicas[1]

    def test_a_busy_one_goes_for_the_oldest_task_alone(self) -> None:
        busy = [Held(1, "a", running=1)]
        assert makes_way({"a": 3, "z": 4}, busy, NOW) is None
        assert makes_way({"a": 5, "z": 4}, busy, NOW) == busy[0]

    def test_of_busy_ones_the_run_with_most_gives_the_one_that_is_done_soonest(self) -> None:
        replicas = [Held(1, "a", running=1), Held(2, "b", running=3), Held(3, "b", running=2)]
        assert makes_way({"z": 1}, replicas, NOW) == replicas[2]

    def test_one_is_enough(self) -> None:
        replicas = [Held(1, "b", State.DRAINING, running=3), Held(2, "b", running=2)]
        assert makes_way({"z": 1}, replicas, NOW) is None
        assert makes_way({"y": 1, "z": 2}, replicas, NOW) == replicas[1]

    def test_a_busy_one_goes_when_it_was_worth_its_start(self) -> None:
        young = [Held(1, "a", running=1, bound_at=NOW - 10, start_took=10 / WORTH + 0.1)]
        assert makes_way({"z": 1}, young, NOW) is None
        assert makes_way({"z": 1}, young, NOW + 1) == young[0]

    def test_parents_that_wait_stay(self) -> None:
        parents = [Held(1, "a", suspended=1), Held(2, "b", running=1, suspended=1)]
        assert makes_way({"z": 1}, parents, NOW) is None
        assert is_stuck({"z": 1}, parents)
        assert not is_stuck({"a": 1}, parents)
        assert not is_stuck({"z": 1}, [*parents, Held(3, "c", running=1)])


names = st.sampled_from("abcde")
worlds = st.lists(
    st.builds(
        Held,
        number=st.integers(1, 10**6),
        run=st.none() | names,
        state=st.sampled_from([State.STARTING, State.READY, State.DRAINING, State.STOPPING]),
        running=st.integers(0, 3),
        suspended=st.integers(0, 2),
        lasting=st.booleans(),
        idle_since=st.floats(0, NOW),
        bound_at=st.floats(0, NOW),
        start_took=st.floats(0, 5),
    ),
    max_size=8,
    unique_by=lambda each: each.number,
)
heads = st.dictionaries(names, st.integers(1, 100))


@given(heads, worlds)
def test_who_makes_way_is_a_ready_replica_of_another_run_without_parents(
    waiting: dict[str, int], replicas: list[Held]
) -> None:
    going = makes_way(waiting, replicas, NOW)
    if going is not None:
        assert going.state is State.READY and going.run is not None and not going.suspended
        assert going.run not in homeless(waiting, replicas)
        assert not going.running or min(waiting, key=lambda run: waiting[run]) in homeless(waiting, replicas)


@given(heads, worlds)
def test_a_homeless_run_with_the_oldest_task_gets_a_replica_unless_parents_have_all(
    waiting: dict[str, int], replicas: list[Held]
) -> None:
    """Later, when each start was worth it: as many as are needed are going or bound to nobody, or parents have all."""
    without = homeless(waiting, replicas)
    if not without or min(waiting, key=lambda run: waiting[run]) not in without:
        return
    if makes_way(waiting, replicas, NOW + 5 * WORTH) is None:
        movable = [
            each for each in replicas
            if each.run and each.state is State.READY and not each.suspended and each.lasting
        ]  # fmt: skip
        coming = [
            each for each in replicas
            if each.state is State.STOPPING
            or (each.run is None and each.state in (State.STARTING, State.READY))
            or (each.state is State.DRAINING and not each.suspended)
        ]  # fmt: skip
        assert not movable or len(without) <= len(coming)


@given(st.dictionaries(names, st.integers(1, 20)), worlds, st.integers(1, 5))
def test_each_run_s_work_fits_into_what_is_needed(
    waiting: dict[str, int], replicas: list[Held], concurrency: int
) -> None:
    work = Counter(waiting)
    for each in replicas:
        if each.run is not None and each.state is State.READY:
            work[each.run] += each.running
    least = sum(-(-count // concurrency) for count in work.values())
    needed = replicas_needed(waiting, replicas, concurrency)
    assert least <= needed <= least + len(replicas)
    assert replicas_needed(waiting, replicas, concurrency, buffer=1) >= needed
