"""`override(reusable=..., resources=..., env_vars=...)`: which replica takes the call, beside the warm ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.result import AsyncResult

from flyte_celery.errors import OOMError, RuntimeSystemError
from flyte_celery.names import OVERRIDES_HEADER
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.waiting import wait_until

SOURCE = """
    import asyncio
    import os
    import time
    from datetime import timedelta
    from pathlib import Path

    import flyte_celery as flyte

    app = flyte.init()
    IMPORTED_BY = os.getpid()
    COLOUR = os.environ.get("COLOUR")
    SHAPE = os.environ.get("SHAPE")
    KEY = os.environ.get("KEY")
    calls = []
    if COLOUR == "green":
        raise ValueError("no green things")

    warm = flyte.TaskEnvironment(
        "warm",
        resources=flyte.Resources(memory="128Mi"),
        reusable=flyte.ReusePolicy(replicas=1, concurrency=2, idle_ttl=3600),
        env_vars={"COLOUR": "red", "SHAPE": "round"},
        secrets="other-key",
    )
    parents = flyte.TaskEnvironment("parents", reusable=flyte.ReusePolicy(replicas=1, concurrency=4, idle_ttl=3600))


    @warm.task
    async def show() -> dict[str, str | int | None]:
        calls.append(1)
        return {
            "pid": os.getpid(), "imported_by": IMPORTED_BY, "calls": len(calls), "colour": COLOUR, "shape": SHAPE,
            "threads": os.environ.get("OMP_NUM_THREADS"),
        }


    @warm.task
    async def show_other() -> str:
        if os.environ.get("OTHER_KEY") == "correct-horse":
            return "has it"
        return "has the key only" if KEY == "hunter-22" else "has neither"


    @warm.task
    async def grow(mib: int) -> int:
        return len(bytearray(mib * 2**20))


    @warm.task
    async def hold(folder: str, gate: str) -> int:
        mark = Path(folder, f"{os.getpid()}-{id(asyncio.current_task())}")
        mark.touch()
        while not os.path.exists(gate):
            await asyncio.sleep(0.01)
        mark.unlink()
        return os.getpid()


    @parents.task
    async def with_more(mib: int) -> str:
        try:
            await grow(mib)
        except flyte.errors.OOMError:
            more = grow.override(reusable="off", resources=flyte.Resources(memory="512Mi"))
            return f"{await more(mib)} at the second try"
        return "at once"


    @parents.task
    async def by_chain() -> dict[str, str | int | None]:
        blue = show.override(reusable="off", env_vars={"COLOUR": "blue"})
        from celery import chain
        result = chain(show.si(), blue.si()).apply_async()
        return await result
"""

OFF = {"reusable": "off"}
POLICY = {"replicas": [1, 1], "idle_ttl": 30, "concurrency": 2, "scaledown_ttl": 30, "scope": "global"}


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    """A warm environment, of which two ephemeral replicas may exist at once, and one that calls it."""
    shared.write(SOURCE)
    secrets = {"KEY": "hunter-22", "OTHER_KEY": "correct-horse"}
    shared.start("warm", env={"FLYTE_CELERY_MAX_EPHEMERAL": "2", **secrets})
    shared.start("parents")
    return shared


@pytest.fixture
def send(project: Project) -> Callable[..., AsyncResult]:
    """Submit a task of the warm environment with overrides, as the header has them."""

    def send(task: str, *args: Any, **overrides: Any) -> AsyncResult:
        return project.send(f"warm.{task}", *args, headers={OVERRIDES_HEADER: overrides} if overrides else {})

    return send


def test_reuse_off_gives_each_call_a_fork_of_its_own(send: Callable[..., AsyncResult]) -> None:
    """It was forked from the process that the warm replica was forked from, and has run nothing before."""
    warm = send("show").get(timeout=PATIENCE)
    first, second = (send("show", **OFF).get(timeout=PATIENCE) for _ in range(2))
    assert len({each["pid"] for each in (warm, first, second)}) == 3
    assert len({each["imported_by"] for each in (warm, first, second)}) == 1
    assert (first["calls"], second["calls"], first["colour"]) == (1, 1, "red")
    assert send("show").get(timeout=PATIENCE)["pid"] == warm["pid"], "the warm one lives on"


def test_more_memory_holds_for_the_one_call(send: Callable[..., AsyncResult]) -> None:
    with pytest.raises(OOMError, match=r"limit of 128\.0 MiB"):
        send("grow", 300).get(timeout=PATIENCE)
    more = {**OFF, "resources": {"memory": "512Mi"}}
    assert send("grow", 300, **more).get(timeout=PATIENCE) == 300 * 2**20
    with pytest.raises(OOMError, match=r"limit of 512\.0 MiB"):
        send("grow", 800, **more).get(timeout=PATIENCE)


def test_a_parent_retries_its_child_with_more_memory(project: Project) -> None:
    assert project.call("parents.with_more", 300) == f"{300 * 2**20} at the second try"


def test_other_variables_need_a_fresh_interpreter(send: Callable[..., AsyncResult]) -> None:
    """They are there when modules are imported, and replace the environment's as a whole."""
    warm = send("show").get(timeout=PATIENCE)
    blue = send("show", **OFF, env_vars={"COLOUR": "blue"}).get(timeout=PATIENCE)
    assert (blue["colour"], blue["shape"]) == ("blue", None)
    assert blue["imported_by"] == blue["pid"] != warm["pid"]
    same = send("show", **OFF, env_vars={"COLOUR": "red", "SHAPE": "round"}).get(timeout=PATIENCE)
    assert same["imported_by"] == warm["imported_by"], "the same variables need none"


def test_other_secrets_replace_the_environment_s(send: Callable[..., AsyncResult], project: Project) -> None:
    """They are there when modules are imported; what was not asked for is not there; logs have none of them."""
    assert send("show_other").get(timeout=PATIENCE) == "has it"
    assert send("show_other", **OFF, secrets=[{"key": "key"}]).get(timeout=PATIENCE) == "has the key only"
    assert "hunter-22" not in project.workers[0].log()


def test_a_secret_that_an_override_asks_for_in_vain_is_named(send: Callable[..., AsyncResult]) -> None:
    with pytest.raises(RuntimeSystemError, match="The secret 'nowhere' is missing") as caught:
        send("show", **OFF, secrets=[{"key": "nowhere"}]).get(timeout=PATIENCE)
    assert caught.value.code == "SecretMissing"


def test_cores_come_with_their_number_of_threads(send: Callable[..., AsyncResult]) -> None:
    found = send("show", **OFF, resources={"cpu": 1}).get(timeout=PATIENCE)
    assert found["threads"] == "1"
    assert send("show").get(timeout=PATIENCE)["threads"] != "1"


def test_an_override_survives_a_chain(project: Project) -> None:
    assert project.call("parents.by_chain")["colour"] == "blue"


def test_another_policy_has_a_pool_of_its_own(send: Callable[..., AsyncResult], project: Project) -> None:
    """Its calls share their warm replica, with each other alone."""
    warm = send("show").get(timeout=PATIENCE)["pid"]
    first = send("show", reusable=POLICY).get(timeout=PATIENCE)
    second = send("show", reusable=POLICY).get(timeout=PATIENCE)
    assert first["pid"] == second["pid"] != warm
    assert second["calls"] == 2
    assert [each["pid"] for each in project.replicas("warm") if each["beside"]] == [first["pid"]]


def test_ephemeral_calls_are_bounded_and_do_not_hold_the_warm_ones_up(
    send: Callable[..., AsyncResult], project: Project, tmp_path: Path
) -> None:
    """Two of ten run at once, in the order in which they came, while warm calls behind them are served."""
    gate, running = tmp_path / "gate", tmp_path / "running"
    running.mkdir()
    held = [send("hold", str(running), str(gate), **OFF) for _ in range(10)]
    wait_until(lambda: len(list(running.iterdir())) == 2, PATIENCE, "two ephemeral calls that run")
    for _ in range(5):
        assert send("show").get(timeout=PATIENCE)["pid"]
    assert len(list(running.iterdir())) == 2
    gate.touch()
    pids = [result.get(timeout=PATIENCE) for result in held]
    assert len(set(pids)) == 10
    wait_until(lambda: not any(_lives(pid) for pid in pids), PATIENCE, "the ends of ephemeral replicas")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_override_that_cannot_start_fails_its_own_calls_alone(send: Callable[..., AsyncResult]) -> None:
    """The variable makes the module raise when it is imported; the warm replicas know nothing of it."""
    with pytest.raises(RuntimeSystemError, match=r"for calls with the override .*no green things") as caught:
        send("show", **OFF, env_vars={"COLOUR": "green"}).get(timeout=3 * PATIENCE)
    assert caught.value.code == "EnvironmentFailed"
    assert send("show").get(timeout=PATIENCE)["colour"] == "red"
