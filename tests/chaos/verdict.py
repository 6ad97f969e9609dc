"""The judgement, as a pure function: what was submitted, what tasks wrote, what was stored, who was lost and when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.recorder import Mark


@dataclass(frozen=True, slots=True)
class Loss:
    """Somebody stopped being the owner of what it ran: a process died, or a worker, or a worker lost its lease."""

    worker: str
    #: One process of the worker; None for all.
    pid: int | None
    #: Monotonic seconds.
    at: float
    #: When it was an owner again, infinity for never: what it begins in between is fenced, and run by others too.
    until: float = 0.0

    def of(self, run: Mark) -> bool:
        """Whether the owner of a run was lost."""
        return self.worker == run.worker and self.pid in (None, run.pid)


@dataclass(frozen=True, slots=True)
class Submitted:
    """One task that was sent."""

    id: str
    #: The state in which it has to end.
    ends: str = "SUCCESS"
    #: False when the broker did not confirm it, so that nobody knows whether it is in the queue.
    certain: bool = True
    #: How often it is tried, for tasks that kill their process.
    starts: int | None = None


@dataclass(slots=True)
class Impact:
    """What a fault did, as it says itself."""

    #: Monotonic second.
    at: float
    #: Tasks that it tore away from their owner.
    hit: set[str] = field(default_factory=set)
    #: Seconds within which all of them have to run again, where that is promised.
    within: float | None = None


@dataclass(slots=True)
class Verdict:
    """What became of all tasks of one case."""

    tasks: int = 0
    lost: list[str] = field(default_factory=list)
    #: Finished again although the first owner was there all the time, with the places.
    twice: list[str] = field(default_factory=list)
    #: Finished again after the first owner had died or lost its lease, which is allowed.
    again: int = 0
    #: Tasks that a fault tore away from their owner, and those of them that have finished.
    hit: int = 0
    recovered: int = 0
    #: Seconds from a fault to the last new start of a task that it hit, None when it hit none.
    slowest: float | None = None
    #: Messages that are still in Redis when every task has ended.
    left: int = 0
    broken: list[str] = field(default_factory=list)


def judge(
    submitted: Iterable[Submitted],
    marks: Iterable[Mark],
    states: Mapping[str, str],
    losses: list[Loss],
    impacts: Iterable[Impact],
    left: int = 0,
) -> Verdict:
    """Compare the books.

    Args:
        submitted: The tasks of the case; others in the books are ignored.
        marks: What the tasks wrote, in the order of time.
        states: The stored state of each task that has one.
        losses: Who stopped being an owner.
        impacts: What the faults did.
        left: Messages that Redis still had at the end.
    """
    tasks = {task.id: task for task in submitted}
    starts: dict[str, list[Mark]] = defaultdict(list)
    runs: dict[str, list[tuple[Mark, Mark]]] = defaultdict(list)
    for mark in marks:
        if mark.task not in tasks:
            continue
        if mark.event == "start":
            starts[mark.task].append(mark)
            if tasks[mark.task].starts is not None:  # it kills its process
                losses = [*losses, Loss(mark.worker, mark.pid, mark.at, until=float("inf"))]
        else:
            begun = next(each for each in reversed(starts[mark.task]) if each.pid == mark.pid)
            runs[mark.task].append((begun, mark))

    verdict = Verdict(tasks=sum(task.certain for task in tasks.values()), left=left)
    for task in tasks.values():
        state = states.get(task.id)
        unproven = state == "SUCCESS" and not runs[task.id]
        if task.certain and (state is None or unproven):
            verdict.lost.append(task.id)
        elif state not in (None, task.ends):
            verdict.broken.append(
                f"{task.id} ended as {state} instead of {task.ends}, started {len(starts[task.id])} time(s)"
            )
        if task.starts is not None and len(starts[task.id]) != task.starts:
            verdict.broken.append(f"{task.id} was started {len(starts[task.id])} times instead of {task.starts}")
        _count_repeats(task.id, runs[task.id], losses, verdict)
    _count_recoveries(list(impacts), starts, runs, verdict)
    if verdict.lost:
        verdict.broken.append(f"lost: {_some(verdict.lost)}")
    if verdict.twice:
        verdict.broken.append(f"twice although the owner was there: {_some(verdict.twice)}")
    if left:
        verdict.broken.append(f"{left} message(s) stay in Redis, and nobody works on them")
    return verdict


def _count_repeats(task: str, runs: list[tuple[Mark, Mark]], losses: list[Loss], verdict: Verdict) -> None:
    # By their starts: one that was given up may end after the one that replaced it.
    begun = sorted((first for first, _ in runs), key=lambda mark: mark.at)
    for first, second in pairwise(begun):
        excused = any(
            (loss.of(first) and first.at <= max(loss.at, loss.until) and loss.at <= second.at)
            or (loss.of(second) and loss.at <= second.at <= loss.until)
            for loss in losses
        )
        if excused:
            verdict.again += 1
        else:
            seconds = second.at - first.at
            verdict.twice.append(f"{task} in {_place(first)} and {seconds:.2f} s later in {_place(second)}")


def _count_recoveries(
    impacts: list[Impact],
    starts: Mapping[str, list[Mark]],
    runs: Mapping[str, list[tuple[Mark, Mark]]],
    verdict: Verdict,
) -> None:
    for impact in impacts:
        late = []
        for task in impact.hit & starts.keys():
            verdict.recovered += bool(runs.get(task))
            after = next((mark.at for mark in starts[task] if mark.at > impact.at), None)
            if after is None or any(task in each.hit and impact.at < each.at < after for each in impacts):
                continue  # it ended where it was, or was hit again before it could run
            verdict.slowest = max(verdict.slowest or 0.0, after - impact.at)
            if impact.within is not None and after - impact.at > impact.within:
                late.append(task)
        verdict.hit += len(impact.hit)
        if late:
            verdict.broken.append(f"ran again later than {impact.within:g} s after the fault: {_some(late)}")


def _place(mark: Mark) -> str:
    return f"{mark.worker} (process {mark.pid})"


def _some(tasks: list[str]) -> str:
    return ", ".join(tasks[:5]) + (f" and {len(tasks) - 5} more" if len(tasks) > 5 else "")
