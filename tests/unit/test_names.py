"""Names of environments, tasks, queues and Redis keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport import redis as kombu_redis

from flyte_celery import names


@pytest.mark.parametrize("name", ["abc", "my-env", "my_env", "my_env-2", "1abc", "a", "a" * 300])
def test_these_are_environment_names(name: str) -> None:
    assert names.check_environment_name(name) == name


@pytest.mark.parametrize(
    "name", ["MyEnv", "my env", "", "a.b", "-a", "a_", "a--b", "x-_y", "abc\n", "münchen", "a\u0661", "a/b"]
)
def test_these_are_not(name: str) -> None:
    with pytest.raises(ValueError, match="lower-case ASCII letters"):
        names.check_environment_name(name)


@pytest.mark.parametrize("name", [123, None, b"abc", ["abc"]])
def test_a_name_is_a_string(name: object) -> None:
    with pytest.raises(TypeError, match="must be a str"):
        names.check_environment_name(name)


ENVIRONMENTS = st.from_regex(r"[a-z0-9]+([_-][a-z0-9]+)*", fullmatch=True)
FUNCTIONS = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]*", fullmatch=True) | st.just("<lambda>")


@given(ENVIRONMENTS, FUNCTIONS)
def test_a_task_name_can_be_taken_apart(environment: str, function: str) -> None:
    assert names.split_task_name(names.task_name(environment, function)) == (environment, function)


@pytest.mark.parametrize("name", ["add", "celery.backend_cleanup.x", "proj.tasks.add", "My.add", ".add", "env.", ""])
def test_names_that_no_task_of_an_environment_has(name: str) -> None:
    assert names.split_task_name(name) is None


def test_a_queue_is_named_like_its_environment() -> None:
    assert names.queue_name("my-env") == "my-env"


def test_a_worker_is_named_after_its_environment_and_host() -> None:
    assert names.worker_name("my-env", "node1") == "my-env@node1"


def test_priority_lists_are_those_that_kombu_makes() -> None:
    channel = kombu_redis.Channel
    assert tuple(channel.priority_steps) == names.PRIORITY_STEPS
    assert channel.sep == names.PRIORITY_SEPARATOR

    def made_by_kombu(step: int) -> str:
        return str(channel._q_for_pri(channel.__new__(channel), "my-env", step))

    assert names.priority_lists("my-env") == tuple(made_by_kombu(step) for step in channel.priority_steps)


def test_other_priority_steps_and_another_separator() -> None:
    assert names.priority_lists("q", [0, 5], ":") == ("q", "q:5")


def test_all_other_keys_have_one_prefix() -> None:
    assert names.environment_key("my-env") == "flyte-celery:environment:my-env"
