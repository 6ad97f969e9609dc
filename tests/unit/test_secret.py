"""How a `Secret` finds its environment variable, and what `secrets=` may be."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from flyte_celery.secret import Secret, secrets_of

MOUNT = Path("/etc/flyte/secrets")


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        (("k",), "K"),
        (("my-key",), "MY_KEY"),
        (("my_key2",), "MY_KEY2"),
        (("k", "g"), "G_K"),
        (("k", "my-g"), "MY_G_K"),
        (("1k", "g"), "G_1K"),
        (("k", ""), "K"),
    ],
)
def test_the_environment_variable_follows_from_group_and_key(arguments: Any, variable: str) -> None:
    assert Secret(*arguments).as_env_var == variable


@pytest.mark.parametrize("arguments", [("my.key",), ("1k",), ("a b",), ("",), ("é",), ("k", "g.x"), ("k", "1g")])
def test_a_key_that_makes_no_variable_is_a_value_error(arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"as_env_var=.* is no environment variable"):
        Secret(*arguments)


@pytest.mark.parametrize("variable", ["X", "_X1", "A_B"])
def test_an_explicit_variable_makes_any_key_possible(variable: str) -> None:
    assert Secret("a.b", as_env_var=variable).as_env_var == variable


@pytest.mark.parametrize("variable", ["x", "1X", "X\n", "A-B", "A B", "É"])
def test_an_explicit_variable_has_to_be_one(variable: str) -> None:
    with pytest.raises(ValueError, match="as_env_var="):
        Secret("k", as_env_var=variable)
    with pytest.raises(ValueError, match="as_env_var="):
        Secret("k", mount=MOUNT, as_env_var=variable)


@pytest.mark.parametrize("mount", [MOUNT, str(MOUNT)])
def test_a_mounted_secret_has_a_variable_only_when_asked_for(mount: Any) -> None:
    assert Secret("a.b", mount=mount) == Secret("a.b", mount=MOUNT)
    assert Secret("a.b", mount=mount).as_env_var is None
    assert Secret("a.b", mount=mount, as_env_var="X").as_env_var == "X"


@pytest.mark.parametrize("mount", [Path("/x"), "/x", 5])
def test_another_mount_is_a_value_error(mount: Any) -> None:
    with pytest.raises(ValueError, match="use '/etc/flyte/secrets'"):
        Secret("k", mount=mount)


@pytest.mark.parametrize(
    "options", [{"key": 5}, {"key": None}, {"key": "k", "group": 5}, {"key": "k", "as_env_var": 5}]
)
def test_what_is_no_string_is_a_type_error(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="is no string"):
        Secret(**options)


def test_a_secret_equals_by_value_is_hashable_and_cannot_be_changed() -> None:
    assert Secret("k") == Secret("k", as_env_var="K")
    assert hash(Secret("k")) == hash(Secret("k"))
    assert pickle.loads(pickle.dumps(Secret("k", mount=MOUNT))) == Secret("k", mount=MOUNT)
    with pytest.raises(AttributeError):
        Secret("k").key = "z"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("request_", "secrets"),
    [
        (None, ()),
        ([], ()),
        ("k", (Secret("k"),)),
        (Secret("k", "g"), (Secret("k", "g"),)),
        (["a", Secret("b")], (Secret("a"), Secret("b"))),
        (("a",), (Secret("a"),)),
    ],
)
def test_every_way_to_ask_for_secrets_comes_to_a_tuple(request_: Any, secrets: tuple[Secret, ...]) -> None:
    assert secrets_of(request_) == secrets
    assert secrets_of(secrets) == secrets


@pytest.mark.parametrize("request_", [5, [5], {"a": "b"}, ["a", None]])
def test_anything_else_is_a_type_error(request_: Any) -> None:
    with pytest.raises(TypeError, match="secrets="):
        secrets_of(request_)


@pytest.mark.parametrize("request_", ["", "x.y", ["x.y"]])
def test_a_key_alone_has_to_make_a_variable(request_: Any) -> None:
    with pytest.raises(ValueError, match="as_env_var"):
        secrets_of(request_)
