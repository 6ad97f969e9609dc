"""Several workers of one environment: its bounds hold for all of them together, whatever happens to any of them."""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import redis

from flyte_celery import names
from flyte_celery.fleet import orders
from tests.helpers import processes
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.redis_server import RedisServer
from tests.helpers.workers import Worker

#: Seconds; short, so that a test sees it run out.
LEASE = 2.0

VARIABLES = {
    "FLYTE_CELERY_LEASE": str(LEASE),
    "FLYTE_CELERY_AUTOSCALE_INTERVAL": "0.2",
    "FLYTE_CELERY_START_BACKOFF": "0.2",
    "FLYTE_CELERY_START_BACKOFF_CAP": "1",
}

SOURCE = """
    import asyncio
    import os

    import flyte_celery as flyte

    app = flyte.init()
    POLICIES = {"shared": (0, 3), "kept": (1, 3), "one": (0, 1)}
    for name, replicas in POLICIES.items():
        environment = flyte.TaskEnvironment(name, reusable=flyte.ReusePolicy(replicas=replicas, idle_ttl=3600))

        @environment.on_startup
        def load() -> None:
            model = os.environ.get("MODEL")
            if model and not os.path.exists(model):
                raise RuntimeError("model not found")
            if model:
                open(model).close()  # a pipe: when somebody writes it

        @environment.task
        async def hold(gate: str) -> str:
            while not os.path.exists(gate):
                await asyncio.sleep(0.01)
            return os.environ.get("FLYTE_CELERY_CODE_VERSION", "")

        @environment.task
        async def nap(seconds: float) -> str:
            await asyncio.sleep(seconds)
            return os.environ.get("FLYTE_CELERY_CODE_VERSION", "")
"""


class Members:
    """Workers of one environment, each as if on a host of its own, and a watch over how many replicas there are.

    The watch looks into Redis and at the processes all the time, from a thread of its own.
    """

    def __init__(self, project: Project, environment: str) -> None:
        self.project = project
        self.environment = environment
        self.workers: dict[str, Worker] = {}
        self.client = redis.Redis.from_url(project.url)
        self.most_seats = self.most_processes = 0
        self._stopped = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()

    def start(
        self, *hosts: str, version: str = "", options: tuple[str, ...] = (), variables: Mapping[str, str] | None = None
    ) -> None:
        env = {**VARIABLES, **({"FLYTE_CELERY_CODE_VERSION": version} if version else {}), **(variables or {})}
        for host in hosts:
            name = ("-n", f"{self.environment}@{host}")
            self.workers[host] = self.project.start(self.environment, *name, *options, env=env, ready=False)
        for host in hosts:
            self.workers[host].wait_ready()

    def replicas(self, *hosts: str) -> int:
        """Processes of replicas on these hosts, or all."""
        return sum(self._replicas_of(self.workers[host]) for host in hosts or list(self.workers))

    def _replicas_of(self, worker: Worker) -> int:
        launchers = [pid for pid in processes.descendants(worker.pid) if ".preload" in processes.command_line(pid)]
        # A fork has the launcher's command line; those of dead workers are nobody's descendants.
        return max(0, len(launchers) - 1)

    def seats(self) -> int:
        return int(self.client.hget(names.fleet_key(self.environment, "sums"), "seats") or 0)  # type: ignore[arg-type]

    def _look(self) -> None:
        while not self._stopped.wait(0.02):
            with contextlib.suppress(redis.RedisError):  # a test restarts the server
                self.most_seats = max(self.most_seats, self.seats())
            self.most_processes = max(self.most_processes, self.replicas())

    def wait_for(self, number: int, *hosts: str, timeout: float = PATIENCE * 2) -> None:
        """Wait for so many replicas."""
        where = ", ".join(hosts) or "all hosts"
        self.project.wait(lambda: self.replicas(*hosts) == number, timeout, f"{number} replicas on {where}")

    def close(self) -> None:
        self._stopped.set()
        self._watch.join()
        for worker in self.workers.values():
            worker.destroy()
        self.client.close()


@pytest.fixture
def project(alone: Project) -> Project:
    """A project without workers."""
    alone.write(SOURCE)
    return alone


@pytest.fixture
def shared(project: Project) -> Iterator[Members]:
    members = Members(project, "shared")
    yield members
    members.close()


@pytest.fixture
def kept(project: Project) -> Iterator[Members]:
    members = Members(project, "kept")
    yield members
    members.close()


@pytest.fixture
def one(project: Project) -> Iterator[Members]:
    members = Members(project, "one")
    yield members
    members.close()


def test_three_workers_have_the_maximum_together_and_let_go_when_one_leaves(shared: Members, tmp_path: Path) -> None:
    """A burst, then a worker that stops: the others have its seats at once, without waiting for a lease."""
    shared.start("h1", "h2", "h3", options=("--scaledown-ttl", "1"))
    project, gate = shared.project, tmp_path / "gate"
    results = [project.send("shared.hold", str(gate)) for _ in range(10)]
    shared.wait_for(3)
    (host,) = [host for host in shared.workers if shared.replicas(host)][:1]
    shared.workers[host].process.send_signal(signal.SIGTERM)
    gate.touch()
    assert len([result.get(timeout=PATIENCE * 2) for result in results]) == 10
    shared.workers[host].wait()
    again = tmp_path / "again"
    results = [project.send("shared.hold", str(again)) for _ in range(6)]
    shared.wait_for(3, *[each for each in shared.workers if each != host])
    again.touch()
    assert len([result.get(timeout=PATIENCE * 2) for result in results]) == 6
    project.wait(lambda: shared.seats() == 0, description="the end of the surplus")
    assert shared.most_seats == 3
    assert shared.most_processes == 3


def test_the_minimum_comes_back_when_the_host_that_has_it_dies(kept: Members) -> None:
    kept.start("h1")
    kept.wait_for(1, "h1")
    kept.start("h2")
    assert kept.replicas("h2") == 0, "the minimum is one in all"
    kept.workers["h1"].destroy()
    died = time.monotonic()
    kept.wait_for(1, "h2")
    assert time.monotonic() - died >= LEASE * 0.4, "nobody can know that it is dead before its lease is over"
    assert kept.project.call("kept.nap", 0.0) == ""
    assert kept.most_seats == 1


def test_a_worker_that_is_stopped_loses_its_replicas_before_others_have_its_seats(one: Members, tmp_path: Path) -> None:
    """SIGSTOP beyond the lease: its launcher ends the replicas. It wakes up, finds its lease lost, and serves again."""
    one.start("h1")
    project, gate = one.project, tmp_path / "gate"
    result = project.send("one.hold", str(gate))
    one.wait_for(1, "h1")
    one.start("h2")
    one.workers["h1"].process.send_signal(signal.SIGSTOP)
    one.wait_for(1, "h2")
    assert one.replicas("h1") == 0
    gate.touch()
    result.get(timeout=PATIENCE)
    one.workers["h1"].process.send_signal(signal.SIGCONT)
    one.workers["h1"].wait_for_log("lease")
    one.workers["h2"].process.send_signal(signal.SIGTERM)
    one.workers["h2"].wait()
    assert project.call("one.nap", 0.0) == ""
    assert one.most_processes == 1
    assert one.most_seats == 1


def test_a_worker_that_is_stopped_while_a_replica_starts_has_not_failed_to_start_it(
    one: Members, tmp_path: Path
) -> None:
    """Its launcher ends the replica, which says nothing about the next one, or about the memory."""
    gate = tmp_path / "gate"
    source = one.project.folder / "proj.py"
    source.write_text(source.read_text() + textwrap.dedent(f"""
        @environment.on_startup
        async def wait() -> None:
            while not os.path.exists({str(gate)!r}):
                await asyncio.sleep(0.01)
    """))  # fmt: skip
    one.start("h1", variables={"FLYTE_CELERY_MAX_START_FAILURES": "1"})
    result = one.project.send("one.nap", 0.0)
    one.wait_for(1)
    os.kill(one.workers["h1"].pid, signal.SIGSTOP)
    one.wait_for(0)
    gate.touch()
    os.kill(one.workers["h1"].pid, signal.SIGCONT)
    assert result.get(timeout=PATIENCE * 2) == ""
    assert "out of memory" not in one.workers["h1"].log()


def test_a_killed_worker_that_starts_again_does_not_wait_for_its_own_lease(one: Members) -> None:
    one.start("h1")
    assert one.project.call("one.nap", 0.0) == ""
    old = one.workers["h1"]
    old.kill()
    old.process.wait()
    one.project.wait(lambda: not old.processes(), description="the end of its launcher")
    one.start("h1")
    assert "are free" in one.workers["h1"].log()
    assert one.project.call("one.nap", 0.0) == ""
    assert one.most_seats == 1


def test_a_trickle_over_two_workers_lets_the_surplus_go(shared: Members, tmp_path: Path) -> None:
    shared.start("h1", "h2", options=("--scaledown-ttl", "1"))
    project, gate = shared.project, tmp_path / "gate"
    burst = [project.send("shared.hold", str(gate)) for _ in range(6)]
    shared.wait_for(3)
    gate.touch()
    for result in burst:
        result.get(timeout=PATIENCE)

    def trickle() -> bool:
        project.call("shared.nap", 0.01)
        return shared.replicas() == 1

    project.wait(trickle, PATIENCE * 2, "one replica under a trickle")


def test_a_rolling_deployment_loses_nothing_and_ends_with_the_new_version(shared: Members) -> None:
    shared.start("h1", "h2", version="1")
    project = shared.project
    results = [project.send("shared.nap", 0.05) for _ in range(20)]
    assert project.call("shared.nap", 0.0) == "1"
    for host in ("h3", "h4"):
        shared.start(host, version="2")
        results += [project.send("shared.nap", 0.05) for _ in range(20)]
    project.wait(lambda: shared.replicas("h1", "h2") == 0, description="the end of the old version's replicas")
    assert project.call("shared.nap", 0.0) == "2"
    for host in ("h1", "h2"):
        shared.workers[host].process.send_signal(signal.SIGTERM)
    for host in ("h1", "h2"):
        assert shared.workers[host].wait() == 0
    assert {result.get(timeout=PATIENCE) for result in results} == {"1", "2"}
    assert shared.most_seats <= 3
    assert shared.most_processes <= 3


@pytest.mark.parametrize("environment", ["kept", "one"])
def test_a_version_that_cannot_start_is_shown_and_takes_nothing_over(
    project: Project, tmp_path: Path, environment: str
) -> None:
    """Also where there may be one replica: the old version makes way for some attempts, its calls wait meanwhile."""
    members, model = Members(project, environment), tmp_path / "model"
    nap = f"{environment}.nap"
    try:
        members.start("h1", version="1", options=("--scaledown-ttl", "1"))
        assert project.call(nap, 0.0) == "1"
        members.start("h2", version="2", variables={"MODEL": str(model)}, options=("--scaledown-ttl", "1"))

        def serves() -> str:
            assert project.call(nap, 0.0) == "1", "no call fails, and none runs in the new version"
            return members.workers["h2"].log()

        project.wait(lambda: "(3 in a row)" in serves(), PATIENCE * 3, "three attempts")
        explained = project.celery("env", "explain", environment).stdout
        assert "generation 2 takes over when a replica of it is ready" in explained
        assert "The last attempt to start one failed: RuntimeError: model not found" in explained
        assert "model not found" in project.celery("env", "status", environment).stdout
        serves()
        model.touch()
        project.wait(lambda: members.replicas("h2") == 1, PATIENCE * 3, "a replica of the new version")
        project.wait(lambda: project.call(nap, 0.0) == "2", PATIENCE, "calls in the new version")
        members.wait_for(0, "h1")
        assert members.most_seats <= (1 if environment == "one" else 3)
        assert members.most_processes <= (1 if environment == "one" else 3)
    finally:
        members.close()


def test_a_new_version_is_ready_before_it_is_called(shared: Members, tmp_path: Path) -> None:
    """At rest it starts a replica to show that it can; while it loads, the old version is woken up as ever."""
    shared.start("h1", version="1", options=("--scaledown-ttl", "1"))
    project, model = shared.project, tmp_path / "model"
    os.mkfifo(model)
    shared.start("h2", version="2", variables={"MODEL": str(model)}, options=("--scaledown-ttl", "1"))
    shared.wait_for(1, "h2")
    assert project.call("shared.nap", 0.0) == "1"
    model.open("w").close()
    project.wait(lambda: project.call("shared.nap", 0.0) == "2", PATIENCE, "calls in the new version")


def test_an_operator_pauses_scales_drains_and_prewarms(shared: Members) -> None:
    shared.start("h1", "h2", options=("--scaledown-ttl", "1"))
    project = shared.project

    def env(*words: str) -> str:
        done = project.celery("env", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    env("prewarm", "shared", "2")
    project.wait(lambda: shared.most_seats == 2, description="two replicas without a task")
    env("pause", "shared")
    project.wait(lambda: "paused" in env("explain", "shared"), description="an explanation")
    result = project.send("shared.nap", 0.0)
    project.wait(lambda: project.depth("shared") == 1, description="a task that waits")
    env("resume", "shared")
    assert result.get(timeout=PATIENCE) == ""
    env("scale", "shared", "1", "1")
    shared.wait_for(1)
    assert "1 to 1" in env("explain", "shared")
    env("drain", "shared")
    shared.wait_for(0)
    result = project.send("shared.nap", 0.0)
    env("resume", "shared")
    assert result.get(timeout=PATIENCE) == ""
    shared.wait_for(1)
    (host,) = [host for host in shared.workers if shared.replicas(host)]
    env("drain", host)
    shared.wait_for(0, host)
    assert project.call("shared.nap", 0.0) == ""
    assert shared.replicas(host) == 0
    env("resume", host)
    env("scale", "shared", "--reset")
    shared.wait_for(0)


def test_a_host_is_drained_by_remote_control(one: Members) -> None:
    one.start("h1")
    project = one.project
    assert project.call("one.nap", 0.0) == ""
    # `celery control` knows the commands, and waits for answers for as long as it is told.
    refused = project.celery("control", "-t", "10", "env_drain_host", "h9").stdout
    assert "'h9' is no host of a worker. There are workers on h1." in refused
    assert project.ask("env_drain_host", "one", host="h1") == {"ok": "one: h1 drains"}
    one.wait_for(0)
    result = project.send("one.nap", 0.0)
    project.wait(lambda: project.depth("one") == 1, description="a task that waits")
    assert project.ask("env_resume_host", "one", host="h1") == {"ok": "one: h1 serves again"}
    assert result.get(timeout=PATIENCE) == ""


def test_what_a_paused_worker_was_about_to_get_goes_back_to_the_queue(one: Members) -> None:
    """It waits for a message when it hears of the order, and Redis gives it the next one."""
    one.start("h1")

    def looks() -> list[tuple[bytes, float]]:
        """Each look of the worker at its fleet moves the end of its lease there."""
        return one.client.zrange(names.fleet_key("one", "owners"), 0, -1, withscores=True)  # type: ignore[return-value]

    for _ in range(5):
        orders.pause(one.client, "one")
        for _ in range(2):
            seen = looks()
            one.project.wait(lambda seen=seen: looks() != seen, description="another look")  # type: ignore[misc]
        result = one.project.send("one.nap", 0.0)
        one.project.wait(lambda: one.project.depth("one") == 1, description="a task in the queue")
        orders.resume(one.client, "one")
        assert result.get(timeout=PATIENCE) == ""


def test_orders_outlive_workers(one: Members) -> None:
    orders.scale(one.client, "one", 0, 0)
    one.start("h1")
    result = one.project.send("one.nap", 0.0)
    one.project.wait(lambda: one.project.status("one")["maximum"] == 0, description="the operator's bounds")
    assert one.replicas() == 0
    orders.reset(one.client, "one")
    assert result.get(timeout=PATIENCE) == ""


def test_a_redis_that_restarts_takes_no_replica_from_anybody(tmp_path: Path) -> None:
    """Its port says that it does not run, so nobody else can have the seats, however long it takes."""
    server = RedisServer(tmp_path, durable=True)
    server.start()
    project = Project(tmp_path, server.url())
    project.write(SOURCE)
    members = Members(project, "kept")
    try:
        members.start("h1", "h2")
        members.wait_for(1)
        had = {pid for host in members.workers for pid in processes.descendants(members.workers[host].pid)}
        members._stopped.set()  # the watch needs Redis
        server.stop()
        deadline = time.monotonic() + LEASE * 2
        project.wait(lambda: time.monotonic() > deadline, LEASE * 3, "twice the lease")
        assert members.replicas() == 1
        server.start()
        assert project.call("kept.nap", 0.0) == ""
        assert had == {pid for host in members.workers for pid in processes.descendants(members.workers[host].pid)}
    finally:
        members.close()
        project.close()
        server.stop()
