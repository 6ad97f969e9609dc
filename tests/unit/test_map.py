"""`flyte.map` where there is no broker: it runs here, one call after the other, as Flyte does without a client."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

import flyte_celery as flyte
from flyte_celery.errors import RuntimeUserError
from flyte_celery.task import set_dispatcher

env = flyte.TaskEnvironment("mapped-here")


@env.task
def increment(x: int) -> int:
    return x + 1


@env.task
async def increment_async(x: int) -> int:
    return x + 1


@env.task
def pair(x: int, y: int) -> tuple[int, int]:
    return x, y


@env.task
def invert(x: int) -> float:
    return 1 / x


@pytest.fixture(autouse=True)
def no_broker(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No app, and no bundled Redis that runs."""
    for name in ("FLYTE_CELERY_BROKER_URL", "CELERY_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLYTE_CELERY_HOME", str(tmp_path))
    set_dispatcher(None)
    yield
    set_dispatcher(None)


@pytest.mark.parametrize("task", [increment, increment_async])
def test_results_come_in_order(task: Any) -> None:
    assert list(flyte.map(task, [9, 1, 5, 3])) == [10, 2, 6, 4]
    assert list(flyte.map(pair, [1, 2, 3], [4])) == [(1, 4)]


def test_it_is_lazy_and_may_be_endless() -> None:
    taken: list[int] = []
    values = flyte.map(increment, (taken.append(n) or n for n in itertools.count()))  # type: ignore[func-returns-value]
    assert not taken
    assert list(itertools.islice(values, 3)) == [1, 2, 3]
    assert taken == [0, 1, 2]


def test_failures_are_raw_outside_a_run_and_flytes_inside() -> None:
    first, second = flyte.map(invert, [0, 2])
    assert type(first) is ZeroDivisionError and second == 0.5
    with pytest.raises(ZeroDivisionError) as caught:
        list(flyte.map(invert, [0], return_exceptions=False))
    assert not isinstance(caught.value, RuntimeUserError)

    @env.task
    def parent() -> list[str]:
        return [f"{type(each).__name__} {each.code}" for each in flyte.map(invert, [0])]

    run = flyte.with_runcontext(mode="local").run(parent)
    assert run.outputs().o0 == ["ZeroDivisionError ZeroDivisionError"]


def test_partials() -> None:
    assert list(flyte.map(functools.partial(pair, y=1), [2])) == [(2, 1)]
    assert list(flyte.map(functools.partial(pair, 1), [2])) == [(1, 2)]
    for partial in (functools.partial(pair, 1, 2), functools.partial(pair), functools.partial(pair, x=1)):
        with pytest.raises(TypeError, match="partial"):
            list(flyte.map(partial, [1]))


def test_what_is_no_task_and_what_cannot_be_iterated() -> None:
    with pytest.raises(AttributeError, match="is no task"):
        list(flyte.map(len, ["a"]))
    with pytest.raises(TypeError, match="not iterable"):
        list(flyte.map(increment, 1))  # type: ignore[arg-type]


def test_coroutines_iterate_and_do_not_await() -> None:
    async def collected() -> list[Any]:
        return [value async for value in flyte.map.aio(increment, range(3))]

    assert asyncio.run(collected()) == [1, 2, 3]

    async def awaited() -> None:
        await flyte.map.aio(increment, [1])  # type: ignore[misc]

    with pytest.raises(TypeError):
        asyncio.run(awaited())


def test_map_task_takes_its_inputs_by_name() -> None:
    assert list(flyte.map_task(pair)(y=[1], x=[2])) == [(2, 1)]

    async def awaited() -> list[Any]:
        return await flyte.map_task(pair)(y=[1], x=[2])

    assert asyncio.run(awaited()) == [(2, 1)]
    with pytest.raises(TypeError, match="takes an iterable for each of x, y; got none"):
        flyte.map_task(pair)()
    with pytest.raises(TypeError, match=r"and y=5 is none: .* map functools\.partial\(pair, y=5\)\.$"):
        flyte.map_task(pair)(x=[1], y=5)  # type: ignore[arg-type]


def test_map_task_leaves_parameters_that_are_not_named_alone() -> None:
    @env.task
    def defaults(x: int = 1, *, y: int = 2) -> tuple[int, int]:
        return x, y

    assert list(flyte.map_task(defaults)(y=[5, 6])) == [(1, 5), (1, 6)]


@pytest.mark.parametrize("concurrency", [-1, 0.5, 2.0, "2", None])
def test_a_concurrency_that_is_none_is_refused(concurrency: Any) -> None:
    """Before the first result, and not by yielding nothing."""
    with pytest.raises(ValueError, match=r"concurrency=.* is not possible: pass an int, or 0"):
        flyte.map(increment, [1, 2], concurrency=concurrency)

    async def collect() -> list[Any]:
        return [value async for value in flyte.map.aio(increment, [1, 2], concurrency=concurrency)]

    with pytest.raises(ValueError, match=r"concurrency=.* is not possible: pass an int, or 0"):
        asyncio.run(collect())
