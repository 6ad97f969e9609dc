"""Failures of a bounded size."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

from flyte_celery.redaction import Redactor
from flyte_celery.shortening import MOST_TEXT, cut, shorten

HUGE = "x" * 3_000_000


def test_a_text_is_cut_in_the_middle() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("a" * 10 + "b" * 10, 4) == "aa\n... 16 characters left out ...\nbb"


class WithField(Exception):
    def __init__(self, message: str, detail: Any) -> None:
        super().__init__(message)
        self.detail = detail


@pytest.mark.parametrize(
    "exc",
    [
        ValueError(HUGE),
        ValueError(1, [HUGE]),
        ValueError(*[HUGE] * 3),
        ValueError(list(range(1_000_000))),
        ValueError(bytes(3_000_000)),
        WithField("small", HUGE),
        WithField("small", {"a": [HUGE]}),
        OSError(2, "No such file", HUGE),
        UnicodeDecodeError("utf-8", b"\xff" * 3_000_000, 0, 1, "bad"),
        StopIteration(HUGE),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_what_is_too_long_is_cut(exc: Exception) -> None:
    cls = type(exc)
    shorten(exc)
    assert type(exc) is cls
    assert len(pickle.dumps((exc.args, vars(exc)))) < 5 * MOST_TEXT
    assert len(str(exc)) < 5 * MOST_TEXT


def test_causes_contexts_members_and_notes_are_cut_too() -> None:
    exc = ExceptionGroup("many", [ValueError(HUGE)])
    exc.__cause__ = ValueError(HUGE)
    exc.__cause__.__context__ = ValueError(HUGE)
    exc.__cause__.add_note(HUGE)
    shorten(exc)
    for each in (exc.exceptions[0], exc.__cause__, exc.__cause__.__context__):
        assert isinstance(each, ValueError) and len(str(each)) < 2 * MOST_TEXT
    assert len(exc.__cause__.__notes__[0]) < 2 * MOST_TEXT


def test_what_is_small_stays_the_very_same() -> None:
    lock = threading.Lock()
    args = (1, "two", [3], lock)
    exc = ValueError(*args)
    vars(exc)["field"] = field = {"a": lock}
    shorten(exc)
    assert all(one is other for one, other in zip(exc.args, args, strict=True))
    assert vars(exc)["field"] is field


def test_one_that_cannot_be_changed_is_left_alone() -> None:
    class Stubborn(Exception):
        @property
        def args(self) -> Any:  # type: ignore[override]
            raise RuntimeError("mine")

    shorten(Stubborn("s"))


def test_a_secret_is_not_cut_in_two() -> None:
    secret = "correct-horse-battery"
    start = MOST_TEXT // 2 - 10
    exc = ValueError("x" * start + secret + "y" * MOST_TEXT)
    shorten(exc, Redactor([secret]).value)
    assert secret[:8] not in str(exc)
