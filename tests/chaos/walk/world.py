"""The fleet of a walk, and what the walk has done to it: what happens next depends on that, and on nothing measured."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flyte_celery.fleet import orders
from tests.chaos.fleet import Fleet, Member
from tests.chaos.verdict import Submitted
from tests.chaos.walk import replicas
from tests.chaos.walk.project import GPU, POLICIES, RESTING
from tests.helpers import processes

#: Each has devices of its own.
HOSTS = ("h1", "h2", "h3")
DEVICES = "L4:2"

#: Workers of one environment, and of all.
MOST_OF_ONE, MOST = 3, 8

#: Seconds without work after which environments rest that do.
IDLE = 2.0


@dataclass
class World:
    """A fleet and its history.

    Args:
        folder: Directory for everything, empty.
        lease: Seconds of every lease.
        patience: Seconds on top of each promise about time.
    """

    folder: Path
    lease: float
    patience: float
    fleet: Fleet = field(init=False)
    #: Workers to which nothing has happened, and those that are stopped or cut off, with the moment.
    well: list[Member] = field(default_factory=list)
    stopped: dict[Member, float] = field(default_factory=dict)
    stalled: dict[Member, float] = field(default_factory=dict)
    #: Workers that have begun to serve, as far as anybody has waited for that.
    ready: set[Member] = field(default_factory=set)
    #: The newest version of each environment.
    versions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(POLICIES, 1))
    submitted: list[Submitted] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fleet = Fleet(
            self.folder,
            self.lease,
            dict.fromkeys(POLICIES, 1),
            self.patience,
            app="tests.chaos.walk.project",
            queues=tuple(POLICIES),
        )
        self.replicas.mkdir()

    @property
    def replicas(self) -> Path:
        """Where replicas write of themselves."""
        return self.folder / "replicas"

    def close(self) -> None:
        """End everything."""
        self.fleet.close()

    # -- Workers -----------------------------------------------------------------------------------------------------

    def there(self) -> list[Member]:
        """Workers that were neither ended nor told to end."""
        return [*self.well, *self.stopped, *self.stalled]

    def of(self, environment: str) -> list[Member]:
        """Those of an environment."""
        return [member for member in self.there() if member.environment == environment]

    def join(self, environment: str, host: str, version: int, proxied: bool) -> Member:
        """Start a worker, and do not wait for it."""
        member = self.fleet.start(
            environment,
            *(("--devices", DEVICES) if environment in GPU else ()),
            host=host,
            proxied=proxied,
            more={
                replicas.FOLDER: str(self.replicas),
                replicas.HOST: host,
                "FLYTE_CELERY_DEVICE_LOCKS": str(self.folder / "locks" / host),
                "FLYTE_CELERY_CODE_VERSION": str(version),
                # Replicas are killed more often here than anywhere, also such as have only just begun.
                "FLYTE_CELERY_START_BACKOFF": "0.1",
                "FLYTE_CELERY_START_BACKOFF_CAP": "0.1",
                "FLYTE_CELERY_MAX_START_FAILURES": "1000",
                **({"FLYTE_CELERY_IDLE_TTL": str(IDLE)} if environment in RESTING else {}),
            },
            ready=False,
        )
        self.well.append(member)
        return member

    def wait_ready(self, member: Member) -> None:
        """Wait until a worker serves."""
        member.worker.wait_ready(30 + self.patience)
        self.ready.add(member)

    def leave(self, member: Member) -> None:
        """Tell a worker to end."""
        self.well.remove(member)
        if member.alive:
            member.leave(signal.SIGTERM)

    def kill(self, member: Member, everything: bool = False) -> None:
        """Kill a worker's main process, or all of its processes at once."""
        if everything:
            for pid in processes.descendants(member.worker.pid):
                processes.kill(pid)
        self.fleet.kill(member)
        if member in self.well:
            self.well.remove(member)
        self.stopped.pop(member, None)
        self.stalled.pop(member, None)

    def kill_replica(self, member: Member) -> bool:
        """Kill the replica of a worker that has lived longest; False when it has none."""
        there = [pid for _, worker, pid in replicas.alive(self.replicas) if worker == member.name]
        if not there:
            return False
        self.fleet.note_death(member.name, min(there))
        processes.kill(min(there))
        return True

    def stop(self, member: Member) -> None:
        """Stop a worker's main process."""
        self.well.remove(member)
        self.stopped[member] = time.monotonic()
        os.kill(member.worker.pid, signal.SIGSTOP)

    def go_on(self, member: Member) -> None:
        """Let a stopped worker go on."""
        os.kill(member.worker.pid, signal.SIGCONT)
        self._was_away(member, self.stopped.pop(member))

    def stall(self, member: Member, replies_alone: bool) -> None:
        """Cut a worker off from Redis: its connections stay open, and nothing comes through, or no reply."""
        assert member.proxy is not None
        self.well.remove(member)
        self.stalled[member] = time.monotonic()
        (member.proxy.stall_replies if replies_alone else member.proxy.stall)()

    def heal(self, member: Member, cut: bool) -> None:
        """Let come through again what was kept, or end the connections with it."""
        assert member.proxy is not None
        (member.proxy.cut if cut else member.proxy.heal)()
        self._was_away(member, self.stalled.pop(member))

    def _was_away(self, member: Member, since: float) -> None:
        self.fleet.note_silence(since, member)
        self.well.append(member)

    def prune(self) -> Iterator[str]:
        """A sentence for each worker that has ended without being told to."""
        for member in self.there():
            if not member.alive:
                yield f"{member.name} has ended by itself, with status {member.worker.process.returncode}"

    # -- Tasks and orders --------------------------------------------------------------------------------------------

    def submit(self, environment: str, number: int, seconds: float) -> None:
        """Submit so many tasks that take so long."""
        for task in self.fleet.submit_many(f"{environment}.work", number, seconds):
            self.submitted.append(Submitted(task))

    def in_peace(self) -> None:
        """Mend everything: nobody is stopped or cut off, every environment has a worker, and no order holds."""
        for member in list(self.stopped):
            self.go_on(member)
        for member in list(self.stalled):
            self.heal(member, cut=False)
        for host in HOSTS:
            orders.resume_host(self.fleet.client, host)
        for environment in POLICIES:
            orders.resume(self.fleet.client, environment)
            orders.reset(self.fleet.client, environment)
            if not self.of(environment):
                self.join(environment, HOSTS[0], self.versions[environment], proxied=False)
        for member in self.well:
            self.wait_ready(member)
