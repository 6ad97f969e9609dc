"""Celery's canvas over tasks of environments: chain, group, chord, and a call by name."""

from __future__ import annotations

import dataclasses

from celery import chain, chord, group

import flyte_celery as flyte

app = flyte.init()

env = flyte.TaskEnvironment(
    name="shapes",
    reusable=flyte.ReusePolicy(replicas=(1, 2), concurrency=10, idle_ttl=300),
)


@dataclasses.dataclass
class Box:
    """A typed value; it travels as JSON."""

    width: int
    height: int


@env.task
async def double(box: Box) -> Box:
    """A box of twice the width."""
    return Box(box.width * 2, box.height)


@env.task
async def area(box: Box) -> int:
    """The area of a box."""
    return box.width * box.height


@env.task
async def total(areas: list[int]) -> int:
    """The sum of areas."""
    return sum(areas)


if __name__ == "__main__":
    box = Box(2, 3)
    print(chain(double.s(box), double.s(), area.s()).apply_async().get(timeout=30))
    print(group(area.s(box), area.s(Box(1, 1))).apply_async().get(timeout=30))
    print(chord([area.s(box), area.s(Box(1, 1))], total.s()).apply_async().get(timeout=30))
    print(app.send_task("shapes.area", [{"width": 5, "height": 5}]).get(timeout=30))
