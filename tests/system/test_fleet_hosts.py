"""A fleet on hosts with addresses of their own: network namespaces, whose links to Redis can be cut and healed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from flyte_celery import names
from tests.helpers import processes
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.redis_server import RedisServer
from tests.helpers.waiting import wait_until
from tests.helpers.workers import Worker

LEASE = 4.0

SOURCE = """
    import asyncio

    import flyte_celery as flyte

    app = flyte.init()
    kept = flyte.TaskEnvironment("kept", reusable=flyte.ReusePolicy(replicas=(1, 1), idle_ttl=3600))


    @kept.task
    async def nap(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds
"""


@dataclass
class Host:
    """A network namespace with one link, to this machine's own."""

    name: str
    number: int

    @property
    def gateway(self) -> str:
        """This machine, as the host sees it."""
        return f"10.231.{self.number}.1"

    @property
    def _link(self) -> str:
        return f"fc{os.getpid() % 10000}{self.name}"

    @property
    def space(self) -> str:
        return f"flyte-{os.getpid()}-{self.name}"

    def up(self) -> None:
        _ip("netns", "add", self.space)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        _ip("addr", "add", f"{self.gateway}/24", "dev", self._link)
        _ip("link", "set", self._link, "up")
        within = ("netns", "exec", self.space, "ip")
        _ip(*within, "addr", "add", f"10.231.{self.number}.2/24", "dev", "eth0")
        _ip(*within, "link", "set", "eth0", "up")
        _ip(*within, "link", "set", "lo", "up")

    def cut(self) -> None:
        _ip("link", "set", self._link, "down")

    def heal(self) -> None:
        _ip("link", "set", self._link, "up")

    def down(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.space], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", self._link], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two hosts; skipped where namespaces cannot be made."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("Network namespaces need the command ip, and root.")
    made = [Host("a", 1), Host("b", 2)]
    try:
        for host in made:
            try:
                host.up()
            except subprocess.CalledProcessError as exc:
                pytest.skip(f"This machine makes no network namespaces: {exc.stderr.decode()}")
        yield made
    finally:
        for host in made:
            host.down()


def replicas(worker: Worker) -> int:
    launchers = [pid for pid in processes.descendants(worker.pid) if ".preload" in processes.command_line(pid)]
    return max(0, len(launchers) - 1)


def test_a_host_that_is_cut_off_ends_its_replicas_and_another_one_has_the_minimum(
    tmp_path: Path, hosts: list[Host]
) -> None:
    """No packet comes through, so nobody hears of anything; then the link heals, and both serve."""
    server = RedisServer(tmp_path, address=" ".join(host.gateway for host in hosts))
    server.start()
    project = Project(tmp_path, server.url())
    project.write(SOURCE)
    try:
        for host in hosts:
            variables = {
                "FLYTE_CELERY_BROKER_URL": f"redis://{host.gateway}:{server.port}/0",
                "FLYTE_CELERY_LEASE": str(LEASE),
            }
            line = ["-A", "proj", "env", "worker", "kept", "-n", f"kept@{host.name}", "--loglevel", "INFO"]
            within = ("ip", "netns", "exec", host.space)
            project.workers.append(Worker(tmp_path, line, variables, name=f"worker-{host.name}", within=within))
            project.workers[-1].wait_ready()
            project.wait(lambda: replicas(project.workers[0]) == 1, description="the minimum on the first host")
        first, second = project.workers
        client = redis.Redis.from_url(server.url())
        seats = names.fleet_key("kept", "sums")

        def moved(to: Worker, away: Worker) -> bool:
            number = replicas(away), replicas(to)
            assert sum(number) <= 1
            assert int(client.hget(seats, "seats") or 0) <= 1  # type: ignore[arg-type]
            return number == (0, 1)

        hosts[0].cut()
        wait_until(lambda: moved(second, first), PATIENCE * 2, "the minimum on the second host")
        assert project.call("kept.nap", 0.0) == 0.0
        hosts[0].heal()
        first.wait_for_log("The lease of")
        hosts[1].cut()
        wait_until(lambda: moved(first, second), PATIENCE * 2, "the minimum on the first host again")
        assert project.call("kept.nap", 0.0) == 0.0
        hosts[1].heal()
    finally:
        project.close()
        server.stop()
