"""Tasks that wait for replicas of their runs: who comes next, and to which replica."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from flyte_celery.worker.job import Job
from flyte_celery.worker.lines import Lines


@dataclass
class FakeReplica:
    """A replica with so many free slots."""

    free: int
    run: str | None = None
    #: Whether it has no task at all.
    empty: bool = True


@dataclass
class FakeReplicas:
    found: list[FakeReplica] = field(default_factory=list)

    def of(self, group: Any) -> list[FakeReplica]:
        return self.found

    def has_slot(self, replica: FakeReplica, alone: bool = False) -> bool:
        return replica.free > 0 and (replica.empty or not alone)


@dataclass
class Task:
    """What of a job the lines look at."""

    number: int
    run: str
    alone: bool = False


def lines(*tasks: Task) -> Lines:
    made = Lines()
    for task in tasks:
        made.add(cast(Job, task))
    return made


def dispatched(waiting: Lines, *replicas: FakeReplica) -> list[tuple[int, int]]:
    """Give tasks to replicas until none fits: the numbers of the tasks, each with its replica's place."""
    pairs = []
    while (found := waiting.next(cast(Any, FakeReplicas(list(replicas))), cast(Any, None))) is not None:
        job, given = found
        replica = cast(FakeReplica, given)
        replica.run, replica.free, replica.empty = job.run, replica.free - 1, False
        pairs.append((job.number, replicas.index(replica)))
    return pairs


def test_a_task_goes_to_a_replica_of_its_run_before_an_unbound_one() -> None:
    assert dispatched(lines(Task(1, "a")), FakeReplica(1), FakeReplica(1, "a")) == [(1, 1)]


def test_an_unbound_replica_takes_the_task_that_came_first_and_then_its_run() -> None:
    waiting = lines(Task(1, "a"), Task(2, "b"), Task(3, "a"))
    assert dispatched(waiting, FakeReplica(2)) == [(1, 0), (3, 0)]
    assert [job.number for job in waiting] == [2]


def test_a_run_without_a_replica_blocks_nobody() -> None:
    waiting = lines(Task(1, "a"), Task(2, "b"), Task(3, "b"))
    assert dispatched(waiting, FakeReplica(3, "b")) == [(2, 0), (3, 0)]


def test_a_task_that_must_run_alone_waits_for_an_empty_replica_of_its_run() -> None:
    waiting = lines(Task(1, "a", alone=True), Task(2, "b"))
    assert dispatched(waiting, FakeReplica(1, "a", empty=False), FakeReplica(1, "b")) == [(2, 1)]
    assert dispatched(waiting, FakeReplica(1, "a")) == [(1, 0)]


def test_what_is_put_back_comes_first_and_what_is_removed_never() -> None:
    one, two, three = (Task(number, "a") for number in (1, 2, 3))
    waiting = lines(three)
    waiting.put_back([cast(Job, one), cast(Job, two)])
    assert [job.number for job in waiting] == [1, 2, 3]
    waiting.remove(cast(Job, two))
    assert two not in list(waiting)
    assert len(waiting) == 2
    assert waiting.counts() == {"a": 2}
    assert [job.number for job in waiting.clear()] == [1, 3]
    assert not len(waiting) and not waiting.has("a")
