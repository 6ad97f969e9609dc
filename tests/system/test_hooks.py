"""Start-up and shutdown hooks in real replicas, and what happens when they raise or hang."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from flyte_celery.errors import RuntimeSystemError
from tests.helpers.projects import PATIENCE, Project

SOURCE = """
    import asyncio
    import os
    import time
    from pathlib import Path

    import redis.asyncio

    import flyte_celery as flyte

    app = flyte.init()
    here = Path(__file__).parent

    warm = flyte.TaskEnvironment("warm", reusable=flyte.ReusePolicy(replicas=(0, 2), concurrency=1, idle_ttl=30))
    opened = {}


    def note(what):
        with open(here / "warm.txt", "a") as file:
            file.write(f"{what} {os.getpid()}\\n")


    @warm.on_startup
    def load_model() -> None:
        note("sync-startup")
        opened["model"] = object()


    @warm.on_startup
    async def connect() -> None:
        while not (here / "gate").exists():
            await asyncio.sleep(0.01)
        opened["loop"] = asyncio.get_running_loop()
        opened["lock"] = asyncio.Lock()
        opened["client"] = redis.asyncio.Redis.from_url(os.environ["FLYTE_CELERY_BROKER_URL"])
        await opened["client"].ping()
        opened["done"] = time.time()
        note("async-startup")


    @warm.on_shutdown
    async def disconnect() -> None:
        await opened["client"].aclose()
        note("async-shutdown")


    @warm.on_shutdown
    def unload_model() -> None:
        note("sync-shutdown")


    @warm.task
    async def use(key: str) -> dict[str, str | float | bool]:
        began = time.time()
        async with opened["lock"]:
            await opened["client"].set(key, os.getpid(), ex=60)
            kept = await opened["client"].get(key)
        return {
            "waited": began >= opened["done"],
            "same_loop": opened["loop"] is asyncio.get_running_loop(),
            "kept": int(kept) == os.getpid(),
            "model": id(opened["model"]),
            "pid": os.getpid(),
        }


    @warm.task
    def use_here() -> bool:
        return "model" in opened and opened["client"] is not None


    fragile = flyte.TaskEnvironment("fragile", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600))


    @fragile.on_startup
    async def download() -> None:
        with open(here / "tries.txt", "a") as file:
            file.write(f"{time.time()}\\n")
        if not (here / "weights.bin").exists():
            raise FileNotFoundError("weights.bin is missing")


    @fragile.task
    async def predict(x: int) -> int:
        return x


    endless = flyte.TaskEnvironment("endless", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600))


    @endless.on_startup(timeout=0.3)
    async def wait_for_ever() -> None:
        await asyncio.sleep(3600)


    blocking = flyte.TaskEnvironment("blocking", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600))


    @blocking.on_startup(timeout=0.3)
    def block_for_ever() -> None:
        time.sleep(3600)


    @endless.task
    async def never(x: int) -> int:
        return x


    @blocking.task
    def never_either(x: int) -> int:
        return x
"""

#: Quick to fail, quick to try again.
FAST = {
    "FLYTE_CELERY_START_BACKOFF": "0.1",
    "FLYTE_CELERY_START_BACKOFF_CAP": "0.4",
    "FLYTE_CELERY_AUTOSCALE_INTERVAL": "0.1",
}


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    shared.write(SOURCE)
    return shared


@pytest.fixture(scope="module")
def warm(project: Project) -> Project:
    """A worker of the environment whose hooks work, once the file `gate` is there."""
    project.start("warm", "--idle-ttl", "2", "--scaledown-ttl", "60")
    return project


@pytest.fixture(scope="module")
def fragile(project: Project) -> Project:
    """A worker of the environment whose hook raises, until the file `weights.bin` is there."""
    project.start("fragile", env=FAST)
    return project


def lines(folder: Path, name: str) -> list[list[str]]:
    path = folder / name
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_a_replica_takes_no_task_before_its_startup_ended(warm: Project) -> None:
    results = [warm.send("warm.use", f"early-{index}") for index in range(4)]
    warm.wait(lambda: len(lines(warm.folder, "warm.txt")) == 2, description="two sync hooks that ran")
    status = warm.status("warm")
    assert [each["state"] for each in status["replicas"]] == ["starting", "starting"]
    assert (status["running"], status["ready"] + status["waiting"]) == (0, 4)
    (warm.folder / "gate").touch()
    assert all(result.get(timeout=PATIENCE)["waited"] for result in results)


def test_what_a_hook_opened_on_the_loop_is_good_for_every_task(warm: Project) -> None:
    """Connections and locks belong to an event loop; a replica has one for life. Sync tasks see the same objects."""
    used = [warm.call("warm.use", f"key-{index}") for index in range(5)]
    assert all(each["same_loop"] and each["kept"] for each in used)
    assert len({(each["pid"], each["model"]) for each in used}) == len({each["pid"] for each in used})
    assert warm.call("warm.use_here") is True
    assert warm.call("warm.use", "after-a-sync-task")["same_loop"]


def test_hooks_run_once_per_replica_in_the_order_of_their_definition(warm: Project) -> None:
    warm.wait_for_replicas("warm", 0)
    by_pid: dict[str, list[str]] = {}
    for what, pid in lines(warm.folder, "warm.txt"):
        by_pid.setdefault(pid, []).append(what)
    # Counted, since a replica that was asked for while another one sufficed may have been let go again.
    complete = ("sync-startup", "async-startup", "async-shutdown", "sync-shutdown")
    assert Counter(map(tuple, by_pid.values())) == {complete: 2}


class TestAHookThatRaises:
    """Three attempts, then the environment is failed and says why, until an attempt succeeds."""

    def expect_failure(self, project: Project, **options: float) -> None:
        with pytest.raises(RuntimeSystemError) as caught:
            project.send("fragile.predict", 1).get(timeout=PATIENCE)
        assert caught.value.code == "EnvironmentFailed"
        assert "weights.bin is missing" in str(caught.value)

    def test_fails_waiting_callers_with_the_reason(self, fragile: Project) -> None:
        self.expect_failure(fragile)
        assert len(lines(fragile.folder, "tries.txt")) >= 3

    def test_fails_new_callers_soon(self, fragile: Project) -> None:
        began = time.monotonic()
        for _ in range(3):
            self.expect_failure(fragile)
        assert time.monotonic() - began < 10

    def test_says_why_in_the_status_and_the_log(self, fragile: Project) -> None:
        assert fragile.status("fragile")["failure"] == "FileNotFoundError: weights.bin is missing"
        log = fragile.workers[-1].log()
        assert 'raise FileNotFoundError("weights.bin is missing")' in log, "the traceback, for who repairs it"
        assert "ERROR/fragile-1] fragile: replica 1: start-up failed" in log, "the replica itself says it"

    def test_backs_off_between_attempts(self, fragile: Project) -> None:
        fragile.wait(lambda: len(lines(fragile.folder, "tries.txt")) > 4, description="five attempts")
        times = [float(at) for (at,) in lines(fragile.folder, "tries.txt")]
        pauses = [later - sooner for sooner, later in pairwise(times[:4])]
        assert all(pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True)), pauses

    def test_is_forgotten_when_the_cause_is_gone(self, fragile: Project) -> None:
        (fragile.folder / "weights.bin").touch()
        fragile.wait_for_replicas("fragile", 1)
        assert fragile.call("fragile.predict", 7) == 7
        assert fragile.status("fragile")["failure"] is None


@pytest.mark.parametrize(
    ("task", "hook"), [("endless.never", "wait_for_ever"), ("blocking.never_either", "block_for_ever")]
)
def test_a_hook_that_hangs_ends_after_its_own_timeout(project: Project, task: str, hook: str) -> None:
    worker = project.start(task.partition(".")[0], env=FAST)
    with pytest.raises(RuntimeSystemError, match=f"the hook '{hook}' did not finish within 0.3 s") as caught:
        project.send(task, 1).get(timeout=PATIENCE)
    assert caught.value.code == "EnvironmentFailed"
    starts = [line for line in worker.log().splitlines() if "did not start" in line]
    assert ["(1 in a row)" in starts[0], "(3 in a row)" in starts[2]] == [True, True]
    worker.terminate()
    assert worker.wait() == 0
