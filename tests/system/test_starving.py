"""A parent that keeps the last device and waits for a child that needs one: the child fails, where that is certain."""

from __future__ import annotations

import pytest
import redis
from celery.exceptions import TimeoutError as CeleryTimeoutError

from flyte_celery.errors import StarvationError
from flyte_celery.fleet.scripts import script
from tests.helpers.projects import PATIENCE, Project

APP = """
    import asyncio, pathlib, time
    import flyte_celery as flyte

    app = flyte.init()
    gpu = flyte.Resources(gpu="L4:1")
    warm = flyte.ReusePolicy(replicas=(0, 4), idle_ttl=1800)
    vision = flyte.TaskEnvironment("vision", resources=gpu, reusable=warm)
    other = flyte.TaskEnvironment("other", resources=gpu, reusable=warm)
    single = flyte.TaskEnvironment("single", resources=gpu)
    plain = flyte.TaskEnvironment("plain", reusable=warm)

    async def look() -> str:
        return "done"

    async def hold(mark: str) -> str:
        pathlib.Path(mark).touch()
        while pathlib.Path(mark).exists():
            await asyncio.sleep(0.01)
        return "held"

    for env in (vision, other, single):
        env.task(look)
        env.task(hold)

    async def outcome(call: object) -> str:
        try:
            return await call
        except flyte.errors.StarvationError as exc:
            return f"starved: {exc}"

    @vision.task
    async def off() -> str:
        return await outcome(vision.tasks["vision.look"].override(reusable="off")())

    @vision.task
    async def to_other() -> str:
        return await outcome(other.tasks["other.look"]())

    @plain.task
    async def between() -> str:
        return await other.tasks["other.look"]()

    @vision.task
    async def by_another() -> str:
        return await outcome(between())

    @vision.task
    async def some() -> list[str]:
        return [*await asyncio.gather(*(outcome(other.tasks["other.look"]()) for _ in range(3)))]

    @single.task
    async def again(levels: int) -> str:
        return await again(levels - 1) if levels else "down"

    @vision.task
    async def leaves(mark: str) -> str:
        return vision.tasks["vision.look"].override(reusable="off").delay().id

    @vision.task
    def with_time_out() -> str:
        try:
            return other.tasks["other.look"].delay().get(timeout=8)
        except Exception as exc:
            return type(exc).__name__
"""

QUICK = {"FLYTE_CELERY_AUTOSCALE_INTERVAL": "0.2"}

#: Seconds for what takes about six.
LONG = 3 * PATIENCE


@pytest.fixture
def host(alone: Project) -> Project:
    """A host for one test."""
    alone.write(APP)
    return alone


def serve(host: Project, *environments: str, devices: str = "L4:1") -> None:
    """Start workers that share this host's devices."""
    for environment in environments:
        host.start(environment, "--devices", devices, "--scaledown-ttl", "0.5", env=QUICK)


def test_a_child_that_needs_the_device_of_its_parent_is_told(host: Project) -> None:
    serve(host, "vision")
    said = host.send("vision.off").get(timeout=LONG)
    assert said.startswith("starved: vision.off[")
    assert "needs 1 x L4, and no worker of 'vision' has that but for what the replica of vision.off[" in said
    assert host.send("vision.look").get(timeout=LONG) == "done"


def test_so_is_one_of_another_environment_and_all_of_several(host: Project) -> None:
    serve(host, "vision", "other")
    assert "no worker of 'other' has that" in host.send("vision.to_other").get(timeout=LONG)
    assert all(each.startswith("starved") for each in host.send("vision.some").get(timeout=LONG))


def test_so_is_a_grandchild(host: Project) -> None:
    """The task between them needs no device, and waits as well; its failure tells its own parent."""
    serve(host, "vision", "other", "plain")
    said = host.send("vision.by_another").get(timeout=LONG)
    assert said.startswith("starved: vision.by_another[")
    assert " > plain.between[" in said


def test_each_process_of_an_environment_without_reuse_has_its_own(host: Project) -> None:
    """Three devices are enough for two levels of parents, and not for three."""
    serve(host, "single", devices="L4:3")
    assert host.send("single.again", 2).get(timeout=LONG) == "down"
    with pytest.raises(StarvationError, match=r"keeps, which waits for it"):
        host.send("single.again", 3).get(timeout=LONG)


def test_a_device_that_somebody_else_has_is_waited_for(host: Project) -> None:
    """There are two; a stranger has the second one for a while."""
    serve(host, "vision", "other", devices="L4:2")
    mark = host.folder / "held"
    held = host.send("other.hold", str(mark))
    host.wait(mark.exists, LONG, "the stranger")
    parent = host.send("vision.off")
    host.wait(lambda: host.status("vision")["elsewhere"], LONG, "the child that waits")
    with pytest.raises(CeleryTimeoutError):
        parent.get(timeout=8)
    mark.unlink()
    assert held.get(timeout=LONG) == "held"
    assert parent.get(timeout=LONG) == "done"


def test_where_nobody_waits_with_a_device_no_message_is_read(host: Project, redis_url: str) -> None:
    """A worker whose devices others have looks once a second, and messages may be large."""
    serve(host, "vision", "single")
    mark = host.folder / "held"
    held = host.send("vision.hold", str(mark))
    host.wait(mark.exists, LONG, "the one that has the device")
    waiting = [host.send("single.look") for _ in range(3)]
    looks = 0
    with redis.Redis.from_url(redis_url) as client, client.monitor() as monitor:
        database = client.get_connection_kwargs()["db"]
        while looks < 3:
            seen = monitor.next_command()
            if seen["db"] == database and seen["client_type"] != "lua":
                assert not seen["command"].startswith("LRANGE single ")
                looks += script("offers").sha in seen["command"]
    mark.unlink()
    assert held.get(timeout=LONG) == "held"
    assert [result.get(timeout=LONG) for result in waiting] == ["done"] * 3


def test_a_parent_that_does_not_wait_is_no_parent(host: Project) -> None:
    serve(host, "vision")
    child = host.send("vision.leaves", "x").get(timeout=LONG)
    assert host.celery_app.AsyncResult(child).get(timeout=LONG) == "done"


def test_a_wait_with_a_time_out_ends_by_itself(host: Project) -> None:
    serve(host, "vision", "other")
    assert host.send("vision.with_time_out").get(timeout=LONG) == "TimeoutError"
