"""What is under fire: a Redis server and workers of its own, as an operator sees them, and repairs them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import redis

from flyte_celery import names
from tests.chaos import recorder, steps
from tests.chaos.leases import LeaseWatch
from tests.chaos.message import message, task_of
from tests.chaos.recorder import Mark
from tests.chaos.verdict import Loss
from tests.helpers import processes
from tests.helpers.projects import Project
from tests.helpers.redis_server import RedisServer
from tests.helpers.tcp_proxy import TcpProxy
from tests.helpers.workers import Worker

T = TypeVar("T")

#: The environments that each case loads, with the task that does nothing but take its time.
WORK = {"snc": "snc.sleep", "aio": "aio.nap"}

#: The host of every worker, where nobody says another one.
HOST = "chaos"

#: Seconds that a worker gives running tasks when it stops; longer than any task of the load.
GRACE = 15.0


@dataclass(slots=True, eq=False)
class Member:
    """One worker."""

    name: str
    environment: str
    worker: Worker
    #: Between it and Redis, when it has one.
    proxy: TcpProxy | None = None
    #: When it was told to end in good order: from then on it gives up its lease, and does not lose it.
    left_at: float = float("inf")
    #: As it is called in Celery; nothing but the name tells hosts apart.
    host: str = HOST

    @property
    def node(self) -> str:
        """Its name in Celery."""
        return f"{self.name}@{self.host}"

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.worker.process.poll() is None

    @property
    def leaving(self) -> bool:
        """Whether it was told to end in good order."""
        return self.left_at < float("inf")

    def leave(self, *signals: int) -> None:
        """Tell it to end in good order."""
        self.left_at = time.monotonic()
        for signum in signals:
            os.kill(self.worker.pid, signum)

    def launcher(self) -> int:
        """The process that its replicas are forks of."""
        return processes.descendants(self.worker.pid)[0]

    def replicas(self) -> list[int]:
        """The processes of its replicas."""
        return processes.descendants(self.launcher()) if processes.descendants(self.worker.pid) else []


@dataclass(slots=True)
class Fleet:
    """A Redis server, workers, and the files in which tasks record what happens to them.

    Args:
        folder: Directory for everything, empty.
        lease: Seconds of a worker's lease.
        wanted: How many workers of which environment `repair` sees to.
        patience: Seconds on top of each promise about time, for a machine that is busy with other things.
        app: The module of the app under test.
        queues: All of its queues that can have messages.
    """

    folder: Path
    lease: float = 3.0
    wanted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WORK, 2))
    patience: float = 0.0
    app: str = "tests.chaos.project"
    queues: tuple[str, ...] = ("snc", "aio", "zero")
    server: RedisServer = field(init=False)
    project: Project = field(init=False)
    members: list[Member] = field(default_factory=list)
    leases: LeaseWatch = field(init=False)
    records: recorder.Reader = field(init=False)
    #: Without the types of redis-py, which cannot tell replies from promises of replies.
    client: Any = field(init=False)
    #: Guards what threads of a load and of a fault both change.
    lock: threading.Lock = field(default_factory=threading.Lock)
    _noted: list[Loss] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "records").mkdir(parents=True)
        self.records = recorder.Reader(self.folder / "records")
        self.server = RedisServer(self.folder, durable=True)
        self.server.start()
        self.project = Project(self.folder, self.server.url())
        self.client = redis.Redis.from_url(self.server.url())
        self.leases = LeaseWatch(self.server.url(), self.lease)

    def close(self) -> None:
        """End everything."""
        self.leases.close()
        self.project.close()
        for member in self.members:
            if member.proxy is not None:
                member.proxy.close()
        self.client.close()
        self.server.stop()

    # -- Workers -----------------------------------------------------------------------------------------------------

    def start(
        self,
        environment: str,
        *options: str,
        host: str = HOST,
        proxied: bool = False,
        die_at: str | None = None,
        more: Mapping[str, str] | None = None,
        ready: bool = True,
    ) -> Member:
        """Start one more worker.

        Args:
            environment: What it serves.
            options: Of its command line, besides its name.
            host: As it is called in Celery.
            proxied: Whether it reaches Redis through a proxy of its own.
            die_at: Where it kills itself, `STEP:N` of `steps`.
            more: Environment variables besides the usual ones.
            ready: Whether to wait until it consumes.
        """
        name = f"{environment}-{len(self.members) + 1}"
        variables = {
            recorder.FOLDER: str(self.folder / "records"),
            recorder.WORKER: name,
            "FLYTE_CELERY_LEASE": str(self.lease),
            "FLYTE_CELERY_GRACE": str(GRACE),
            # What a fault has left as surplus goes soon, so that the next worker gets its part under load.
            "FLYTE_CELERY_AUTOSCALE_INTERVAL": "0.2",
            "FLYTE_CELERY_SCALEDOWN_TTL": "1",
            **(more or {}),
        }
        if die_at is not None:
            variables[steps.DIE_AT] = die_at
        proxy = TcpProxy(self.server.port) if proxied else None
        if proxy is not None:
            variables["FLYTE_CELERY_BROKER_URL"] = f"redis://127.0.0.1:{proxy.port}/0"
        worker = self.project.start(
            environment, "-n", f"{name}@{host}", *options, app=self.app, env=variables, ready=False
        )
        member = Member(name, environment, worker, proxy, host=host)
        self.members.append(member)
        if ready:
            worker.wait_ready()
        return member

    def serving(self, environment: str) -> list[Member]:
        """The living workers of an environment, oldest first."""
        return [member for member in self.members if member.environment == environment and member.alive]

    def repair(self) -> None:
        """See to it that there are as many workers as there should be."""
        started = [
            self.start(environment, ready=False)
            for environment, number in self.wanted.items()
            for _ in range(number - len([m for m in self.serving(environment) if not m.leaving]))
        ]
        for member in started:
            member.worker.wait_ready()

    def restart_empty(self) -> None:
        """Begin anew after a fault that left a mess: no message, no claim, other workers."""
        for environment in self.wanted:
            for member in self.serving(environment):
                self.kill(member)
                member.worker.destroy()
        self.client.flushall()
        self.repair()

    def retire(self, member: Member) -> None:
        """End a worker that only one case needed."""
        if member.alive:
            member.leave(signal.SIGTERM)
            member.worker.wait(GRACE + 10)
        if member.proxy is not None:
            member.proxy.close()

    def kill(self, member: Member) -> float:
        """Kill a worker's main process and return the moment, in monotonic seconds."""
        member.worker.kill()
        return self.note_death(member.name)

    def kill_process(self, member: Member, pid: int, how: int = signal.SIGKILL) -> float:
        """End one process of a worker, which may have ended already, and return the moment."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
        return self.note_death(member.name, pid)

    def note_death(self, worker: str, pid: int | None = None) -> float:
        """Remember that a worker, or one process of it, has been killed now."""
        now = time.monotonic()
        # For good; and until the kernel comes to it, the process may begin another task.
        self.note(Loss(worker, pid, now, until=float("inf")))
        return now

    def note(self, loss: Loss) -> None:
        """Remember that somebody stopped being the owner of tasks."""
        with self.lock:
            self._noted.append(loss)

    def note_silence(self, since: float, *members: Member) -> None:
        """Remember that workers have heard nothing of Redis until now: if for long, their replicas were ended.

        That happens before a lease is over, and others may not have noticed that it was.

        Args:
            since: Monotonic second.
            members: All when none is given.
        """
        now = time.monotonic()
        if now - since > self.lease / 2:
            for member in members or self.members:
                self.note(Loss(member.name, None, since, until=now))

    @contextlib.contextmanager
    def stopped(self, pid: int) -> Iterator[None]:
        """Stop a process (SIGSTOP), and let it go on afterwards."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):  # its worker ended meanwhile
                os.kill(pid, signal.SIGCONT)

    def losses(self) -> list[Loss]:
        """Every moment at which somebody stopped being the owner of tasks, as far as the driver sees it."""
        lost = [
            Loss(member.name, None, at, until)
            for member in self.members
            for at, until in self.leases.without(member.node)
            if at < member.left_at
        ]
        with self.lock:
            return [*self._noted, *lost]

    # -- Tasks -------------------------------------------------------------------------------------------------------

    def submit(self, name: str, *args: Any, task: str | None = None) -> str:
        """Submit a task once and return its id.

        Args:
            name: The task; its environment is its queue.
            args: What follows its id among its arguments.
            task: Its id.

        Raises:
            redis.RedisError: It is in the queue, or it is not.
        """
        task = task or uuid.uuid4().hex
        self.client.lpush(name.partition(".")[0], message(name, task, args))
        return task

    def submit_many(self, name: str, number: int, *args: Any) -> list[str]:
        """Submit many tasks at once and return their ids."""
        tasks = [uuid.uuid4().hex for _ in range(number)]
        self.client.lpush(name.partition(".")[0], *(message(name, task, args) for task in tasks))
        return tasks

    def wait_for(self, tasks: Iterable[str], state: str = "SUCCESS", timeout: float = 30.0) -> None:
        """Wait until all of these tasks have ended in a state.

        Raises:
            AssertionError: Some have not; the message has the ends of the workers' logs.
        """
        missing = set(tasks)

        def settled() -> bool:
            states = self.results(missing)
            others = {task: found for task, found in states.items() if found != state}
            assert not others, f"Not {state}: {others}"
            missing.difference_update(states)
            return not missing

        self.wait(settled, timeout, f"the end of {len(missing)} task(s)")

    def starts(self, task: str) -> list[Mark]:
        """When and where a task has begun."""
        return [mark for mark in self.marks() if mark.task == task and mark.event == "start"]

    # -- Books -------------------------------------------------------------------------------------------------------

    def marks(self) -> list[Mark]:
        """What the tasks have written."""
        return self.records.marks()

    def running(self, member: Member | None = None, pid: int | None = None) -> set[str]:
        """Tasks that have begun and not ended, in one worker or one process."""
        begun: set[tuple[str, int]] = set()
        for mark in self.marks():
            if member is not None and mark.worker != member.name:
                continue
            if pid is not None and mark.pid != pid:
                continue
            (begun.add if mark.event == "start" else begun.discard)((mark.task, mark.pid))
        return {task for task, _ in begun}

    def claimed(self, member: Member) -> set[str]:
        """Tasks that a worker has claimed, begun or not."""
        found: set[str] = set()
        for key in self.client.scan_iter(names.claims_key(member.environment, f"{member.node}:*")):
            found.update(task_of(message) for message in self.client.hvals(key))
        for key in self.client.scan_iter(names.inbox_key(member.environment, f"{member.node}:*")):
            found.update(task_of(message) for message in self.client.lrange(key, 0, -1))
        return found

    def waiting(self) -> int:
        """Messages in all queues, in their future, and in the claims of all workers, living or dead."""
        lists = [name for queue in self.queues for name in names.priority_lists(queue)]
        lists += self.client.scan_iter(names.inbox_key("*", "*"))
        hashes = [names.later_messages_key(queue) for queue in self.queues]
        hashes += self.client.scan_iter(names.claims_key("*", "*"))
        return sum(int(self.client.llen(key)) for key in lists) + sum(int(self.client.hlen(key)) for key in hashes)

    def results(self, tasks: Iterable[str]) -> dict[str, str]:
        """The state of each task that has one."""
        wanted = list(tasks)
        states: dict[str, str] = {}
        for first in range(0, len(wanted), 1000):
            some = wanted[first : first + 1000]
            values = self.client.mget([f"celery-task-meta-{task}" for task in some])
            for task, value in zip(some, values, strict=True):
                if value is not None:
                    states[task] = json.loads(value)["status"]
        return states

    def wait(self, predicate: Callable[[], T], timeout: float = 30.0, description: str = "the condition") -> T:
        """Wait, with patience; the message of a failure has the ends of the workers' logs."""
        return self.project.wait(predicate, timeout + self.patience, description)
