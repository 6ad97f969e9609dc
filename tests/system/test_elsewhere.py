"""`override(resources=...)` with what not every host has: a worker that has it runs the call, whoever claimed it.

Each worker is a host of its own, with declared devices and locks of its own. No GPU is needed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from flyte_celery.errors import MaxQueuedTimeExceededError, RuntimeSystemError
from flyte_celery.names import OVERRIDES_HEADER, TIMES_HEADER
from tests.helpers import processes
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.workers import Worker

APP = """
    import os, pathlib, time, uuid
    import flyte_celery as flyte

    app = flyte.init()
    train = flyte.TaskEnvironment("train", reusable=flyte.ReusePolicy(replicas=(0, 4), idle_ttl=3600))
    vision = flyte.TaskEnvironment(
        "vision", resources=flyte.Resources(gpu="L4:1"), reusable=flyte.ReusePolicy(replicas=(1, 4), idle_ttl=3600)
    )

    def look() -> dict:
        return {"pid": os.getpid(), "host": os.environ["WHERE"], "devices": os.environ.get("CUDA_VISIBLE_DEVICES")}

    def hold(mark: str) -> dict:
        pathlib.Path(mark).touch()
        while pathlib.Path(mark).exists():
            time.sleep(0.01)
        return look()

    def note(folder: str, number: int) -> dict:
        pathlib.Path(folder, f"{number}-{uuid.uuid4().hex}").touch()
        return look()

    for env in (train, vision):
        for function in (look, hold, note):
            env.task(function)


    @train.task(timeout=flyte.Timeout(max_queued_time=2))
    def hurried() -> None: ...
"""

#: Short times: how soon a worker asks again, and how long a dead one's claims are its own.
QUICK = {"FLYTE_CELERY_AUTOSCALE_INTERVAL": "0.2", "FLYTE_CELERY_LEASE": "2"}

L4 = {"gpu": "L4:1"}
HUGE = {"memory": "4Ti"}
POLICY = {"replicas": [1, 2], "idle_ttl": 30, "concurrency": 1, "scaledown_ttl": 30, "scope": "global"}


class Hosts(Project):
    """A project whose workers are hosts of their own."""

    def host(self, name: str, *arguments: str, environment: str = "train", env: Mapping[str, str] = {}) -> Worker:
        """Start the worker of an environment on a host of this name."""
        own = {**QUICK, "WHERE": name, "FLYTE_CELERY_DEVICE_LOCKS": str(self.folder / f"locks-{name}"), **env}
        labels = ("--labels", f"host={name}") if "--labels" not in arguments else ()
        return self.start(environment, "-n", f"{environment}@{name}", *labels, *arguments, env=own)

    def status_at(self, name: str, environment: str = "train") -> dict[str, Any]:
        """What the worker on a host says about itself."""

        def answer() -> list[dict[str, Any]]:
            replies = self.celery_app.control.broadcast(
                "env_status", reply=True, timeout=2.0, limit=1, destination=[f"{environment}@{name}"]
            )
            return [value for reply in replies or () for value in reply.values()]

        return self.wait(answer, description=f"an answer of {name}")[0]

    def needing(self, task: str, *args: Any, resources: Mapping[str, Any] = L4, **options: Any) -> AsyncResult:
        """Call `task.override(reusable="off", resources=...)`."""
        headers = {OVERRIDES_HEADER: {"reusable": "off", "resources": dict(resources)}, **options.pop("headers", {})}
        return self.send(task, *args, headers=headers, **options)

    def wait_for_unmet(self, name: str, tasks: int, environment: str = "train") -> dict[str, Any]:
        """Wait until a worker knows of so many tasks with one need that wait; what it says of them."""

        def found() -> list[dict[str, Any]]:
            unmet = self.status_at(name, environment)["elsewhere"]
            return [each for each in unmet if each["tasks"] == tasks]

        return self.wait(found, description=f"{tasks} tasks that wait for another host")[0]


@pytest.fixture
def hosts(tmp_path: Path, redis_url: str) -> Iterator[Hosts]:
    """Hosts for one test."""
    hosts = Hosts(tmp_path, redis_url)
    hosts.write(APP)
    yield hosts
    hosts.close()


def begin(hosts: Hosts, result: AsyncResult, mark: Path) -> AsyncResult:
    """Wait until a task that holds its replica runs."""
    hosts.wait(mark.exists, description=f"{mark.name} to run")
    return result


def times_run(folder: Path) -> dict[int, int]:
    """How often each noted task has run."""
    counts: dict[int, int] = {}
    for each in folder.iterdir():
        number = int(each.name.partition("-")[0])
        counts[number] = counts.get(number, 0) + 1
    return counts


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where tasks note that they have run."""
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


class TestPlaces:
    """Each call ends where what it needs is."""

    def test_calls_of_all_kinds_run_where_their_devices_and_their_memory_are(self, hosts: Hosts, notes: Path) -> None:
        """Mixed with plain ones, in whatever order the workers claim them; each once."""
        hosts.host("plain", "--devices", "none")
        hosts.host("l4", "--devices", "L4:2")
        hosts.host("huge", "--devices", "T4:1", "--labels", "host=huge,memory=8Ti")
        pooled = {OVERRIDES_HEADER: {"reusable": POLICY}}
        kinds = {
            "l4": lambda n: hosts.needing("train.note", str(notes), n),
            "huge": lambda n: hosts.needing("train.note", str(notes), n, resources=HUGE),
            "t4": lambda n: hosts.needing("train.note", str(notes), n, resources={"gpu": 1, "memory": "4Ti"}),
            "pooled": lambda n: hosts.send("train.note", str(notes), n, headers=pooled),
            "plain": lambda n: hosts.send("train.note", str(notes), n),
        }
        sent = [(kind, submit(10 * n + i)) for n in range(4) for i, (kind, submit) in enumerate(kinds.items())]
        found = [(kind, result.get(timeout=6 * PATIENCE)) for kind, result in sent]
        assert {(each["host"], each["devices"] in ("0", "1")) for kind, each in found if kind == "l4"} == {("l4", True)}
        assert {each["host"] for kind, each in found if kind == "huge"} == {"huge"}
        assert {(each["host"], each["devices"]) for kind, each in found if kind == "t4"} == {("huge", "0")}
        assert {each["devices"] for kind, each in found if kind in ("plain", "pooled")} == {None}
        assert len({each["pid"] for kind, each in found if kind == "l4"}) == 4
        assert all(count == 1 for count in times_run(notes).values())

    def test_a_free_host_takes_what_a_full_one_has_no_device_for(self, hosts: Hosts) -> None:
        """The second call does not wait behind the first, and says whom it waits for while both are full."""
        hosts.host("one", "--devices", "L4:1")
        first = begin(hosts, hosts.needing("train.hold", str(mark := hosts.folder / "first")), mark)
        second = hosts.needing("train.hold", str(other := hosts.folder / "second"))
        found = hosts.wait_for_unmet("one", 1)
        assert found["needs"] == "1 x L4"
        assert "no free device for another replica: it needs 1 x L4; L4 0 is held by train@one, replica" in str(found)
        assert f"1 task needs 1 x L4: {found['reason']}" in hosts.celery("env", "status", "train").stdout
        hosts.host("two", "--devices", "L4:1")
        begin(hosts, second, other)
        mark.unlink()
        other.unlink()
        assert (first.get(timeout=PATIENCE)["host"], second.get(timeout=PATIENCE)["host"]) == ("one", "two")

    def test_calls_with_one_policy_share_a_replica_with_its_device(self, hosts: Hosts) -> None:
        """In an environment whose replicas have one each, whose devices nobody else gets."""
        hosts.host("two", "--devices", "L4:2", environment="vision")
        own = hosts.call("vision.look")
        pooled = {OVERRIDES_HEADER: {"reusable": {**POLICY, "replicas": [1, 1]}}}
        found = [hosts.send("vision.look", headers=pooled).get(timeout=PATIENCE) for _ in range(3)]
        assert len({each["pid"] for each in found}) == 1
        assert {own["devices"], found[0]["devices"]} == {"0", "1"}
        held = {each["beside"] is None: each["devices"] for each in hosts.status_at("two", "vision")["replicas"]}
        assert held == {True: [f"L4 {own['devices']}"], False: [f"L4 {found[0]['devices']}"]}
        waiting = hosts.needing("vision.look")
        assert "is held by vision@two" in hosts.wait_for_unmet("two", 1, "vision")["reason"]
        assert not waiting.ready()
        hosts.celery("env", "elsewhere", "drop", "vision", "--all")
        assert hosts.status_at("two", "vision")["elsewhere"] == []

    def test_needs_for_the_same_device_take_turns(self, hosts: Hosts, notes: Path) -> None:
        """None of them waits for the last call of the other."""
        hosts.host("one", "--devices", "L4:1")
        begin(hosts, hosts.needing("train.hold", str(mark := hosts.folder / "first")), mark)
        sent = [hosts.needing("train.note", str(notes), n) for n in range(3)]
        sent += [hosts.needing("train.note", str(notes), n, resources={**L4, "memory": "1Gi"}) for n in range(3, 6)]
        hosts.wait(lambda: len(hosts.status_at("one")["elsewhere"]) == 2, description="two needs")
        mark.unlink()
        for each in sent:
            each.get(timeout=PATIENCE)
        noted = sorted(notes.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        order = [int(path.name.partition("-")[0]) // 3 for path in noted]
        assert order not in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
        assert times_run(notes) == dict.fromkeys(range(6), 1)

    def test_a_paused_environment_takes_none(self, hosts: Hosts) -> None:
        """Neither from its queue nor of what was passed on."""
        hosts.host("plain", "--devices", "none")
        waiting = hosts.needing("train.look")
        hosts.wait_for_unmet("plain", 1)
        hosts.celery("env", "pause", "train")
        hosts.host("one", "--devices", "L4:1")
        found = hosts.wait_for_unmet("one", 1)
        assert found["reason"] == "train@one could give that, and will when there is a place"
        assert not hosts.status_at("one")["replicas"]
        hosts.celery("env", "resume", "train")
        assert waiting.get(timeout=PATIENCE)["host"] == "one"

    def test_an_override_may_take_the_device_away(self, hosts: Hosts) -> None:
        """It has no lease, and sees none of the devices that others have."""
        hosts.host("one", "--devices", "L4:1", environment="vision")
        own = hosts.call("vision.look")
        assert own["devices"] == "0"
        without = hosts.needing("vision.look", resources={"cpu": 1}).get(timeout=PATIENCE)
        assert without["devices"] == ""
        assert without["pid"] != own["pid"]


class TestNobody:
    """What no host has is waited for, and said."""

    def test_it_is_shown_until_a_worker_joins_that_has_it(self, hosts: Hosts, notes: Path) -> None:
        """In the order in which the calls came, with their priorities; plain calls go on meanwhile."""
        plain = hosts.host("plain", "--devices", "none")
        urgent_last = [hosts.needing("train.note", str(notes), n, priority=9 if n < 2 else 0) for n in range(4)]
        found = hosts.wait_for_unmet("plain", 4)
        assert found == {"needs": "1 x L4", "tasks": 4, "reason": "no worker of 'train' offers that"}
        plain.wait_for_log("train: tasks need 1 x L4, no worker of 'train' offers that: they wait until one joins.")
        shown = hosts.celery("env", "status", "train").stdout
        assert "needs     4 tasks need 1 x L4: no worker of 'train' offers that" in shown
        listed = hosts.celery("env", "elsewhere", "list", "train").stdout
        assert all(f"train  {each.id}  needs 1 x L4" in listed for each in urgent_last)
        assert hosts.call("train.look")["host"] == "plain"
        hosts.wait(lambda: not hosts.status_at("plain")["running"], description="a worker that holds none of them")
        assert plain.log().count("tasks need 1 x L4") == 1
        hosts.host("l4", "--devices", "L4:1")
        for each in urgent_last:
            assert each.get(timeout=PATIENCE)["host"] == "l4"
        noted = sorted(notes.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        assert [int(path.name.partition("-")[0]) for path in noted] == [2, 3, 0, 1]

    def test_status_shows_it_when_no_worker_is_left(self, hosts: Hosts) -> None:
        """The calls are in Redis, whoever is not there."""
        plain = hosts.host("plain", "--devices", "none")
        waiting = hosts.needing("train.look")
        hosts.wait_for_unmet("plain", 1)
        plain.terminate()
        plain.wait()
        shown = hosts.celery("env", "status", "train").stdout
        assert "1 task needs 1 x L4: no worker of 'train' offers that" in shown
        hosts.host("l4", "--devices", "L4:1")
        assert waiting.get(timeout=PATIENCE)["host"] == "l4"

    def test_its_callers_are_told_of_what_is_over(self, hosts: Hosts) -> None:
        """Revoked, expired, and waited for longer than it may: no host is needed for that."""
        hosts.host("plain", "--devices", "none")
        task_id = uuid.uuid4().hex
        now = time.time()
        times = {TIMES_HEADER: {"submitted": now, "queued": now, "until": now + 10}}
        revoked = hosts.needing("train.look", task_id=task_id)
        expired = hosts.needing("train.look", expires=10)
        limited = hosts.needing("train.hurried", headers=times)
        kept = hosts.needing("train.look")
        hosts.wait_for_unmet("plain", 4)
        revoked.revoke()
        for each in (revoked, expired):
            with pytest.raises(TaskRevokedError):
                each.get(timeout=PATIENCE)
        with pytest.raises(MaxQueuedTimeExceededError, match="waited for a replica for more than 2 s"):
            limited.get(timeout=PATIENCE)
        hosts.wait_for_unmet("plain", 1)
        assert not kept.ready()

    def test_without_claims_the_call_fails_at_once(self, hosts: Hosts) -> None:
        """There is nobody to pass it on to: the error says what is needed, and what the host has."""
        hosts.write(APP + "\n    app.conf.broker_transport_options = {'global_keyprefix': 'theirs:'}\n")
        hosts.celery_app.conf.broker_transport_options = {"global_keyprefix": "theirs:"}
        hosts.host("plain", "--devices", "T4:1")
        with pytest.raises(RuntimeSystemError, match=r"it needs 1 x L4 \(the host has T4:1\)") as caught:
            hosts.needing("train.look").get(timeout=PATIENCE)
        assert caught.value.code == "ResourcesUnavailable"
        first = begin(hosts, hosts.needing("train.hold", str(mark := hosts.folder / "a"), resources={"gpu": 1}), mark)
        second = hosts.needing("train.look", resources={"gpu": 1})
        hosts.wait(lambda: hosts.status_at("plain")["obstacle"], description="an obstacle")
        assert "T4 0 is held by train@plain" in hosts.status_at("plain")["obstacle"]
        assert hosts.call("train.look")["devices"] is None, "others do not wait behind it"
        mark.unlink()
        assert (first.get(timeout=PATIENCE)["devices"], second.get(timeout=PATIENCE)["devices"]) == ("0", "0")


class TestDeath:
    """Nothing is lost, and nothing that was not begun runs twice, whoever dies."""

    def test_of_the_worker_that_has_passed_on(self, hosts: Hosts, notes: Path) -> None:
        plain = hosts.host("plain")
        sent = [hosts.needing("train.note", str(notes), n, resources=HUGE) for n in range(10)]
        hosts.wait_for_unmet("plain", 10)
        plain.kill()
        hosts.host("l4", "--labels", "host=l4,memory=8Ti")
        assert {each.get(timeout=3 * PATIENCE)["host"] for each in sent} == {"l4"}
        assert times_run(notes) == dict.fromkeys(range(10), 1)

    def test_of_the_worker_that_passes_on_while_it_does(self, hosts: Hosts, notes: Path) -> None:
        """It is killed at some moment between the claim of the first and the last."""
        plain = hosts.host("plain")
        sent = [hosts.needing("train.note", str(notes), n, resources=HUGE) for n in range(20)]
        hosts.wait(lambda: "received" in plain.log(), description="the first claim")
        plain.kill()
        hosts.host("l4", "--labels", "host=l4,memory=8Ti")
        assert {each.get(timeout=4 * PATIENCE)["host"] for each in sent} == {"l4"}
        assert times_run(notes) == dict.fromkeys(range(20), 1)

    def test_of_the_worker_that_has_taken_over(self, hosts: Hosts, notes: Path) -> None:
        """What it ran runs again, what waited for it runs once, on the next host that has the device."""
        hosts.host("plain", "--devices", "none")
        first = hosts.host("first", "--devices", "L4:1")
        held = begin(hosts, hosts.needing("train.hold", str(mark := hosts.folder / "held")), mark)
        sent = [hosts.needing("train.note", str(notes), n) for n in range(10)]
        hosts.wait_for_unmet("first", 10)
        (replica,) = [each for each in hosts.status_at("first")["replicas"] if each["beside"]]
        first.kill()
        hosts.wait(lambda: not processes.alive(replica["pid"]), description="the end of its replica")
        mark.unlink()
        hosts.host("second", "--devices", "L4:1")
        hosts.wait(mark.exists, 3 * PATIENCE, "the held one to run again")
        mark.unlink()
        assert held.get(timeout=3 * PATIENCE)["host"] == "second"
        assert {each.get(timeout=3 * PATIENCE)["host"] for each in sent} == {"second"}
        assert times_run(notes) == dict.fromkeys(range(10), 1)

    def test_of_none_of_them_but_in_order(self, hosts: Hosts, notes: Path) -> None:
        """A worker that stops hands back what it has not begun; another one that has the device runs it."""
        hosts.host("plain")
        first = hosts.host("first", "--labels", "host=first,memory=8Ti")
        held = begin(hosts, hosts.needing("train.hold", str(mark := hosts.folder / "held"), resources=HUGE), mark)
        sent = [hosts.needing("train.note", str(notes), n, resources=HUGE) for n in range(10)]
        first.terminate()
        hosts.wait_for_unmet("plain", 10)
        mark.unlink()
        assert held.get(timeout=PATIENCE)["host"] == "first"
        hosts.host("second", "--labels", "host=second,memory=8Ti")
        assert {each.get(timeout=3 * PATIENCE)["host"] for each in sent} == {"second"}
        assert times_run(notes) == dict.fromkeys(range(10), 1)
