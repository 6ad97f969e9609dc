"""The rules of `ReusePolicy(scope="run")`: which replica is whose, as pure functions of what there is and the time.

A run is a root task and everything that it calls; each message names it by Celery's `root_id`. A replica is bound to
the run of the first task that it gets, takes no other run's tasks, and ends with the run.

```
unbound --first task--> bound to the run --run over, nothing to do--> ended
                              `-- another run has its turn --> takes no more, ends when it has finished
```
A task goes to a replica of its run, else to the oldest unbound one, which is for the task that came first. A run that
finds neither, while no more replicas may be had, is *homeless*: then a replica of another run makes way. One with
suspended tasks never does: its parents wait for children that only a replica of their run may take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..supervisor.lifecycle import State

#: A replica that was bound for so many times the time that its start took was worth it, and makes way for another run:
#: without this runs that take turns would start a replica for each task.
WORTH = 10

#: Seconds that a start costs at least: the first task finds everything cold.
CHEAPEST = 0.1


@dataclass(frozen=True, slots=True)
class Held:
    """One replica, as far as the rules need it. Times are monotonic seconds."""

    number: int
    run: str | None = None
    """Its run, None for one that is bound to none yet."""

    state: State = State.READY

    running: int = 0
    """Tasks that hold a slot."""

    suspended: int = 0
    """Tasks that wait for their children."""

    lasting: bool = True
    """Whether it goes on taking tasks: not while it is being replaced, nor when it may run no more."""

    idle_since: float = 0.0
    """When its last task ended; means nothing while it has any."""

    bound_at: float = 0.0
    """When it got its run."""

    start_took: float = 0.0
    """Seconds from the beginning of its process to its readiness."""

    over: bool = False
    """Whether its run is known to be over."""

    @property
    def cost(self) -> float:
        """Seconds that another one in its place would cost."""
        return max(self.start_took, CHEAPEST)

    @property
    def worth_it_at(self) -> float:
        """From when on it makes way though it has work."""
        return self.bound_at + WORTH * self.cost

    @property
    def spare_at(self) -> float:
        """From when on it makes way when it has none: also as soon as it was idle for as long as a start takes."""
        return 0.0 if self.over else min(self.idle_since + self.cost, self.worth_it_at)


def replicas_needed(waiting: Mapping[str, int], replicas: Sequence[Held], concurrency: int, buffer: int = 0) -> int:
    """How many replicas the work of all runs needs, whatever the bounds say, without the buffer.

    A run's tasks need whole replicas, and parents that wait for children keep theirs. Replicas of runs that have
    nothing to do are needed only in so far as they are of no use to a run that has too few, or as a buffer.

    Args:
        waiting: How many tasks of each run wait.
        replicas: All replicas of the environment in this worker.
        concurrency: Tasks that one of them runs at once.
        buffer: Replicas that are to be ready beyond those.
    """
    work, suspended, have = Counter(waiting), Counter[str](), Counter[str]()
    for replica in replicas:
        if replica.run is None or replica.state is not State.READY:
            continue
        work[replica.run] += replica.running
        if replica.lasting:
            have[replica.run] += 1
            suspended[replica.run] += replica.suspended > 0
    runs = work.keys() | have.keys()
    needs = {run: max(-(-work[run] // concurrency), suspended[run]) for run in runs}
    needed = sum(needs.values())
    if needed and (buffer or any(needs[run] > have[run] for run in runs)):
        return sum(max(needs[run], have[run]) for run in runs)
    return needed


def homeless(waiting: Mapping[str, int], replicas: Sequence[Held]) -> list[str]:
    """The runs with waiting tasks that have no replica, in the order of `waiting`."""
    housed = {each.run for each in replicas if each.state is State.READY and (each.lasting or each.running)}
    return [run for run in waiting if run not in housed]


def makes_way(waiting: Mapping[str, int], replicas: Sequence[Held], now: float) -> Held | None:
    """Which replica is to end so that a homeless run can have one; None when there is no such run, or no such replica.

    First one that has nothing to do: at once when its run is over, else after a moment. When there is none, and the
    task that came first is a homeless run's, one of the run with the most replicas, with the fewest tasks to finish.

    Args:
        waiting: The runs that have waiting tasks, each with the number of its first one, in order of arrival.
        replicas: All replicas of the environment in this worker.
        now: Monotonic seconds.
    """
    without = homeless(waiting, replicas)
    coming = sum(each.state is State.STOPPING or (each.run is None and _stays(each)) for each in replicas)
    if len(without) <= coming:
        return None
    if idle := _idle(waiting, replicas):
        spare = [each for each in idle if each.spare_at <= now]
        return min(spare, key=lambda each: (not each.over, each.idle_since, each.number), default=None)
    movable = [each for each in replicas if _is_movable(each)]
    coming += sum(each.state is State.DRAINING and not each.suspended for each in replicas)
    if len(without) <= coming or min(waiting, key=waiting.__getitem__) not in without:
        return None
    have = Counter(each.run for each in replicas if each.state is State.READY)
    served = [each for each in movable if each.lasting and each.worth_it_at <= now]
    return min(served, key=lambda each: (-have[each.run], each.running, each.bound_at, each.number), default=None)


def next_spare_at(waiting: Mapping[str, int], replicas: Sequence[Held]) -> float | None:
    """When the next replica without work may make way for a homeless run; None where there is no such thing."""
    if not homeless(waiting, replicas):
        return None
    return min((each.spare_at for each in _idle(waiting, replicas)), default=None)


def is_stuck(waiting: Mapping[str, int], replicas: Sequence[Held]) -> bool:
    """Whether a run is homeless and stays so until some parent's children are done: every replica has such parents."""
    return bool(replicas and homeless(waiting, replicas)) and all(each.suspended for each in replicas)


def _is_movable(replica: Held) -> bool:
    return replica.run is not None and replica.state is State.READY and not replica.suspended


def _idle(waiting: Mapping[str, int], replicas: Sequence[Held]) -> list[Held]:
    return [each for each in replicas if _is_movable(each) and not each.running and each.run not in waiting]


def _stays(replica: Held) -> bool:
    return replica.state in (State.STARTING, State.READY)
