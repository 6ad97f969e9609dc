"""The autoscaler's decision, told as stories: one line per moment, each line's memory and target feed the next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flyte_celery.autoscaler.decide import (
    Decision,
    Limits,
    Memory,
    Observed,
    Reason,
    ReplicaState,
    ReplicaView,
    decide,
    explain,
    victims,
)
from flyte_celery.autoscaler.window import largest, push

#: One to four replicas of two slots, surplus goes after 30 s, the environment after 300 s.
POLICY = Limits(lowest=1, highest=4, concurrency=2, scaledown_ttl=30, idle_ttl=300)

#: Seconds, demand (or all that was seen, or None), expected target and reason.
Moment = tuple[float, int | Observed | None, int, str]


def tell(limits: Limits, story: list[Moment], target: int = 0) -> Memory:
    """Decide moment by moment from a start at 0 s and `target` existing replicas; returns the last memory."""
    memory = Memory.fresh(now=0.0)
    for now, look, expected, reason in story:
        seen = Observed(ready=look) if isinstance(look, int) else look
        decision = decide(limits, seen, memory, now, target)
        assert (decision.target, decision.reason) == (expected, reason), f"at {now} s with {look}"
        memory, target = decision.memory, decision.target
    return memory


def test_a_burst_is_served_kept_warm_then_let_go() -> None:
    tell(
        POLICY,
        [
            (1, 7, 4, "demand"),  # seven tasks, two per replica
            (30.9, 0, 4, "steady"),  # quiet, but the peak is younger than scaledown_ttl
            (31, 0, 1, "draining"),  # the peak scrolled out: down to the minimum
            (40, None, 1, "no-data"),  # Redis did not answer: hold
            (301, 0, 0, "idle"),  # idle_ttl since the last demand
            (302, 0, 0, "asleep"),
            (900, 3, 2, "demand"),  # the next tasks wake it up, at once and with what they need
        ],
    )


def test_the_minimum_comes_up_at_start_and_is_let_go_after_the_idle_ttl() -> None:
    tell(
        replace(POLICY, lowest=2),
        [
            (0, 0, 2, "bounds"),
            (299.9, 0, 2, "steady"),
            (300, 0, 0, "idle"),
            (301, 1, 2, "demand"),  # from zero to max(lowest, wanted) at once
        ],
    )


def test_surplus_goes_down_only_to_the_largest_need_of_the_window() -> None:
    tell(
        POLICY,
        [
            (0, 8, 4, "demand"),
            (10, 5, 4, "steady"),  # wanted 3
            (20, 2, 4, "steady"),  # wanted 1
            (30, 2, 3, "draining"),  # the 4 of 0 s are out, the 3 of 10 s count until 40 s
            (39.9, 2, 3, "steady"),
            (40, 2, 1, "draining"),
        ],
    )


def test_a_steady_trickle_does_not_keep_surplus_replicas_alive() -> None:
    """One task every two seconds, handed to waiting consumers in turn, keeps every idle timer young."""
    story: list[Moment] = [(0, 8, 4, "demand")]
    story += [(float(second), second % 2, 4, "steady") for second in range(1, 30)]
    story += [(30, 0, 1, "draining")]
    story += [(float(second), second % 2, 1, "steady") for second in range(31, 600)]
    tell(POLICY, story)


def test_running_tasks_are_demand_and_suspended_ones_only_keep_the_environment_awake() -> None:
    tell(
        POLICY,
        [
            (0, Observed(ready=1, running=3), 2, "demand"),
            (29, Observed(running=1, suspended=6), 2, "steady"),
            (30, Observed(running=1, suspended=6), 1, "draining"),  # waiting for children asks for no slot
            (1000, Observed(suspended=6), 1, "steady"),  # and is not idle, however long it takes
            (1299.9, 0, 1, "steady"),
            (1300, 0, 0, "idle"),
        ],
    )


def test_demand_above_the_highest_bound_is_held_there() -> None:
    tell(POLICY, [(0, 1_000_000, 4, "demand"), (1, 1_000_000, 4, "steady")])


def test_no_data_holds_and_counts_as_a_moment_that_needed_what_was_there() -> None:
    tell(
        POLICY,
        [
            (0, None, 0, "no-data"),
            (1, 8, 4, "demand"),
            (2, None, 4, "no-data"),
            (60, None, 4, "no-data"),
            (61, 0, 4, "steady"),  # surplus was seen for no time yet
            (90, 0, 1, "draining"),
        ],
    )


def test_a_fixed_policy_does_not_autoscale_and_obeys_the_idle_ttl() -> None:
    tell(
        replace(POLICY, lowest=3, highest=3),
        [
            (0, 0, 3, "bounds"),
            (10, 100, 3, "steady"),
            (200, 1, 3, "steady"),
            (499, 0, 3, "steady"),
            (500, 0, 0, "idle"),
            (501, 1, 3, "demand"),
        ],
    )


def test_an_ephemeral_environment_follows_demand_at_once_in_both_directions() -> None:
    tell(
        Limits(lowest=0, highest=5, concurrency=1, scaledown_ttl=0, idle_ttl=30),
        [
            (0, 0, 0, "asleep"),
            (1, 9, 5, "demand"),
            (2, 3, 3, "draining"),
            (3, 0, 0, "draining"),
            (3.1, 1, 1, "demand"),
        ],
    )


def test_yesterdays_burst_does_not_come_back_with_todays_first_task() -> None:
    """Here the window (300 s) is longer than the idle time (30 s)."""
    tell(
        replace(POLICY, scaledown_ttl=300, idle_ttl=30),
        [(0, 8, 4, "demand"), (30, 0, 0, "idle"), (31, 1, 1, "demand")],
    )


def test_a_restarted_autoscaler_adopts_the_replicas_that_it_finds() -> None:
    tell(POLICY, [(1, 0, 3, "steady"), (30, 0, 3, "steady"), (31, 0, 1, "draining")], target=3)


def test_what_has_gone_with_its_run_is_not_replaced_beyond_what_is_needed() -> None:
    def seen(ready: int, running: int, live: int) -> Observed:
        return Observed(ready=ready, running=running, live=live)

    tell(
        replace(POLICY, by_run=True),
        [
            (1, seen(6, 0, 1), 3, "demand"),
            (2, seen(0, 6, 3), 3, "steady"),
            (3, seen(0, 0, 3), 3, "steady"),  # idle, of runs that go on: kept for scaledown_ttl as ever
            (4, seen(0, 0, 1), 1, "run-over"),  # two went with their runs
            (5, seen(2, 0, 0), 1, "steady"),  # the last one is gone, too, and a run waits
            (6, seen(0, 2, 1), 1, "steady"),
            (7, seen(0, 0, 0), 1, "steady"),  # the policy keeps one
            (306, seen(0, 0, 1), 0, "idle"),
        ],
        target=1,
    )


def test_a_policy_of_no_replicas_stays_at_zero() -> None:
    tell(
        replace(POLICY, lowest=0, highest=0),
        [(0, 0, 0, "closed"), (1, 7, 0, "closed"), (2, None, 0, "no-data"), (400, 0, 0, "closed")],
    )


def test_changed_bounds_hold_at_once() -> None:
    memory = tell(POLICY, [(0, 8, 4, "demand")])
    lowered = decide(replace(POLICY, highest=2), Observed(ready=8), memory, 1, target=4)
    assert (lowered.target, lowered.reason) == (2, Reason.BOUNDS)
    raised = decide(replace(POLICY, lowest=3), Observed(), lowered.memory, 2, target=2)
    assert (raised.target, raised.reason) == (4, Reason.DEMAND), "the peak of 0 s still counts"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lowest": -1}, r"Limits\(lowest=-1, highest=4\) are no bounds: give whole numbers with 0 <= lowest"),
        ({"lowest": 5}, r"Limits\(lowest=5, highest=4\) are no bounds"),
        ({"concurrency": 0}, r"Limits\(concurrency=0\) runs nothing: give at least 1"),
        ({"scaledown_ttl": -0.1}, r"Limits\(scaledown_ttl=-0\.1\) is not a time: give seconds, 0 or more"),
        ({"idle_ttl": float("nan")}, r"Limits\(idle_ttl=nan\) is not a time"),
    ],
)
def test_limits_that_make_no_sense_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(POLICY, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "target", "reason", "sentence"),
    [
        (
            None,
            4,
            Reason.NO_DATA,
            "Holds 4 replicas: the queue could not be read, and ignorance decides nothing.",
        ),
        (
            Observed(ready=5, running=2, starting=3),
            4,
            Reason.DEMAND,
            "Goes up to 4 replicas: 5 ready, 2 running and 0 suspended tasks need 4 replicas of 2 (3 starting).",
        ),
        (
            Observed(ready=9),
            4,
            Reason.STEADY,
            "Keeps 4 replicas: 9 ready, 0 running and 0 suspended tasks need 5 replicas of 2, and the policy allows 4.",
        ),
        (
            Observed(running=1),
            4,
            Reason.STEADY,
            "Keeps 4 replicas: 0 ready, 1 running and 0 suspended tasks need 1 replica of 2, "
            "but more were wanted in the last 30 s.",
        ),
        (
            Observed(suspended=3),
            1,
            Reason.STEADY,
            "Keeps 1 replica: 0 ready, 0 running and 3 suspended tasks need 0 replicas of 2, and the policy keeps 1.",
        ),
        (Observed(), 1, Reason.BOUNDS, "Goes to 1 replica: the policy asks for 1 to 4."),
        (
            Observed(running=1, starting=1, draining=2),
            1,
            Reason.DRAINING,
            "Goes down to 1 replica: more were not wanted for 30 s (1 starting, 2 draining).",
        ),
        (Observed(), 0, Reason.IDLE, "Lets every replica go: no ready, running or suspended task for 300 s."),
        (Observed(), 0, Reason.ASLEEP, "Stays at zero: 0 ready, 0 running and 0 suspended tasks."),
        (
            Observed(ready=7),
            0,
            Reason.CLOSED,
            "Stays at zero with 7 ready, 0 running and 0 suspended tasks: the policy allows no replica.",
        ),
    ],
)
def test_every_decision_is_explained_in_one_sentence(
    seen: Observed | None, target: int, reason: Reason, sentence: str
) -> None:
    assert explain(Decision(target, reason, Memory.fresh(0)), seen, POLICY) == sentence


def test_a_window_keeps_only_what_no_later_larger_value_has_overtaken() -> None:
    peaks = push((), 0, 4, span=30)
    for now, value in ((1, 2), (2, 2), (3, 1), (4, 3)):
        peaks = push(peaks, now, value, span=30)
    assert peaks == ((0, 4), (4, 3))
    assert largest(peaks) == 4
    assert push(peaks, 30, 0, span=30) == ((4, 3), (30, 0))


FAILED, STARTING, READY, DRAINING = ReplicaState


def view(number: int, state: ReplicaState, **fields: float) -> ReplicaView:
    return ReplicaView(number, state, **fields)  # type: ignore[arg-type]


def test_victims_are_chosen_by_what_is_lost_least() -> None:
    fleet = [
        view(1, READY, running=2),
        view(2, READY, idle_since=50),
        view(3, READY, running=1, suspended=1),
        view(4, READY, idle_since=20),
        view(5, STARTING, started_at=60),
        view(6, STARTING, started_at=61),
        view(7, FAILED, started_at=30),
        view(8, FAILED, started_at=40),
        view(9, DRAINING),
        view(10, READY, running=1),
    ]
    order = [replica.number for replica in victims(fleet, 99)]
    assert order == [8, 7, 6, 5, 4, 2, 10, 3, 1]


def test_a_replica_with_a_suspended_task_is_busy() -> None:
    fleet = [view(1, READY, suspended=1), view(2, READY, idle_since=99), view(3, STARTING)]
    assert [replica.number for replica in victims(fleet, 2)] == [3, 2]


def test_of_idle_replicas_those_of_runs_go_before_those_that_any_run_may_have() -> None:
    fleet = [view(1, READY, idle_since=1), view(2, READY, idle_since=2, bound=True), view(3, READY, idle_since=3)]
    assert [replica.number for replica in victims(fleet, 2)] == [2, 1]


@pytest.mark.parametrize("n", [-1, 0])
def test_no_victims_are_chosen_where_there_is_no_surplus(n: int) -> None:
    assert victims([view(1, READY)], n) == []
