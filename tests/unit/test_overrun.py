"""A body that ran over a limit fails with the limit's error, whatever it did itself."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterator

import pytest

from flyte_celery import overrun
from flyte_celery.errors import DeadlineExceededError, MaxRuntimeExceededError

over = MaxRuntimeExceededError("too long")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Leave no note behind."""
    yield
    overrun.forget("t")


class Ended(BaseException):
    """What ends a task from outside."""


def test_a_body_in_time_is_left_alone() -> None:
    with overrun.watched("t"):
        assert overrun.in_body("t")
    assert not overrun.in_body("t")
    with pytest.raises(KeyError), overrun.watched("t"):
        raise KeyError("its own")


@pytest.mark.parametrize("raised", [None, ValueError("x"), CancelledError(), SystemExit(1)], ids=repr)
def test_the_limit_counts_whatever_the_body_did(raised: BaseException | None) -> None:
    with pytest.raises(MaxRuntimeExceededError) as caught, overrun.watched("t"):
        assert overrun.note("t", over)
        if raised is not None:
            raise raised
    assert caught.value.__context__ is raised


def test_the_first_limit_counts() -> None:
    with pytest.raises(MaxRuntimeExceededError), overrun.watched("t"):
        overrun.note("t", over)
        overrun.note("t", DeadlineExceededError("later"))


def test_a_body_that_has_not_begun_does_not() -> None:
    assert not overrun.note("t", over)
    with pytest.raises(MaxRuntimeExceededError), overrun.watched("t"):
        pytest.fail("the body ran")


def test_a_settled_outcome_passes() -> None:
    for raised in (LookupError("published again"), Ended()):
        with pytest.raises(type(raised)), overrun.watched("t", passing=(LookupError,)):
            overrun.note("t", over)
            raise raised


def test_an_ended_task_is_forgotten() -> None:
    overrun.note("t", over)
    overrun.forget("t")
    with overrun.watched("t"):
        pass
