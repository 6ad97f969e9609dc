"""The judgement of a chaos run, on books that are written by hand: a judge that sees nothing proves nothing."""

from __future__ import annotations

from tests.chaos.recorder import Mark
from tests.chaos.verdict import Impact, Loss, Submitted, Verdict, judge


def run(worker: str, pid: int, start: float, finish: float | None, task: str = "t") -> list[Mark]:
    """One run of a task."""
    begun = Mark(task, "start", pid, worker, start)
    return [begun] if finish is None else [begun, Mark(task, "finish", pid, worker, finish)]


def judged(
    *runs: list[Mark],
    losses: list[Loss] | None = None,
    impacts: list[Impact] | None = None,
    states: dict[str, str] | None = None,
    task: Submitted | None = None,
    left: int = 0,
) -> Verdict:
    """Judge one task; its result is stored unless `states` say something else."""
    marks = sorted((mark for each in runs for mark in each), key=lambda mark: mark.at)
    known = {"t": "SUCCESS"} if states is None else states
    return judge([task or Submitted("t")], marks, known, losses or [], impacts or [], left)


def test_a_task_that_ran_once_and_has_its_result_is_well() -> None:
    verdict = judged(run("a", 1, 0.0, 1.0))
    assert (verdict.tasks, verdict.lost, verdict.twice, verdict.broken) == (1, [], [], [])


def test_a_task_without_a_result_is_lost_although_it_ran() -> None:
    assert judged(run("a", 1, 0.0, 1.0), states={}).lost == ["t"]


def test_a_task_that_never_finished_is_lost_although_it_has_a_result() -> None:
    assert judged(run("a", 1, 0.0, None)).lost == ["t"]


def test_a_task_that_was_given_up_is_not_lost_and_breaks_a_promise() -> None:
    verdict = judged(*(run("a", pid, pid, None) for pid in range(3)), states={"t": "FAILURE"})
    assert verdict.lost == []
    assert verdict.broken == ["t ended as FAILURE instead of SUCCESS, started 3 time(s)"]


def test_a_task_of_which_nobody_knows_whether_it_was_submitted_is_not_lost() -> None:
    assert judged(states={}, task=Submitted("t", certain=False)).lost == []


def test_two_runs_while_the_owner_lives_break_a_promise() -> None:
    verdict = judged(run("a", 1, 0.0, 1.0), run("b", 2, 2.0, 3.0))
    assert len(verdict.twice) == 1
    assert verdict.broken


def test_two_runs_are_allowed_when_the_first_owner_died_in_between() -> None:
    for loss in (Loss("a", None, 1.5), Loss("a", 1, 1.5)):
        verdict = judged(run("a", 1, 0.0, 1.0), run("b", 2, 2.0, 3.0), losses=[loss])
        assert (verdict.twice, verdict.again, verdict.broken) == ([], 1, [])


def test_the_death_of_another_process_or_at_another_time_excuses_nothing() -> None:
    for loss in (Loss("a", 9, 1.5), Loss("b", None, 1.5), Loss("a", None, 5.0)):
        assert judged(run("a", 1, 0.0, 1.0), run("b", 2, 2.0, 3.0), losses=[loss]).twice


def test_a_worker_without_a_lease_may_begin_what_others_have_run() -> None:
    loss = Loss("b", None, 1.5, until=2.5)
    assert judged(run("a", 1, 0.0, 1.0), run("b", 2, 2.0, 3.0), losses=[loss]).twice == []
    assert judged(run("a", 1, 0.0, 1.0), run("b", 2, 2.6, 3.0), losses=[loss]).twice


def test_recovery_is_the_time_from_a_fault_to_the_next_start() -> None:
    impact = Impact(0.5, {"t"}, within=4.0)
    verdict = judged(run("a", 1, 0.0, None), run("b", 2, 4.0, 5.0), impacts=[impact])
    assert (verdict.hit, verdict.recovered, verdict.slowest, verdict.broken) == (1, 1, 3.5, [])


def test_a_recovery_that_takes_too_long_breaks_a_promise() -> None:
    impact = Impact(0.5, {"t"}, within=3.0)
    assert judged(run("a", 1, 0.0, None), run("b", 2, 4.0, 5.0), impacts=[impact]).broken


def test_a_task_that_is_hit_again_before_it_could_run_is_measured_from_the_second_time() -> None:
    impacts = [Impact(0.5, {"t"}, within=3.0), Impact(2.0, {"t"}, within=3.0)]
    verdict = judged(run("a", 1, 0.0, None), run("b", 2, 4.0, 5.0), impacts=impacts)
    assert (verdict.slowest, verdict.broken) == (2.0, [])


def test_a_poison_task_has_to_fail_after_so_many_starts() -> None:
    task = Submitted("t", ends="FAILURE", starts=2)
    starts = [run("a", 1, 0.0, None), run("a", 2, 1.0, None)]
    assert judged(*starts, states={"t": "FAILURE"}, task=task).broken == []
    assert judged(*starts, run("a", 3, 2.0, None), states={"t": "FAILURE"}, task=task).broken
    assert judged(*starts, task=task).broken


def test_messages_that_stay_in_redis_break_a_promise() -> None:
    assert judged(run("a", 1, 0.0, 1.0), left=1).broken
