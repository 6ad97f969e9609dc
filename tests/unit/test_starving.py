"""Which calls are certain to wait for ever: `fleet.starving` on hosts that exist on paper alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from flyte_celery.fleet.starving import Call, never_ending, starved_by
from flyte_celery.gpu.declare import declared
from flyte_celery.gpu.host import Host, lacking
from flyte_celery.resources import Resources


def runs_on(resources: Resources, host: Host) -> bool:
    return not lacking(resources, host)


def call(*ancestors: str, gpu: str = "L4:1", need: str | None = None, task_id: str = "child") -> Call:
    chain = tuple(f"env.task[{each}]" for each in ancestors)
    return Call(task_id, chain, "env", partial(runs_on, Resources(gpu=gpu)), need)  # type: ignore[arg-type]


def offer(devices: str, host: str = "a", environment: str = "env", **waits: tuple[str, str | None]) -> dict[str, Any]:
    """What a worker tells; `waits` has for each task that waits its device, and what its replica serves."""
    told = {task: {"devices": [f"GPU {device}"], "serves": serves} for task, (device, serves) in waits.items()}
    published = Host({"host": host}, tuple(declared(devices, []))).as_dict()
    return {**published, "worker": f"{environment}@{host}", "environment": environment, "waits": told}


@pytest.mark.parametrize(
    ("offers", "starved"),
    [
        ([offer("L4:1", parent=("0", None))], ["parent"]),
        ([offer("L4:1", environment="other", parent=("0", None)), offer("L4:1")], ["parent"]),
        ([offer("L4:2", parent=("0", None))], []),
        ([offer("L4:2", parent=("0", None), stranger=("1", None))], []),
        ([offer("L4:1", stranger=("0", None))], []),
        ([offer("L4:1", parent=("0", None)), offer("L4:1", host="b")], []),
        ([offer("L4:1", parent=("0", None)), offer("T4:1", host="b")], ["parent"]),
        ([offer("L4:1", parent=("0", None)), offer("L4:1", host="b", environment="other")], ["parent"]),
        ([offer("L4:1", parent=("0", "need"))], []),
        ([offer("T4:1", parent=("0", None))], []),
        ([{"environment": "env"}, offer("L4:1", parent=("0", None))], ["parent"]),
        ([], []),
    ],
)
def test_only_the_devices_of_ancestors_count(offers: list[dict[str, Any]], starved: list[str]) -> None:
    assert starved_by(call("root", "parent", need="need"), offers) == starved


def test_two_ancestors_may_have_what_it_needs() -> None:
    there = [offer("L4:2", root=("0", None), parent=("1", None))]
    assert starved_by(call("root", "parent"), there) == ["root", "parent"]
    assert starved_by(call("root", "parent", gpu="L4:2"), [offer("L4:2", parent=("1", None))]) == ["parent"]


def ending(awaited: dict[str, list[str]], *calls: Call, holders: list[str]) -> set[str]:
    return never_ending({each.task_id: each for each in calls}, {each.task_id: holders for each in calls}, awaited)


def test_every_task_between_must_wait_for_nothing_else() -> None:
    child = call("root", "holder", "between")
    waits = {"holder": ["between"], "between": ["child"]}
    assert ending(waits, child, holders=["holder"]) == {"child"}
    assert ending({"holder": ["between"]}, child, holders=["holder"]) == set()
    assert ending({**waits, "holder": ["between", "x"]}, child, holders=["holder"]) == set()
    assert ending({**waits, "between": ["x"]}, child, holders=["holder"]) == set()
    assert ending(waits, child, holders=["root", "holder"]) == set()


def test_siblings_are_starved_together_or_not_at_all() -> None:
    one, two = (call("holder", task_id=name) for name in ("one", "two"))
    assert ending({"holder": ["one", "two"]}, one, two, holders=["holder"]) == {"one", "two"}
    assert ending({"holder": ["one", "two", "three"]}, one, two, holders=["holder"]) == set()
