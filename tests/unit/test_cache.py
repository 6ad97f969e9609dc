"""What `Cache` accepts, and which version a task's code has."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from flyte_celery.cache import Cache, CachePolicy, FunctionBodyPolicy, VersionParameters


class Fixed:
    """A policy whose version is a constant and the salt."""

    def __init__(self, version: str) -> None:
        self.version = version

    def get_version(self, salt: str, params: VersionParameters) -> str:
        return self.version + salt


def plain() -> Callable[[int], int]:
    def task(x: int) -> int:
        return x + 1

    return task


def spaced() -> Callable[[int], int]:
    # fmt: off
    def task( x:int )->int:
        # A comment, white space, and parentheses that change nothing.

        return (x+1)
    # fmt: on
    return task


def changed() -> Callable[[int], int]:
    def task(x: int) -> int:
        return x + 2

    return task


def version(function: Callable[..., Any] | None, salt: str = "") -> str:
    return FunctionBodyPolicy().get_version(salt, VersionParameters(function))


# -- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "behavior"),
    [
        ("auto", "auto"),
        ("override", "override"),
        ("disable", "disable"),
        *((alias, "auto") for alias in ("enable", "enabled", "on", "true", "yes", "Enable", "ON", "True")),
        *((alias, "disable") for alias in ("off", "false", "no", "none", "OFF", "None", "NONE")),
    ],
)
def test_a_behaviour_has_a_canonical_name_and_aliases_in_any_case(given: Any, behavior: str) -> None:
    assert Cache(given).behavior == behavior
    assert Cache.of(given).behavior == behavior


@pytest.mark.parametrize("given", ["AUTO", "Disable", "Override", "bogus", "", None, True, False, 1, {}])
def test_anything_else_is_a_value_error_that_names_the_choices(given: Any) -> None:
    """Canonical names are case-sensitive, unlike the aliases."""
    for make in (Cache, Cache.of):
        with pytest.raises(ValueError, match=f"cache={given!r} is no cache behaviour: use one of auto, override"):
            make(given)


def test_a_cache_is_taken_as_it_is() -> None:
    cache = Cache("override")
    assert Cache.of(cache) is cache


def test_the_defaults_are_promised() -> None:
    cache = Cache("auto")
    assert cache.version_override is None
    assert cache.serialize is False
    assert cache.ignored_inputs == ()
    assert cache.salt == ""
    assert cache.policies == [FunctionBodyPolicy()]
    assert cache.max_age is None
    assert Cache("disable").policies is None


def test_a_cache_equals_by_value_and_is_not_hashable() -> None:
    assert Cache("auto") == Cache("auto")
    assert Cache("auto", salt="x") != Cache("auto")
    with pytest.raises(TypeError, match="unhashable"):
        hash(Cache("auto"))


@pytest.mark.parametrize(("behavior", "enabled"), [("auto", True), ("override", True), ("disable", False)])
def test_results_are_stored_unless_disabled(behavior: Any, enabled: bool) -> None:
    assert Cache(behavior).is_enabled() is enabled


@pytest.mark.parametrize(
    ("given", "kept"), [("x", ("x",)), (["x"], ("x",)), (("a", "b"), ("a", "b")), ((), ()), (None, ())]
)
def test_ignored_inputs_are_a_tuple(given: Any, kept: tuple[str, ...]) -> None:
    cache = Cache("auto", ignored_inputs=given)
    assert cache.ignored_inputs == cache.get_ignored_inputs() == kept


@pytest.mark.parametrize("given", [5, [5], ("a", None)])
def test_ignored_inputs_are_names(given: Any) -> None:
    with pytest.raises(TypeError, match="ignored_inputs="):
        Cache("auto", ignored_inputs=given)


@pytest.mark.parametrize(
    ("given", "kept"), [(None, None), (0, timedelta(0)), (5, timedelta(seconds=5)), (timedelta(1), timedelta(1))]
)
def test_max_age_reads_back_as_timedelta(given: Any, kept: timedelta | None) -> None:
    assert Cache("auto", max_age=given).max_age == kept


@pytest.mark.parametrize("given", [-1, timedelta(seconds=-1)])
@pytest.mark.parametrize("behavior", ["auto", "override", "disable"])
def test_a_negative_max_age_is_a_value_error(given: Any, behavior: Any) -> None:
    with pytest.raises(ValueError, match=r"max_age=.* is negative"):
        Cache(behavior, max_age=given)


@pytest.mark.parametrize("given", [True, False, "5", 1.5])
def test_a_max_age_of_another_type_is_a_type_error(given: Any) -> None:
    with pytest.raises(TypeError, match="max_age="):
        Cache("auto", max_age=given)


@pytest.mark.parametrize("behavior", ["auto", "override"])
def test_no_policy_and_no_version_is_a_value_error(behavior: Any) -> None:
    with pytest.raises(ValueError, match="give version_override, a policy"):
        Cache(behavior, policies=[])


def test_no_policy_is_possible_where_none_is_needed() -> None:
    assert Cache("auto", "v", policies=[]).policies == []
    assert Cache("disable", policies=[]).policies == []


def test_one_policy_is_kept_as_a_list() -> None:
    policy = Fixed("a")
    assert isinstance(policy, CachePolicy)
    assert Cache("auto", policies=policy).policies == [policy]


@pytest.mark.parametrize("given", [5, "x", [5]])
def test_what_computes_no_version_is_no_policy(given: Any) -> None:
    with pytest.raises(TypeError, match="policies="):
        Cache("auto", policies=given)


# -- Versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("behavior", "expected"), [("auto", "v"), ("override", "v"), ("disable", "")])
def test_a_given_version_is_the_version_unless_disabled(behavior: Any, expected: str) -> None:
    assert Cache(behavior, "v").get_version() == expected


@pytest.mark.parametrize("behavior", ["auto", "override"])
def test_a_version_needs_the_task(behavior: Any) -> None:
    with pytest.raises(ValueError, match="give params"):
        Cache(behavior).get_version()


def test_a_disabled_cache_has_no_version() -> None:
    assert Cache("disable").get_version(VersionParameters(plain())) == ""


def test_a_version_is_a_digest_over_all_policies() -> None:
    params = VersionParameters(plain())
    digest = hashlib.sha256(b"azbz").hexdigest()
    assert Cache("auto", policies=[Fixed("a"), Fixed("b")], salt="z").get_version(params) == digest


def test_comments_and_white_space_do_not_change_the_version() -> None:
    assert version(plain()) == version(spaced())


def test_code_and_salt_change_the_version() -> None:
    assert len({version(plain()), version(changed()), version(plain(), "salt")}) == 3
    params = VersionParameters(plain())
    assert Cache("auto").get_version(params) != Cache("auto", salt="x").get_version(params)


def test_no_function_has_no_version_of_its_own() -> None:
    assert version(None) == version(None, "salt") == ""


def test_a_version_of_the_function_is_stable() -> None:
    """Stored results outlive the process, so the same code has the same version tomorrow (same Python, same text)."""
    assert version(plain()) == version(plain())
    assert len(version(plain())) == 64


def test_code_that_cannot_be_read_is_a_value_error_with_the_way_out() -> None:
    namespace: dict[str, Any] = {}
    exec("def made(): return 1", namespace)
    for function in (len, namespace["made"]):
        with pytest.raises(ValueError, match="version_override"):
            version(function)


@pytest.fixture
def interrupting_collections() -> Iterator[None]:
    """Garbage is collected often, and other threads run meanwhile, as with finalizers that wait for something."""

    def let_others_run(phase: str, info: dict[str, int]) -> None:
        time.sleep(0.0001)

    before = gc.get_threshold()
    gc.callbacks.append(let_others_run)
    gc.set_threshold(20)
    yield
    gc.set_threshold(*before)
    gc.callbacks.remove(let_others_run)


def test_threads_that_ask_at_the_same_time_hear_the_same(interrupting_collections: None) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: version(Cache.__post_init__), range(200)))) == 1
