"""The life of one replica, told as stories of events and what each one asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyte_celery.supervisor.lifecycle import (
    Action,
    Child,
    CountFailure,
    Drain,
    Event,
    Exited,
    Forget,
    HandBack,
    Kill,
    Load,
    Patience,
    Ready,
    Revive,
    Starts,
    StartupFailed,
    State,
    Stop,
    StopReason,
    Tick,
    describe_exit,
    step,
)

PATIENCE = Patience(startup=30.0, stop=5.0)


def tell(*story: tuple[float, Event, list[Action]]) -> Child:
    """Feed events to a child that was started at 0 and compare what it asks for at each moment."""
    child = Child(number=7, started_at=0.0, patience=PATIENCE)
    for now, event, actions in story:
        assert step(child, event, now) == actions, f"at {now}: {event}"
    return child


def test_a_replica_starts_works_drains_and_goes() -> None:
    """Nothing is asked of it while it works; a drain waits for its last task."""
    child = tell(
        (0.1, Ready(), []),
        (1.0, Load(2), []),
        (2.0, Drain(StopReason.SURPLUS), []),
        (3.0, Load(1), []),
        (4.0, Load(0), [Stop()]),
        (4.1, Exited(0), [Forget()]),
    )
    assert child.state is State.GONE
    assert child.reason is StopReason.SURPLUS


def test_an_idle_replica_is_stopped_as_soon_as_it_is_drained() -> None:
    tell((0.1, Ready(), []), (1.0, Drain(StopReason.IDLE), [Stop()]))


def test_a_draining_replica_can_be_revived_until_it_was_told_to_stop() -> None:
    child = tell(
        (0.1, Ready(), []),
        (1.0, Load(1), []),
        (2.0, Drain(StopReason.SURPLUS), []),
        (2.5, Revive(), []),
        (3.0, Load(0), []),
    )
    assert child.state is State.READY
    assert child.reason is None
    stopping = tell((0.1, Ready(), []), (1.0, Drain(StopReason.SURPLUS), [Stop()]), (1.1, Revive(), []))
    assert stopping.state is State.STOPPING


def test_a_crash_hands_its_tasks_back_and_says_how_it_died() -> None:
    child = tell(
        (0.1, Ready(), []),
        (1.0, Load(3), []),
        (2.0, Exited(-11), [HandBack("replica 7 was killed by SIGSEGV"), Forget()]),
        (2.1, Exited(-11), []),
    )
    assert child.reason is StopReason.CRASHED


def test_a_start_up_hook_that_raises_ends_the_replica_as_a_failed_start() -> None:
    tell((0.5, StartupFailed("no model"), [CountFailure("no model"), Kill()]), (0.6, Exited(3), [Forget()]))


def test_a_start_up_that_takes_too_long_is_killed_and_says_so() -> None:
    error = "not ready within the start-up timeout of 30 s"
    tell((29.9, Tick(), []), (30.0, Tick(), [CountFailure(error), Kill()]), (30.1, Exited(-9), [Forget()]))


def test_a_process_that_dies_while_it_starts_is_a_failed_start() -> None:
    tell((0.5, Exited(-9), [CountFailure("was killed by SIGKILL (out of memory?) during start-up"), Forget()]))


def test_a_replica_that_starts_while_its_worker_loses_the_lease_is_no_failure() -> None:
    child = Child(7, 0.0, PATIENCE)
    child.reason = StopReason.LEASE_LOST
    assert step(child, Exited(-9), 0.5) == [Forget()]


def test_a_replica_that_is_not_needed_before_it_was_ready_is_no_failure() -> None:
    tell((0.5, Drain(StopReason.SURPLUS), [Kill()]), (0.6, Exited(-9), [Forget()]))


def test_a_replica_that_does_not_stop_when_told_to_is_killed() -> None:
    child = tell(
        (0.1, Ready(), []),
        (1.0, Drain(StopReason.IDLE), [Stop()]),
        (5.9, Tick(), []),
        (6.0, Tick(), [Kill()]),
        (6.1, Exited(-9), [Forget()]),
    )
    assert child.reason is StopReason.STOP_TIMEOUT


def test_idleness_counts_from_the_end_of_the_last_task() -> None:
    child = tell((0.1, Ready(), []), (1.0, Load(1), []), (9.0, Load(0), []), (10.0, Tick(), []))
    assert child.idle_since == 9.0


EVENTS: list[Event] = [
    Ready(),
    StartupFailed("x"),
    Drain(StopReason.SURPLUS),
    Revive(),
    Load(0),
    Load(2),
    Exited(0),
    Exited(-9),
    Tick(),
]


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(0, 20))))
def test_whatever_happens_a_replica_is_forgotten_at_most_once_and_never_stopped_with_tasks(
    story: list[tuple[Event, float]],
) -> None:
    """A replica that owns tasks is killed only when it exceeds a patience that does not apply to working replicas."""
    child, now, forgotten = Child(1, 0.0, PATIENCE), 0.0, 0
    for event, pause in story:
        now += pause
        for action in step(child, event, now):
            assert forgotten == 0
            match action:
                case Stop():
                    assert child.tasks == 0
                case Forget():
                    forgotten += 1
    assert (child.state is State.GONE) == bool(forgotten)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exited with code 0"),
        (3, "exited with code 3"),
        (-15, "was killed by SIGTERM"),
        (-9, "was killed by SIGKILL (out of memory?)"),
        (-250, "was killed by signal 250"),
        (None, "ended, nobody could tell how"),
    ],
)
def test_exits_are_described_in_words(status: int | None, words: str) -> None:
    assert describe_exit(status) == words


def test_failed_starts_back_off_one_at_a_time_and_then_the_environment_says_why() -> None:
    starts = Starts(limit=3, base=1.0, cap=60.0)
    assert starts.allowed(0.0, starting=5)
    starts.failed_once("no model", 10.0)
    assert not starts.allowed(10.5, starting=0)
    assert starts.allowed(11.0, starting=0)
    assert not starts.allowed(11.0, starting=1)
    starts.failed_once("no model", 11.0)
    assert not starts.allowed(12.9, starting=0)
    assert not starts.failed
    starts.failed_once("still no model", 13.0)
    assert starts.failed
    assert starts.error == "still no model"
    assert starts.allowed(17.0, starting=0)


def test_replicas_that_fail_together_are_one_failed_attempt() -> None:
    """Four were asked for at once and all lack the model; the next attempt, after the back-off, counts again."""
    starts = Starts(limit=3, base=1.0, cap=60.0)
    for _ in range(4):
        starts.failed_once("no model", now=5.0, began=4.0)
    assert (starts.failures, starts.not_before) == (1, 6.0)
    starts.failed_once("no model", now=7.0, began=6.0)
    assert starts.failures == 2


def test_one_success_forgives_every_failed_start() -> None:
    starts = Starts(limit=1, base=1.0, cap=60.0)
    starts.failed_once("no model", 0.0)
    starts.succeeded()
    assert not starts.failed
    assert starts.error is None
    assert starts.allowed(0.0, starting=9)


def test_the_back_off_is_capped() -> None:
    starts = Starts(limit=3, base=1.0, cap=60.0)
    for _ in range(20):
        starts.failed_once("no", 100.0)
    assert starts.not_before == 160.0
