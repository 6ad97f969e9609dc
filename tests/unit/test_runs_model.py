"""The rules of replicas that belong to runs, played with made-up runs until all have ended, without any process.

Each step something happens that could happen next: a message is claimed, a replica is ready or gone, a task calls its
children, goes on after them, or ends. Whatever the order, every run must end, within the bounds.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from flyte_celery.supervisor.lifecycle import State
from flyte_celery.worker.runs import Held, makes_way, replicas_needed

#: Children of a task, each with its own.
Tree = list["Tree"]  # type: ignore[misc]
trees = st.recursive(st.just([]), lambda children: st.lists(children, max_size=3), max_leaves=6)

#: More events than any of these worlds needs.
MOST_EVENTS = 5_000


@dataclass(eq=False)
class Task:
    """A task, and where it is in its life."""

    number: int
    run: int
    tree: Tree
    parent: Task | None = None
    called: bool = False
    unfinished: int = 0

    @property
    def suspended(self) -> bool:
        return self.unfinished > 0


@dataclass(eq=False)
class Replica:
    number: int
    run: str | None = None
    state: State = State.STARTING
    tasks: list[Task] = field(default_factory=list)
    suspended: list[Task] = field(default_factory=list)

    @property
    def held(self) -> Held:
        return Held(self.number, self.run, self.state, len(self.tasks), len(self.suspended))


class World:
    """One worker of an environment with all its tasks."""

    def __init__(self, runs: list[Tree], highest: int, concurrency: int, chance: random.Random) -> None:
        self.highest, self.concurrency, self.chance = highest, concurrency, chance
        self.numbers = self.ended = 0
        self.queue: deque[Task] = deque()
        self.waiting: list[Task] = []
        self.replicas: list[Replica] = []
        for run, tree in enumerate(runs):
            self.queue.append(self.task(run, tree))

    def task(self, run: int, tree: Tree, parent: Task | None = None) -> Task:
        self.numbers += 1
        return Task(self.numbers, run, tree, parent)

    def play(self) -> None:
        for _ in range(MOST_EVENTS):
            self.react()
            assert len(self.replicas) <= self.highest
            if not (events := self.events()):
                break
            self.chance.choice(events)()
        assert not self.queue and not self.waiting and not any(each.tasks or each.suspended for each in self.replicas)

    # -- What the worker does ----------------------------------------------------------------------------------------

    def react(self) -> None:
        for replica in self.replicas:  # as `RunScope.keep_parents`
            if replica.state is State.DRAINING and replica.suspended:
                replica.state = State.READY
        while self.claim() or self.dispatch():
            pass
        counts: dict[str, int] = {}
        for task in self.waiting:
            counts[str(task.run)] = counts.get(str(task.run), 0) + 1
        needed = replicas_needed(counts, [each.held for each in self.replicas], self.concurrency)
        live = sum(each.state in (State.STARTING, State.READY) for each in self.replicas)
        for _ in range(min(needed, self.highest) - live):
            if len(self.replicas) < self.highest:
                self.numbers += 1
                self.replicas.append(Replica(self.numbers))
        heads = {str(task.run): task.number for task in reversed(self.waiting)}
        while len(self.replicas) == self.highest:
            going = makes_way(heads, [each.held for each in self.replicas], now=1e6)
            if going is None:
                break
            replica = next(each for each in self.replicas if each.number == going.number)
            replica.state = State.DRAINING if replica.tasks else State.STOPPING

    def claim(self) -> int:
        running = sum(len(each.tasks) for each in self.replicas)
        looks = any(each.suspended and len(each.tasks) < self.concurrency for each in self.replicas)
        room = self.highest * self.concurrency - running - len(self.waiting)
        room += 2 * len(self.waiting) if looks else 0  # as `RunScope.set_aside`
        taken = max(0, min(room, len(self.queue)))
        self.waiting += [self.queue.popleft() for _ in range(taken)]
        return taken

    def dispatch(self) -> bool:
        """As `Lines.next`: the first task of a run with a free slot, else the first task to an unbound replica."""
        free = [each for each in self.replicas if each.state is State.READY and len(each.tasks) < self.concurrency]
        for replica in sorted(free, key=lambda each: each.run is None):
            for task in self.waiting:
                if replica.run in (None, str(task.run)):
                    replica.run = str(task.run)
                    replica.tasks.append(task)
                    self.waiting.remove(task)
                    return True
        return False

    # -- What happens ------------------------------------------------------------------------------------------------

    def events(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for replica in self.replicas:
            if replica.state is State.STARTING:
                found.append(partial(setattr, replica, "state", State.READY))
            elif not replica.tasks and not replica.suspended and replica.state is not State.READY:
                found.append(partial(self.replicas.remove, replica))
            found += [partial(self.proceed, replica, task) for task in replica.tasks]
            if len(replica.tasks) < self.concurrency:
                found += [partial(self.resume, replica, task) for task in replica.suspended if not task.suspended]
        return found

    def proceed(self, replica: Replica, task: Task) -> None:
        replica.tasks.remove(task)
        if not task.called and task.tree:
            task.called, task.unfinished = True, len(task.tree)
            self.queue.extend(self.task(task.run, tree, task) for tree in task.tree)
            replica.suspended.append(task)
        elif task.parent is not None:
            task.parent.unfinished -= 1

    def resume(self, replica: Replica, task: Task) -> None:
        replica.suspended.remove(task)
        replica.tasks.append(task)


@given(st.lists(trees, min_size=1, max_size=8), st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_every_run_ends_within_the_bounds(
    runs: list[Tree], highest: int, concurrency: int, chance: random.Random
) -> None:
    World(runs, highest, concurrency, chance).play()
