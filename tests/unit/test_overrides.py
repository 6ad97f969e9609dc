"""How `task.override(...)` travels: what is put into a message's header, and what is read from it."""

from __future__ import annotations

import json
import logging
import re
from datetime import timedelta
from typing import Any

import pytest

from flyte_celery.cache import Cache, VersionParameters
from flyte_celery.devices import GPU
from flyte_celery.environment import TaskEnvironment
from flyte_celery.names import OVERRIDES_HEADER
from flyte_celery.overrides import dumped, effective, loaded, replica_options
from flyte_celery.resources import Resources
from flyte_celery.retry import Backoff, RetryStrategy
from flyte_celery.reuse import ReusePolicy
from flyte_celery.secret import MOUNT, Secret
from flyte_celery.timeout import Timeout

env = TaskEnvironment("test-overrides")


@env.task(retries=1, timeout=60)
def work(x: int) -> int:
    return x


class OddPolicy:
    """A cache policy of a user's own."""

    def get_version(self, salt: str, params: VersionParameters) -> str:
        """A version that tells of the function."""
        return f"odd {params.func is not None}"


def test_a_task_without_overrides_has_no_header() -> None:
    assert dumped(work) == {}
    assert dumped(work.override()) == {}
    assert effective(work, None) is work
    assert effective(work, {"other": 1}) is work
    assert replica_options({"other": 1}) is None


def test_a_queue_other_than_the_environments_is_refused_when_the_task_is_called() -> None:
    moved = work.override(queue="other")
    assert moved.queue == "other"
    with pytest.raises(ValueError, match=r"^queue='other' of test-overrides.work is not possible: .* 'test-overrides'"):
        dumped(moved)
    assert dumped(moved.override(queue="test-overrides", retries=2)) == {OVERRIDES_HEADER: {"retries": 2}}


@pytest.mark.parametrize(
    "options",
    [
        {"retries": 3},
        {"retries": RetryStrategy(3)},
        {"retries": RetryStrategy(3, Backoff(timedelta(seconds=0.5)))},
        {"retries": RetryStrategy(3, Backoff(timedelta(seconds=10), 2.0, timedelta(minutes=5)))},
        {"cache": "auto"},
        {"cache": Cache("override", "v1", serialize=True, ignored_inputs="x", salt="s", max_age=60)},
        {"cache": "disable"},
        {"max_inline_io_bytes": 100},
        {"max_attempts": 1},
        {"interruptible": True},
        {"interruptible": False},
        {"retries": 2, "interruptible": True, "max_inline_io_bytes": 5},
        {"reusable": "off"},
        {"reusable": ReusePolicy((1, 5), timedelta(minutes=2), 3, 45, "run")},
        {"resources": Resources(4, ("2Gi", "8Gi"), "A100:2", "1Gi", "auto")},
        {"resources": Resources(("500m", 2), gpu=GPU("H100", 1, "1g.10gb"))},
        {"env_vars": {"A": "1"}},
        {"secrets": [Secret("key", "group"), Secret("other", mount=MOUNT)]},
        {"reusable": "off", "resources": Resources(memory="1Gi"), "env_vars": {"A": "1"}, "secrets": [Secret("k")]},
    ],
    ids=str,
)
def test_an_option_arrives_as_it_was_given(options: dict[str, Any]) -> None:
    sent = work.override(**options)
    headers = json.loads(json.dumps(dumped(sent)))
    assert effective(work, headers) == sent


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (5, Timeout(timedelta(seconds=5))),
        (timedelta(minutes=1), Timeout(timedelta(minutes=1))),
        (Timeout(5, timedelta(seconds=1.5), 0), Timeout(timedelta(seconds=5), timedelta(seconds=1.5))),
        (Timeout(deadline=3600), Timeout(deadline=timedelta(hours=1))),
    ],
    ids=str,
)
def test_a_timeout_arrives_as_what_it_means(given: Any, meant: Timeout) -> None:
    headers = json.loads(json.dumps(dumped(work.override(timeout=given))))
    assert effective(work, headers).timeout == meant


def test_a_timeout_without_any_limit_lifts_that_of_the_task() -> None:
    lifted = effective(work, dumped(work.override(timeout=Timeout())))
    assert Timeout.of(lifted.timeout) == Timeout()


def test_a_cache_policy_of_ones_own_travels_as_its_version() -> None:
    sent = work.override(cache=Cache("auto", policies=[OddPolicy()]))
    arrived = effective(work, dumped(sent)).cache
    assert arrived.get_version() == sent.cache.get_version(VersionParameters(work.func, work.image))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": "x"}, "timeout='x'"),
        ({"timeout": -5}, "timeout=-5"),
        ({"retries": RetryStrategy(1, "soon")}, "backoff='soon'"),  # type: ignore[arg-type]
        ({"max_inline_io_bytes": "10"}, "max_inline_io_bytes='10'"),
    ],
)
def test_a_value_that_no_worker_could_use_is_refused_when_it_is_sent(options: dict[str, Any], said: str) -> None:
    overridden = work.override(**options)
    with pytest.raises(ValueError, match=said):
        dumped(overridden)


@pytest.mark.parametrize("sent", ["text", 3, [], ["retries"]], ids=str)
def test_a_foreign_header_counts_as_none(sent: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert effective(work, {OVERRIDES_HEADER: sent}) is work
    assert "cannot be read" in caplog.text
    assert replica_options({OVERRIDES_HEADER: sent}) is None


@pytest.mark.parametrize(
    "bad",
    [
        {"retries": -1},
        {"retries": "3"},
        {"retries": {"count": 3}},
        {"retries": {"count": 3, "backoff": [1, 2]}},
        {"retries": {"count": 3, "backoff": ["x", 1, None]}},
        {"timeout": 5},
        {"timeout": {"max_runtime": "x"}},
        {"cache": "AUTO"},
        {"cache": {"behavior": "sometimes"}},
        {"max_inline_io_bytes": "many"},
        {"max_inline_io_bytes": None},
        {"interruptible": 1},
    ],
    ids=str,
)
def test_one_bad_option_leaves_the_others(bad: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    name = next(iter(bad))
    good = {} if name == "max_attempts" else {"max_attempts": 2}
    with caplog.at_level(logging.WARNING):
        assert loaded({OVERRIDES_HEADER: {**bad, **good}}) == good
    assert f"override {name}=" in caplog.text


def test_options_of_a_later_version_are_left_out() -> None:
    assert loaded({OVERRIDES_HEADER: {"colour": "red", "retries": 2}}) == {"retries": RetryStrategy(2)}


@pytest.mark.parametrize(
    "options",
    [
        {"reusable": "off"},
        {"reusable": ReusePolicy((1, 5))},
        {"resources": Resources(memory="1Gi"), "reusable": "off"},
        {"env_vars": {"A": "1"}, "reusable": "off"},
        {"secrets": [Secret("k")], "reusable": "off", "retries": 2},
    ],
    ids=str,
)
def test_a_call_says_first_that_it_wants_other_replicas(options: dict[str, Any]) -> None:
    """Workers that count what waits look for exactly this text."""
    warm = TaskEnvironment("test-warm", reusable=ReusePolicy(2), resources=Resources(memory="2Gi"))
    sent = json.dumps(dumped(warm.task(work.func).override(**options)))
    assert f'"{OVERRIDES_HEADER}": {{"beside": true, ' in sent


def test_a_call_for_the_environment_s_own_replicas_says_nothing() -> None:
    own = TaskEnvironment("test-own", reusable=ReusePolicy(2)).task(work.func)
    calls = [own.override(retries=3), own.override(reusable=ReusePolicy(2)), work.override(reusable="off")]
    assert not any("beside" in dumped(call)[OVERRIDES_HEADER] for call in calls)


def test_overrides_add_up_before_they_travel() -> None:
    sent = work.override(retries=2).override(timeout=5)
    assert set(dumped(sent)[OVERRIDES_HEADER]) == {"retries", "timeout"}
    assert effective(work, dumped(sent)).retries == RetryStrategy(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reusable": "OFF"}, "reusable='OFF' of test-overrides.work is not possible"),
        ({"reusable": 5}, "reusable=5"),
        ({"resources": "bad"}, "resources='bad' of test-overrides.work is not possible"),
        ({"resources": Resources(memory="lots")}, "memory='lots' is no Kubernetes quantity"),
        ({"resources": Resources(memory=("8Gi", "2Gi"))}, "limit below its request"),
        ({"resources": Resources(cpu="many")}, "cpu='many'"),
        ({"env_vars": "A=1"}, "env_vars='A=1' of test-overrides.work is not possible"),
        ({"env_vars": {"A=B": "1"}}, "the name 'A=B'"),
        ({"secrets": 5}, "secrets=5"),
    ],
    ids=str,
)
def test_what_no_replica_can_be_made_with_fails_where_it_is_called(options: dict[str, Any], message: str) -> None:
    """`override` itself takes anything, as in Flyte."""
    with pytest.raises(ValueError, match=re.escape(message)):
        dumped(work.override(**options))


@pytest.mark.parametrize("options", [{"retries": 2}, {"timeout": 5}, {"cache": "auto"}], ids=str)
def test_other_options_leave_the_call_to_the_environment_s_replicas(options: dict[str, Any]) -> None:
    assert replica_options(dumped(work.override(**options))) is None


def test_calls_with_equal_overrides_may_share_replicas() -> None:
    one = dumped(work.override(reusable="off", resources=Resources(memory="1Gi"), retries=1))
    two = dumped(work.override(resources=Resources(memory="1Gi")).override(reusable="off"))
    assert replica_options(one) == replica_options(two) is not None
