"""Tasks that run in this process: their failures as callers in a local run see them, and what is no task."""

from __future__ import annotations

import re
from typing import Any

import pytest

import flyte_celery as flyte
from flyte_celery.errors import RuntimeUserError

env = flyte.TaskEnvironment("run-here")


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise AttributeError("no message")


@env.task
def fails() -> None:
    raise ValueError("bad")


@env.task
async def fails_async() -> None:
    raise ValueError("bad")


@env.task
def unreadable() -> None:
    raise UnreadableError


@env.task
def calls_fails() -> None:
    fails()


@env.task
async def awaits_fails() -> None:
    await fails.aio()


@env.task
async def awaits_fails_async() -> None:
    await fails_async()


@env.task
async def awaits_two_levels() -> None:
    await awaits_fails_async()


def failure_of(task: Any) -> RuntimeUserError:
    """What a run of a task here raises."""
    with pytest.raises(RuntimeUserError) as caught:
        flyte.with_runcontext(mode="local").run(task)
    return caught.value


@pytest.mark.parametrize(
    "task", [fails, fails_async, calls_fails, awaits_fails, awaits_fails_async, awaits_two_levels], ids=str
)
def test_a_failure_keeps_its_cause_through_all_callers(task: Any) -> None:
    failure = failure_of(task)
    assert (failure.code, str(failure)) == ("ValueError", "bad")
    assert type(failure.__cause__) is ValueError


@pytest.mark.parametrize("what", [None, fails.func, "fails"])
def test_what_is_no_task_is_shown(what: Any) -> None:
    for call in (flyte.run, flyte.map_task):
        with pytest.raises(TypeError, match=rf"got {re.escape(repr(what))}, which is no task: pass a function that"):
            call(what)


def test_a_message_that_cannot_be_read_is_no_other_failure() -> None:
    failure = failure_of(unreadable)
    assert isinstance(failure, UnreadableError) and failure.code == "UnreadableError"
    assert type(failure.__cause__) is UnreadableError

    with pytest.raises(UnreadableError) as caught:
        unreadable()
    assert isinstance(caught.value, RuntimeUserError) and caught.value.code == "UnreadableError"
