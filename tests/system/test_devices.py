"""Devices and labels: declared, leased by replicas, shared, broken. No GPU is needed: a replica says what it was given.

Each project is a host of its own, see `Project.variables`.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import redis

from flyte_celery import names
from tests.helpers import processes
from tests.helpers.projects import Project

APP = """
    import os, pathlib, signal, subprocess, time
    import flyte_celery as flyte

    AT_IMPORT = os.environ.get("CUDA_VISIBLE_DEVICES")
    app = flyte.init()

    def policy(low: int) -> flyte.ReusePolicy:
        return flyte.ReusePolicy(replicas=(low, 8), idle_ttl=3600, scaledown_ttl=3600)

    def with_gpu(name: str, gpu: object, low: int = 0) -> flyte.TaskEnvironment:
        return flyte.TaskEnvironment(name, resources=flyte.Resources(gpu=gpu), reusable=policy(low))

    vision = with_gpu("vision", "L4:1")
    other = with_gpu("other", "L4:1")
    pair = with_gpu("pair", "L4:2")
    sliced = with_gpu("sliced", "T4 shared:1", 3)
    parts = with_gpu("parts", flyte.GPU("A100", 1, "1g.5gb"))
    amd = with_gpu("amd", "MI300X:1")
    faulty = with_gpu("faulty", "L4:1", 1)
    west = flyte.TaskEnvironment("west", labels={"zone": "west"}, reusable=policy(1))
    big = flyte.TaskEnvironment("big", resources=flyte.Resources(memory="4Ti"), reusable=policy(1))
    plain = flyte.TaskEnvironment("plain", reusable=policy(0))

    def look() -> dict:
        variables = {name: value for name, value in os.environ.items() if "_VISIBLE_" in name}
        return {"pid": os.getpid(), "at_import": AT_IMPORT, "variables": variables}

    def hold(mark: str) -> str:
        pathlib.Path(mark).touch()
        while pathlib.Path(mark).exists():
            time.sleep(0.01)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def leave_a_child(mark: str) -> None:
        if os.fork() == 0:
            os.setsid()
            pathlib.Path(mark + "-").write_text(str(os.getpid()))
            pathlib.Path(mark + "-").rename(mark)
            while True:
                time.sleep(0.01)
        while not pathlib.Path(mark).exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    def start_an_engine(mark: str) -> str:
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        pathlib.Path(mark + "-").write_text(f"{child.pid} {os.getpid()} {os.getppid()}")
        pathlib.Path(mark + "-").rename(mark)
        hold(mark)
        return "not reached"

    def fail(text: str) -> None:
        raise RuntimeError(text)

    for env in (vision, other, pair, sliced, parts, amd, faulty, west, big, plain):
        env.task(look)
        env.task(hold)
        env.task(fail)
    vision.task(max_attempts=1)(leave_a_child)
    vision.task(max_attempts=1)(start_an_engine)

    @faulty.on_startup
    def load() -> None:
        if os.environ["CUDA_VISIBLE_DEVICES"] == "0":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
"""

#: Short times: how soon a worker asks again, and how long a dead one's offer holds.
QUICK = {"FLYTE_CELERY_AUTOSCALE_INTERVAL": "0.2", "FLYTE_CELERY_LEASE": "1"}


@pytest.fixture
def host(alone: Project) -> Project:
    """A host for one test."""
    alone.write(APP)
    return alone


def begin(host: Project, environment: str, name: str) -> tuple[Any, Path]:
    """Submit a task that keeps its replica busy until the file is removed, and wait until it runs."""
    mark = host.folder / name
    result = host.send(f"{environment}.hold", str(mark))
    host.wait(mark.exists, description=f"{name} to run in {environment}")
    return result, mark


def unserved(host: Project) -> dict[str, dict[str, Any]]:
    """What `env status --json` says of environments that no worker serves."""
    answer = host.celery("env", "status", "--json")
    return {each["environment"]: each for each in json.loads(answer.stdout) if each["hostname"] is None}


class TestLeases:
    """One process per device, over all workers of a host."""

    def test_replicas_of_two_environments_never_share_a_device(self, host: Project) -> None:
        """The one that gets none waits, says for whom, and goes on when a device is free."""
        _, stopped = (host.start(name, "--devices", "L4:2", env=QUICK) for name in ("vision", "other"))
        first, first_mark = begin(host, "vision", "first")
        second, second_mark = begin(host, "other", "second")
        third = host.send("vision.hold", str(third_mark := host.folder / "third"))
        host.wait(lambda: host.status("vision")["obstacle"], description="an obstacle")
        status = host.status("vision")
        assert "no free device for another replica: it needs 1 x L4; " in status["obstacle"]
        assert "is held by other@" in status["obstacle"]
        assert status["reason"] == "blocked"
        assert status["replicas"][0]["devices"] == ["L4 0"]
        assert not third_mark.exists()
        second_mark.unlink()
        assert second.get(timeout=30) == "1"
        assert not third_mark.exists()  # the other environment's replica is warm, and keeps its device
        stopped.terminate()
        host.wait(third_mark.exists, description="the waiting task")
        for mark in (first_mark, third_mark):
            mark.unlink()
        assert (first.get(timeout=30), third.get(timeout=30)) == ("0", "1")
        assert host.status("vision")["obstacle"] is None
        explained = host.celery("env", "explain", "vision").stdout
        assert "blocked" in explained
        assert "no free device for another replica" in explained

    def test_the_variable_is_set_before_any_import(self, host: Project) -> None:
        """The application's own modules read it."""
        host.start("vision", "--devices", "T4:1,L4:1")
        found = host.call("vision.look")
        assert found["at_import"] == "1"
        assert found["variables"] == {"CUDA_VISIBLE_DEVICES": "1"}

    def test_a_replica_may_need_several(self, host: Project) -> None:
        """And one that cannot have them all has none: three are enough for one pair."""
        host.start("pair", "--devices", "L4:3", env=QUICK)
        assert host.call("pair.look")["at_import"] == "0,1"
        assert host.status("pair")["room"] == 1

    def test_shares_and_partitions(self, host: Project) -> None:
        """A time-sliced T4 serves several replicas, a MIG instance one; bounds are what the host has."""
        for name in ("sliced", "parts"):
            host.start(name, "--devices", "T4:2x2,A100/1g.5gb:2,A100:1")
        host.wait_for_replicas("sliced", 3)
        given = [each["devices"] for each in host.replicas("sliced")]
        assert given == [["T4 0#0"], ["T4 1#0"], ["T4 0#1"]]
        assert host.status("sliced")["room"] == 4
        assert host.call("parts.look")["at_import"] == "2"
        assert host.replicas("parts")[0]["devices"] == ["A100/1g.5gb 2"]

    def test_other_vendors_have_variables_of_their_own(self, host: Project) -> None:
        """By a setting this time."""
        host.start("amd", env={"FLYTE_CELERY_DEVICES": "MI250:1,MI300X:1"})
        found = host.call("amd.look")["variables"]
        assert found == {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}


class TestDeath:
    """A device is free when the processes that had it are gone, and not before."""

    def test_of_a_replica_that_leaves_a_child(self, host: Project) -> None:
        """The child could still use the device: it ends with its replica, also in a session of its own."""
        host.start("vision", "--devices", "L4:1", env=QUICK)
        mark = host.folder / "child"
        lost = host.send("vision.leave_a_child", str(mark))
        assert "WorkerLostError" in repr(lost.get(timeout=30, propagate=False))
        assert host.call("vision.look")["at_import"] == "0"
        child = int(mark.read_text())
        host.wait(lambda: not processes.alive(child), description="the end of the child")

    def test_of_a_worker_that_was_stopped(self, host: Project) -> None:
        """When it wakes up it does not say that it has the device, which another one has meanwhile."""
        stopped = host.start("vision", "--devices", "L4:1", env=QUICK)
        assert host.call("vision.look")["at_import"] == "0"
        os.kill(stopped.pid, signal.SIGSTOP)
        host.start("other", "--devices", "L4:1", env=QUICK)
        result, mark = begin(host, "other", "running")
        with redis.Redis.from_url(host.url) as client, client.monitor() as monitor:
            os.kill(stopped.pid, signal.SIGCONT)
            publishes = f"HSET {names.offers_key()} vision@"
            said = next(each["command"] for each in monitor.listen() if each["command"].startswith(publishes))
        assert '"held": {}' in said
        mark.unlink()
        assert result.get(timeout=30) == "0"

    def test_of_a_worker_that_is_killed(self, host: Project) -> None:
        """Its replicas die with it, and another environment's worker gets their devices."""
        killed = host.start("vision", "--devices", "L4:1", env=QUICK)
        host.start("other", "--devices", "L4:1", env=QUICK)
        before = host.call("vision.look")["pid"]
        waiting = host.send("other.look")
        host.wait(lambda: host.status("other")["obstacle"], description="an obstacle")
        killed.kill()
        found = waiting.get(timeout=30)
        assert found["at_import"] == "0"
        assert not processes.alive(before)

    def test_of_a_program_whose_worker_launcher_and_replica_are_killed(self, host: Project) -> None:
        """Nobody is left to end it, and its lock is free: who gets the device ends it first."""
        killed, mark = host.start("vision", "--devices", "L4:1", env=QUICK), host.folder / "mark"
        result = host.send("vision.start_an_engine", str(mark))
        host.wait(mark.exists, description="the program")
        engine, replica, launcher = map(int, mark.read_text().split())
        for pid in (killed.pid, launcher, replica):  # the last of them may have seen the end of the others
            processes.kill(pid)
        host.wait(lambda: not processes.alive(replica), description="the end of its replica")
        assert processes.alive(engine)
        other = host.start("other", "--devices", "L4:1", env=QUICK)
        assert host.call("other.look")["at_import"] == "0"
        assert not processes.alive(engine)
        assert f"process {engine}, killed now" in other.log()
        result.revoke()

    def test_of_a_program_whose_replica_is_killed(self, host: Project) -> None:
        """The launcher has the lock, too, until it has ended what the replica has started."""
        worker, mark = host.start("vision", "--devices", "L4:1", env=QUICK), host.folder / "mark"
        host.send("vision.start_an_engine", str(mark))
        host.wait(mark.exists, description="the program")
        engine, replica, _ = map(int, mark.read_text().split())
        os.kill(replica, signal.SIGKILL)
        assert host.call("vision.look")["at_import"] == "0"
        assert not processes.alive(engine)
        assert "what a replica has left" not in worker.log()


class TestBroken:
    """A device that errors is named and given to nobody."""

    def test_a_start_up_hook_that_cannot_use_it(self, host: Project) -> None:
        """The next replica gets another one, and so does the next worker."""
        worker = host.start("faulty", "--devices", "L4:2", env={**QUICK, "FLYTE_CELERY_START_BACKOFF": "0.1"})
        host.wait_for_replicas("faulty", 1)
        status = host.status("faulty")
        assert status["broken"]["L4 0"].startswith("uncorrectable ECC error; it is tried again at ")
        assert status["replicas"][0]["devices"] == ["L4 1"]
        worker.wait_for_log("is broken (uncorrectable ECC error): no replica on this host is given it for 600 s, or ")
        assert "broken    L4 0: uncorrectable ECC error" in host.celery("env", "status", "faulty").stdout
        host.start("vision", "--devices", "L4:2", env=QUICK)
        waiting = host.send("vision.look")
        host.wait(lambda: host.status("vision")["obstacle"], description="an obstacle")
        assert "L4 0 is broken (uncorrectable ECC error; " in host.status("vision")["obstacle"]
        (host.folder / "device-locks" / "GPU-0.suspect").unlink()
        assert waiting.get(timeout=30)["at_import"] == "0"

    def test_a_task_that_cannot_use_it(self, host: Project) -> None:
        """Its replica is let go; a program's own error changes nothing."""
        host.start("vision", "--devices", "L4:2", env=QUICK)
        before = host.call("vision.look")["pid"]
        host.send("vision.fail", "CUDA error: device-side assert triggered").get(timeout=30, propagate=False)
        host.send("vision.fail", "no answer to 'CUDA error: GPU is lost'").get(timeout=30, propagate=False)
        assert host.call("vision.look")["pid"] == before
        host.send("vision.fail", "CUDA error: uncorrectable ECC error").get(timeout=30, propagate=False)
        host.wait(lambda: not processes.alive(before), description="the end of the replica")
        assert host.call("vision.look")["at_import"] == "1"
        assert host.status("vision")["broken"]["L4 0"].startswith("uncorrectable ECC error; it is tried again at ")


class TestHosts:
    """A worker runs where its environment can be served; who waits for such a place is told."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (
                ["vision", "--devices", "T4:1"],
                "cannot serve the environment 'vision': it needs 1 x L4 (the host has T4:1)",
            ),
            (["west", "--labels", "zone=east"], "it needs the label zone=west (the host has zone=east)"),
            (["big", "--labels", "memory=1Ti"], "it needs 4Ti of memory (the host has 1Ti;"),
            (["vision", "--devices", "L4"], "devices='L4': 'L4' is no item of an inventory. Write NAME:COUNT"),
            (["west", "--labels", "zone"], "labels='zone': 'zone' is no label. Write NAME=VALUE"),
        ],
    )
    def test_a_worker_refuses_what_its_host_cannot_serve(self, host: Project, arguments: list[str], words: str) -> None:
        """At its start, and says what is missing."""
        refused = host.celery("env", "worker", *arguments)
        assert refused.returncode == 1
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr

    def test_env_up_starts_what_the_host_can_serve(self, host: Project) -> None:
        """And says why it leaves out the others."""
        up = host.start(
            "--no-flower", "--devices", "L4:1", "--labels", "zone=west", command="env up", env=QUICK, ready=False
        )
        names = ("faulty", "other", "plain", "vision", "west")
        host.wait(lambda: up.log().count(" ready.") == len(names), 60, "all workers")
        assert f"Environments {', '.join(names)}" in up.log()
        assert "pair: not served here, it needs 2 x L4 (the host has L4:1)" in up.log()
        assert "big: not served here, it needs 4Ti of memory" in up.log()
        up.terminate()
        assert up.wait() == 0

    def test_status_says_why_nobody_serves_an_environment(self, host: Project) -> None:
        """Tasks wait in its queue until a worker comes that can; when all are gone nobody offers anything."""
        worker = host.start("plain", "--devices", "L4:1", env=QUICK)
        waiting = host.send("west.look")
        found = unserved(host)
        assert found["west"]["reason"] == "needs the label zone=west, no worker offers one"
        assert found["west"]["ready"] == 1
        assert found["big"]["reason"] == "needs 4Ti of memory, no worker offers one"
        assert found["pair"]["reason"] == "needs 2 x L4, no worker offers one"
        assert "could serve it: start `env worker vision` there" in found["vision"]["reason"]
        shown = host.celery("env", "status", "west").stdout
        assert "waits     needs the label zone=west, no worker offers one" in shown
        host.start("west", "--labels", "zone=west", env=QUICK)
        assert waiting.get(timeout=30)["at_import"] is None
        worker.destroy()
        host.workers[-1].terminate()
        host.workers[-1].wait()
        host.wait(
            lambda: unserved(host)["vision"]["reason"] == "needs 1 x L4, no worker offers one",
            description="the end of the dead worker's offer",
        )
