"""How `ReusePolicy` checks, normalises and reads back its values."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
from datetime import timedelta
from typing import Any

import pytest

from flyte_celery.reuse import ReusePolicy


def seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


def test_the_defaults_are_promised() -> None:
    policy = ReusePolicy()
    assert policy.replicas == (2, 2)
    assert policy.idle_ttl == seconds(30)
    assert policy.concurrency == 1
    assert policy.scaledown_ttl == seconds(30)
    assert policy.scope == "global"


def test_the_positional_order_is_promised() -> None:
    assert ReusePolicy((1, 2), 60, 3, 40, "run") == ReusePolicy(
        replicas=(1, 2), idle_ttl=60, concurrency=3, scaledown_ttl=40, scope="run"
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (5, (5, 5)),
        ((1, 5), (1, 5)),
        ((3, 3), (3, 3)),
        (0, (0, 0)),
        ((0, 0), (0, 0)),
        ((0, 5), (0, 5)),
        (True, (True, True)),
        (False, (False, False)),
    ],
)
def test_replicas_read_back_as_a_pair(given: Any, kept: tuple[int, int]) -> None:
    policy = ReusePolicy(replicas=given)
    assert policy.replicas == kept
    assert (policy.min_replicas, policy.max_replicas) == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (-1, "min must be >= 0"),
        ((-1, 2), "min must be >= 0"),
        ((2, -1), "max must be >= 0"),
        ((5, 2), "min must be <= its max"),
        ([1, 2], "int or a tuple of two ints"),
        ((1,), "int or a tuple of two ints"),
        ((1, 2, 3), "int or a tuple of two ints"),
        ((), "int or a tuple of two ints"),
        ("2", "int or a tuple of two ints"),
        (2.0, "int or a tuple of two ints"),
        (("1", "2"), "min must be an int"),
        ((1, 2.0), "max must be an int"),
        ((None, 2), "min must be an int"),
        (None, "cannot be None"),
    ],
)
def test_impossible_replicas_are_a_value_error_that_names_them(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        ReusePolicy(replicas=given)
    assert str(info.value).startswith("replicas=")


@pytest.mark.parametrize("given", [1, 10, True])
def test_concurrency_is_kept(given: int) -> None:
    assert ReusePolicy(concurrency=given).concurrency == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0, "at least 1"),
        (-1, "at least 1"),
        (False, "at least 1"),
        (2.0, "must be an int"),
        ("2", "must be an int"),
        (None, "must be an int"),
    ],
)
def test_an_impossible_concurrency_is_a_value_error(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReusePolicy(concurrency=given)


@pytest.mark.parametrize("field", ["idle_ttl", "scaledown_ttl"])
@pytest.mark.parametrize(
    ("given", "kept"), [(30, seconds(30)), (300, seconds(300)), (timedelta(minutes=5), seconds(300))]
)
def test_ttls_read_back_as_timedelta(field: str, given: Any, kept: timedelta) -> None:
    options: dict[str, Any] = {field: given}
    assert getattr(ReusePolicy(**options), field) == kept


@pytest.mark.parametrize("field", ["idle_ttl", "scaledown_ttl"])
@pytest.mark.parametrize("given", [29, 0, -1, True, seconds(29.999), seconds(-1)])
def test_a_ttl_below_thirty_seconds_is_a_value_error(field: str, given: Any) -> None:
    options: dict[str, Any] = {field: given}
    with pytest.raises(ValueError, match=f"{field}=.* must be at least 30 seconds"):
        ReusePolicy(**options)


@pytest.mark.parametrize("field", ["idle_ttl", "scaledown_ttl"])
@pytest.mark.parametrize("given", [30.0, "300", None])
def test_a_ttl_of_another_type_is_a_value_error(field: str, given: Any) -> None:
    options: dict[str, Any] = {field: given}
    with pytest.raises(ValueError, match=rf"{field}=.* must be an int \(seconds\) or timedelta"):
        ReusePolicy(**options)


def test_scaledown_ttl_may_exceed_idle_ttl() -> None:
    assert ReusePolicy(idle_ttl=30, scaledown_ttl=300).scaledown_ttl == seconds(300)


def test_the_scope_may_be_a_run() -> None:
    assert ReusePolicy(scope="run").scope == "run"


@pytest.mark.parametrize("given", ["RUN", "project", None, ""])
def test_another_scope_is_a_value_error(given: Any) -> None:
    with pytest.raises(ValueError, match='"global" or "run"'):
        ReusePolicy(scope=given)


@pytest.mark.parametrize("name", ["ttl_seconds", "replica"])
def test_an_unknown_argument_is_a_type_error(name: str) -> None:
    unknown: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError, match=name):
        ReusePolicy(**unknown)


def test_the_first_mistake_in_a_fixed_order_is_reported() -> None:
    """Scope, replicas, concurrency, idle_ttl, scaledown_ttl."""
    wrong: dict[str, Any] = {
        "scope": "x", "replicas": None, "concurrency": 0, "idle_ttl": 0, "scaledown_ttl": 0
    }  # fmt: skip
    right = dataclasses.asdict(ReusePolicy())
    for field in list(wrong):
        with pytest.raises(ValueError, match=f"^{field}="):
            ReusePolicy(**wrong)
        wrong[field] = right[field]


@pytest.mark.parametrize("replicas", [1, (0, 1), (1, 1), True])
def test_one_replica_that_runs_one_task_is_warned_about_once(replicas: Any, caplog: pytest.LogCaptureFixture) -> None:
    ReusePolicy(replicas=replicas)
    assert [(record.name, record.levelno) for record in caplog.records] == [("flyte_celery", logging.WARNING)]
    assert "starve" in caplog.text


@pytest.mark.parametrize("options", [{}, {"replicas": 1, "concurrency": 2}, {"replicas": (1, 2)}])
def test_a_policy_that_cannot_starve_is_silent(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    ReusePolicy(**options)
    assert not caplog.records


def test_the_starvation_warning_comes_before_the_last_check(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="scaledown_ttl"):
        ReusePolicy(1, scaledown_ttl=0)
    assert len(caplog.records) == 1


def test_a_policy_equals_by_value_and_is_not_hashable() -> None:
    assert ReusePolicy(2) == ReusePolicy((2, 2))
    with pytest.raises(TypeError, match="unhashable"):
        hash(ReusePolicy())


def test_a_policy_survives_pickle_and_copy() -> None:
    policy = ReusePolicy((1, 5), 60, 3, 40, "run")
    assert pickle.loads(pickle.dumps(policy)) == policy == copy.deepcopy(policy)


def test_replace_checks_again() -> None:
    assert dataclasses.replace(ReusePolicy(3), concurrency=4) == ReusePolicy(3, concurrency=4)
    with pytest.raises(ValueError, match="min must be >= 0"):
        dataclasses.replace(ReusePolicy(), replicas=-1)


def test_an_assignment_is_not_checked() -> None:
    policy = ReusePolicy()
    policy.replicas = (9, 1)
    assert (policy.min_replicas, policy.max_replicas) == (9, 1)
    policy.replicas = 4
    assert (policy.min_replicas, policy.max_replicas) == (4, 4)


def test_the_bounds_cannot_be_assigned() -> None:
    with pytest.raises(AttributeError):
        setattr(ReusePolicy(), "min_replicas", 3)  # noqa: B010 - type checkers know that it is read-only


@pytest.mark.parametrize(("assigned", "read"), [(None, None), (45, seconds(45)), (seconds(5), seconds(5))])
def test_scaledown_ttl_is_read_as_timedelta_after_an_assignment(assigned: Any, read: timedelta | None) -> None:
    policy = ReusePolicy()
    assert policy.get_scaledown_ttl() == seconds(30)
    policy.scaledown_ttl = assigned
    assert policy.get_scaledown_ttl() == read


def test_idle_ttl_is_read_as_timedelta_after_an_assignment() -> None:
    policy = ReusePolicy()
    policy.idle_ttl = 5
    assert policy.get_idle_ttl() == seconds(5)


def test_a_nonsensical_assigned_ttl_is_a_value_error_when_read() -> None:
    policy = ReusePolicy()
    policy.scaledown_ttl = "x"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="scaledown_ttl='x'"):
        policy.get_scaledown_ttl()
