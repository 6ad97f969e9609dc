"""Environments: their fields, clones, tasks and hooks, and what happens when one name is defined twice."""

from __future__ import annotations

import copy
import importlib
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flyte_celery.cache import Cache
from flyte_celery.environment import Environment, Hook, TaskEnvironment, conflicts, environments
from flyte_celery.image import Image
from flyte_celery.resources import Resources
from flyte_celery.retry import RetryStrategy
from flyte_celery.reuse import ReusePolicy
from flyte_celery.secret import Secret
from flyte_celery.timeout import Timeout

POLICY = ReusePolicy()


def new(**fields: Any) -> TaskEnvironment:
    """An environment with fields."""
    return TaskEnvironment(name="an-env", **fields)


def plain(x: int) -> int:
    return x


async def asynchronous(x: int) -> int:
    return x


class PodTemplate:
    pod_spec = "spec"

    def __repr__(self) -> str:
        return "PodTemplate()"  # ids of tests are the same in every process


class Plugin:
    def __repr__(self) -> str:
        return "Plugin()"


class ReusablePlugin:
    supports_reuse = True


# -- Fields ----------------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    env = new()
    assert {name: getattr(env, name) for name in TaskEnvironment.__dataclass_fields__ if name != "place"} == {
        "name": "an-env",
        "depends_on": [],
        "pod_template": None,
        "description": None,
        "secrets": None,
        "env_vars": None,
        "resources": None,
        "interruptible": False,
        "image": "auto",
        "include": (),
        "service_account": None,
        "cache": "disable",
        "reusable": None,
        "plugin_config": None,
        "queue": None,
        "max_attempts": 3,
        "grace": None,
        "buffer": 0,
        "labels": None,
        "startup_hooks": (),
        "shutdown_hooks": (),
        "_tasks": {},
    }


def test_fields_are_positional_in_flytes_order() -> None:
    shared = ("e", [], "pod", "text", "key", {"A": "1"}, Resources(), True, "img", ("f",), "sa")
    env = TaskEnvironment(*shared, "auto", POLICY, None, "q")
    assert (env.pod_template, env.include, env.service_account, env.reusable, env.queue) == (
        *("pod", ("f",), "sa"),
        *(POLICY, "q"),
    )


@pytest.mark.parametrize("name", ["MyEnv", "my env", "", "a.b", "-a", "a_", "a--b", "x-_y", "abc\n", "ä"])
def test_a_bad_name_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match="environment name"):
        TaskEnvironment(name=name)
    with pytest.raises(ValueError, match="environment name"):
        Environment(name=name)


@pytest.mark.parametrize("arguments", [{"name": 123}, {"name": None}, {}])
def test_a_name_is_needed_and_a_string(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        TaskEnvironment(**arguments)


@pytest.mark.parametrize("option", ["retries", "timeout", "reuse_policy", "replicas"])
def test_options_of_tasks_are_not_options_of_environments(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        new(**{option: 1})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("image", None),
        ("image", ""),
        ("image", "img"),
        ("image", Image.from_debian_base()),
        ("env_vars", {"A": 1}),
        ("env_vars", {}),
        ("secrets", "k"),
        ("secrets", ["a", Secret("b")]),
        ("secrets", Secret("k")),
        ("cache", False),
        ("cache", None),
        ("cache", "bogus"),
        ("cache", Cache("auto")),
        ("pod_template", "name"),
        ("pod_template", PodTemplate()),
        ("pod_template", {"spec": {}}),
        ("service_account", ""),
        ("description", "text"),
        ("reusable", POLICY),
        ("plugin_config", Plugin()),
    ],
    ids=str,
)
def test_these_are_stored_as_given(option: str, value: Any) -> None:
    assert getattr(new(**{option: value}), option) is value


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("image", 123),
        ("resources", {"cpu": 1}),
        ("resources", ""),
        ("env_vars", [("A", "1")]),
        ("env_vars", 5),
        ("secrets", ("a",)),
        ("secrets", 5),
        ("secrets", [5]),
        ("depends_on", ["x"]),
        ("depends_on", None),
        ("depends_on", Environment("a")),
        ("include", "x.txt"),
        ("include", [1]),
        ("include", 5),
        ("reusable", 2),
        ("reusable", (1, 2)),
        ("reusable", "off"),
        ("cache", True),
        ("cache", 1),
        ("pod_template", 5),
        ("service_account", 5),
        ("description", 5),
    ],
    ids=str,
)
def test_a_wrong_type_is_a_type_error_that_names_the_field(option: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"'an-env' got {option}="):
        new(**{option: value})


@pytest.mark.parametrize("value", [0, {}, (), ""])
def test_false_values_for_reusable_mean_no_reuse(value: Any) -> None:
    assert new(reusable=value).reusable is None


def test_files_to_include_become_a_tuple() -> None:
    assert new(include=["a", "b"]).include == ("a", "b")


def test_a_long_description_is_cut() -> None:
    assert new(description="x" * 300).description == "x" * 255


def test_a_plugin_must_support_reuse() -> None:
    with pytest.raises(ValueError, match="'an-env' cannot combine reusable with the plugin Plugin"):
        new(reusable=POLICY, plugin_config=Plugin())
    assert new(reusable=POLICY, plugin_config=ReusablePlugin()).reusable is POLICY


def test_a_pod_template_of_the_environment_goes_with_reuse() -> None:
    assert new(reusable=POLICY, pod_template="p").pod_template == "p"


def test_environments_are_equal_by_value_and_have_no_hash() -> None:
    assert new(env_vars={"A": "1"}) == new(env_vars={"A": "1"})
    assert new() != new(interruptible=True)
    with pytest.raises(TypeError):
        hash(new())


def test_the_repr_shows_the_fields_and_no_tasks() -> None:
    env = new()
    env.task(plain)
    assert "name='an-env'" in repr(env)
    assert "plain" not in repr(env)


# -- Dependencies ----------------------------------------------------------------------------------------------------


def test_dependencies_are_added_once() -> None:
    env, other = new(), TaskEnvironment("other")
    env.add_dependency(other, Environment("base"))
    env.add_dependency(other)
    assert [each.name for each in env.depends_on] == ["other", "base"]


def test_a_list_of_dependencies_is_copied() -> None:
    given: list[Environment] = []
    new(depends_on=given).add_dependency(TaskEnvironment("other"))
    assert given == []


def test_only_other_environments_can_be_dependencies() -> None:
    env = new()
    with pytest.raises(TypeError, match="cannot depend on 5"):
        env.add_dependency(TaskEnvironment("other"), 5)
    with pytest.raises(ValueError, match="cannot depend on itself"):
        env.add_dependency(env)
    assert env.depends_on == []


# -- clone_with ------------------------------------------------------------------------------------------------------


def full() -> TaskEnvironment:
    return TaskEnvironment(
        "full",
        depends_on=[TaskEnvironment("base")],
        pod_template="pod",
        description="text",
        secrets="key",
        env_vars={"A": "1"},
        resources=Resources(cpu=1, memory="1Gi"),
        interruptible=True,
        image="img",
        include=("f",),
        service_account="sa",
        cache="auto",
        reusable=POLICY,
        queue="q",
    )


def test_a_clone_inherits_everything_but_name_and_tasks() -> None:
    env = full()
    env.task(plain)
    clone = env.clone_with("clone")
    for option in TaskEnvironment.__dataclass_fields__:
        if option not in ("name", "place", "_tasks"):
            assert getattr(clone, option) == getattr(env, option), option
    assert clone.env_vars is env.env_vars
    assert (clone.name, clone.tasks) == ("clone", {})
    assert list(env.tasks) == ["full.plain"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cache", "disable"),
        ("env_vars", {}),
        ("env_vars", {"B": "2"}),
        ("depends_on", []),
        ("interruptible", False),
        ("resources", Resources(gpu="T4:1")),
        ("reusable", ReusePolicy(4)),
        ("reusable", None),
        ("image", "other"),
        ("description", ""),
        ("include", ("x",)),
        ("service_account", "other"),
        ("secrets", ["a"]),
    ],
    ids=str,
)
def test_what_is_given_to_a_clone_replaces_the_whole_value(option: str, value: Any) -> None:
    env = full()
    assert getattr(env.clone_with("clone", **{option: value}), option) == value
    assert env == full()


@pytest.mark.parametrize(
    "option", ["cache", "env_vars", "secrets", "image", "resources", "depends_on", "interruptible", "description"]
)
def test_none_inherits(option: str) -> None:
    env = full()
    assert getattr(env.clone_with("clone", **{option: None}), option) == getattr(env, option)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "name"),
        ({"name": "c", "queue": "q"}, r"clone_with\(\) has no option 'queue'"),
        ({"name": "c", "pod_template": "p"}, "pod_template"),
        ({"name": "c", "plugin_config": None}, "plugin_config"),
        ({"name": "c", "bogus": 1}, "bogus"),
        ({"name": "c", "reusable": "off"}, "got reusable='off'"),
    ],
)
def test_what_a_clone_cannot_take_is_a_type_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        full().clone_with(**arguments)


def test_a_clone_needs_a_good_name() -> None:
    with pytest.raises(ValueError, match="environment name"):
        full().clone_with("Bad Name")


def test_a_parent_without_reuse() -> None:
    """The idiom of the Flyte documentation for a task that only waits for others."""
    env = full()
    parent = env.clone_with("parent", reusable=None, depends_on=[env])
    assert (parent.reusable, parent.depends_on) == (None, [env])


def test_a_clone_inherits_hooks_because_they_describe_the_process() -> None:
    env = new()
    env.on_startup(plain_hook)
    clone = env.clone_with("clone")
    env.on_shutdown(plain_hook)
    assert (clone.startup_hooks, clone.shutdown_hooks) == ((Hook(plain_hook),), ())


# -- task ------------------------------------------------------------------------------------------------------------


def test_bare_and_called() -> None:
    env = new()

    @env.task
    def bare() -> None: ...

    @env.task()
    def called() -> None: ...

    @env.task(short_name="nice")
    def named() -> None: ...

    assert list(env.tasks) == ["an-env.bare", "an-env.called", "an-env.named"]
    assert env.tasks["an-env.named"] is named
    assert (named.short_name, bare.short_name) == ("nice", "bare")


def test_decorating_again_replaces() -> None:
    env = new()
    env.task(plain)
    again = env.task(retries=1)(plain)
    assert env.tasks == {"an-env.plain": again}


def test_tasks_cannot_be_changed_through_the_listing() -> None:
    env = new()
    env.tasks["x"] = env.task(plain)
    assert list(env.tasks) == ["an-env.plain"]


@pytest.mark.parametrize("option", ["resources", "reusable", "env_vars", "secrets", "image", "name", "bogus"])
def test_an_unknown_option_is_a_type_error(option: str) -> None:
    with pytest.raises(TypeError, match=f"^@task of environment 'an-env' has no option '{option}'"):
        new().task(**{option: None})


def test_a_misspelt_option_gets_a_suggestion() -> None:
    with pytest.raises(TypeError, match="has no option 'retrys': did you mean 'retries'"):
        new().task(retrys=3)


@pytest.mark.parametrize("option", ["acks_late", "reject_on_worker_lost"])
def test_an_option_of_celery_that_is_always_on_says_so(option: str) -> None:
    with pytest.raises(TypeError, match=f"has no option '{option}': it is always on"):
        new().task(**{option: True})


@pytest.mark.parametrize(
    ("option", "value", "stored"),
    [
        ("cache", "auto", Cache("auto")),
        ("cache", "override", Cache("override")),
        ("cache", "disable", Cache("disable")),
        ("cache", Cache("auto"), Cache("auto")),
        ("cache", False, Cache("disable")),
        ("cache", None, Cache("disable")),
        ("retries", 3, RetryStrategy(3)),
        ("retries", RetryStrategy(2), RetryStrategy(2)),
        ("retries", True, RetryStrategy(True)),
        ("retries", None, None),
        ("timeout", 600, 600),
        ("timeout", timedelta(minutes=1), timedelta(minutes=1)),
        ("timeout", Timeout(5), Timeout(5)),
        ("timeout", "x", "x"),
        ("timeout", -5, -5),
        ("triggers", "daily", ("daily",)),
        ("triggers", ("a", "b"), ("a", "b")),
        ("links", "a", ("a",)),
        ("pod_template", "p", "p"),
        ("service_account", "sa", "sa"),
        ("queue", "q", "q"),
        ("interruptible", True, True),
        ("report", True, True),
        ("docs", "d", "d"),
        ("entrypoint", True, True),
        ("produces_artifacts", True, True),
        ("task_resolver", "r", "r"),
        ("max_inline_io_bytes", 5, 5),
        ("max_attempts", 1, 1),
    ],
    ids=str,
)
def test_options_of_a_task(option: str, value: Any, stored: Any) -> None:
    assert getattr(new().task(**{option: value})(plain), option) == stored


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"cache": True}, ValueError),
        ({"cache": "bogus"}, ValueError),
        ({"retries": -1}, ValueError),
        ({"retries": 1.5}, ValueError),
        ({"retries": "3"}, ValueError),
        ({"max_attempts": 0}, ValueError),
        ({"max_attempts": "3"}, TypeError),
        ({"max_attempts": True}, TypeError),
    ],
    ids=str,
)
def test_bad_values_of_options(options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        new().task(**options)(plain)


@pytest.mark.parametrize("cache", ["bogus", None, False])
def test_a_bad_cache_of_an_environment_shows_when_a_task_is_made(cache: Any) -> None:
    env = new(cache=cache)
    with pytest.raises(ValueError):
        env.task(plain)
    assert env.tasks == {}


def test_the_cache_of_a_task_beats_that_of_the_environment() -> None:
    env = new(cache="auto")
    assert env.task(plain).cache == Cache("auto")
    assert env.task(cache="disable")(plain).cache == Cache("disable")
    assert env.task(cache=False)(plain).cache == Cache("disable")


def test_the_environments_values_are_the_tasks() -> None:
    env = full().clone_with("other", reusable=None)
    task = env.task(plain)
    for option in ("resources", "env_vars", "secrets", "image", "service_account", "pod_template", "queue"):
        assert getattr(task, option) is getattr(env, option), option
    assert task.interruptible is True
    assert env.task(interruptible=False)(plain).interruptible is False


def test_celerys_options_are_kept_for_celery() -> None:
    task = new().task(bind=True, rate_limit="10/m", autoretry_for=(OSError,), retries=2)(bound)
    assert task.celery_options == {"rate_limit": "10/m", "autoretry_for": (OSError,)}
    assert task.bind


def bound(self: Any, x: int) -> int:
    return x


def generator(x: int) -> Iterator[int]:
    yield x


async def async_generator(x: int) -> Any:
    yield x


@pytest.mark.parametrize("func", [plain, generator, async_generator])
def test_concurrency_is_for_async_functions(func: Callable[..., Any]) -> None:
    env = new(reusable=ReusePolicy(concurrency=2))
    with pytest.raises(ValueError, match=f"'{func.__name__}' .*'an-env'.* only supported for async tasks"):
        env.task(func)
    assert env.task(asynchronous).is_async
    new(reusable=ReusePolicy(concurrency=1)).task(func)


@pytest.mark.parametrize("option", ["pod_template", "service_account"])
def test_replicas_are_shared_so_a_task_cannot_change_them(option: str) -> None:
    """Raised by `.task(...)` itself, before a function is seen."""
    env = new(reusable=POLICY, service_account="own")
    with pytest.raises(ValueError, match=f"{option}='other' cannot be set for one task of the reusable environment"):
        env.task(**{option: "other"})
    assert env.task(service_account="own")(plain).service_account == "own"


@pytest.mark.parametrize("func", [lambda *args: None, lambda **kwargs: None], ids=["args", "kwargs"])
def test_the_parameters_of_a_task_are_known(func: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="the parameters of a task must be known"):
        new().task(func)


class Callable_:
    def __call__(self) -> None: ...

    def method(self, x: int) -> int:
        return x


@pytest.mark.parametrize("func", [5, "x", Callable_()], ids=["int", "str", "callable object"])
def test_what_has_no_name_is_an_attribute_error(func: Any) -> None:
    with pytest.raises(AttributeError, match="no attribute '__name__'"):
        new().task(func)


def test_a_task_cannot_be_decorated_again() -> None:
    env = new()
    with pytest.raises(AttributeError, match="__name__"):
        env.task(env.task(plain))


def test_methods_lambdas_and_untyped_functions_are_accepted() -> None:
    env = new()
    assert env.task(Callable_().method)(5) == 5
    assert env.task(lambda x: x).name == "an-env.<lambda>"


# -- from_task -------------------------------------------------------------------------------------------------------


def test_tasks_without_an_environment_can_be_grouped() -> None:
    task = new(image="img").task(plain).override(parent_env=None)
    group = TaskEnvironment.from_task("group", task, depends_on=[new()])
    assert group.tasks == {"an-env.plain": task}
    assert group.tasks["an-env.plain"] is task
    assert (group.image, group.depends_on) == ("img", [new()])
    assert task.parent_env is not None
    assert (task.parent_env(), task.parent_env_name) == (group, "group")


def test_a_task_belongs_to_one_environment() -> None:
    with pytest.raises(ValueError, match=r"'an-env.plain' belongs to environment 'an-env'.*'group'"):
        TaskEnvironment.from_task("group", new().task(plain))


def test_grouped_tasks_share_an_image() -> None:
    tasks = [new(image=image).task(plain).override(parent_env=None) for image in ("one", "two")]
    with pytest.raises(ValueError, match="different images"):
        TaskEnvironment.from_task("group", *tasks)


def test_only_tasks_can_be_grouped() -> None:
    with pytest.raises(TypeError, match="no task"):
        TaskEnvironment.from_task("group", plain)
    assert TaskEnvironment.from_task("group").tasks == {}


# -- Hooks -----------------------------------------------------------------------------------------------------------


def plain_hook() -> None: ...


def test_hooks_are_kept_in_order_and_returned_unchanged() -> None:
    env = new()

    @env.on_startup
    def first() -> None: ...

    @env.on_startup(timeout=90)
    async def second() -> None: ...

    @env.on_startup(timeout=timedelta(minutes=5))
    def third(wait: bool = False) -> None: ...

    @env.on_shutdown
    def last() -> None: ...

    limits = [None, timedelta(seconds=90), timedelta(minutes=5)]
    assert [hook.timeout for hook in env.startup_hooks] == limits
    assert [hook.func for hook in env.startup_hooks] == [first, second, third]
    assert env.shutdown_hooks == (Hook(last),)


def test_a_hook_that_is_defined_again_replaces_itself() -> None:
    env = new()
    for seconds in (10, 20):

        @env.on_startup(timeout=seconds)
        def load() -> None: ...

    assert [hook.timeout for hook in env.startup_hooks] == [timedelta(seconds=20)]


@pytest.mark.parametrize(
    ("func", "message"),
    [(plain, "missing a required argument"), (generator, "without `yield`"), (async_generator, "yield"), (5, "5")],
)
@pytest.mark.parametrize("hook", ["on_startup", "on_shutdown"])
def test_what_cannot_be_a_hook_is_a_type_error(hook: str, func: Any, message: str) -> None:
    env = new()
    with pytest.raises(TypeError, match=message):
        getattr(env, hook)(func)
    assert (env.startup_hooks, env.shutdown_hooks) == ((), ())


@pytest.mark.parametrize(
    ("timeout", "kind"),
    [(0, ValueError), (-1, ValueError), (float("inf"), ValueError), (timedelta(0), ValueError), ("5", TypeError)],
)
def test_a_bad_timeout_of_a_hook(timeout: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="timeout of a hook"):
        new().on_startup(timeout=timeout)
    with pytest.raises(TypeError, match="timeout of a hook"):
        new().on_shutdown(timeout=True)


# -- The registry ----------------------------------------------------------------------------------------------------

Load = Callable[[str, str], ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Write and import a module, or write it anew and reload it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = []

    def load(name: str, code: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(f"import flyte_celery.environment as flyte\n{code}\n")
        importlib.invalidate_caches()
        names.append(name)
        return importlib.reload(sys.modules[name]) if name in sys.modules else importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def unique() -> str:
    """A name that no other test has used."""
    return f"e{uuid.uuid4().hex}"


def conflicts_of(name: str) -> list[str]:
    return [str(conflict) for conflict in conflicts() if conflict.name.partition(".")[0] == name]


def test_environments_are_known_by_their_names(unique: str) -> None:
    TaskEnvironment(unique)  # nobody holds it but the registry
    assert environments()[unique].name == unique
    clone = environments()[unique].clone_with(f"{unique}-2")
    assert environments()[f"{unique}-2"] is clone


def test_the_listing_is_a_copy(unique: str) -> None:
    environments()[unique] = new()
    assert unique not in environments()


def test_an_environment_knows_where_it_is_defined(unique: str) -> None:
    env = TaskEnvironment(unique)
    assert env.place.file == __file__
    assert env.place.qualname == "test_an_environment_knows_where_it_is_defined"
    assert TaskEnvironment.from_task(f"{unique}-2").place.line == env.place.line + 3


def test_a_bad_environment_is_not_registered(unique: str) -> None:
    with pytest.raises(TypeError):
        TaskEnvironment(unique, reusable="off")
    assert unique not in environments()


def test_two_modules_that_define_one_environment_are_a_conflict(unique: str, load: Load, tmp_path: Path) -> None:
    load("first", f"\nenv = flyte.TaskEnvironment('{unique}')")
    second = load("second", f"env = flyte.TaskEnvironment('{unique}')")
    assert conflicts_of(unique) == [
        f"Two environments are named {unique!r}: one is defined at {tmp_path}/first.py:3, the other at "
        f"{tmp_path}/second.py:2. Give one of them another name."
    ]
    assert environments()[unique] is second.env


def test_two_variables_of_one_module_are_a_conflict(unique: str, load: Load) -> None:
    load("first", f"a = flyte.TaskEnvironment('{unique}')\nb = a.clone_with('{unique}')")
    assert len(conflicts_of(unique)) == 1


def test_two_functions_that_define_one_environment_are_a_conflict_while_both_are_held(unique: str) -> None:
    def one() -> TaskEnvironment:
        return TaskEnvironment(unique)

    def other() -> TaskEnvironment:
        return TaskEnvironment(unique)

    held = [one(), other()]
    assert len(conflicts_of(unique)) == 1
    del held[0]
    assert conflicts_of(unique) == []


def test_a_conflict_is_reported_once(unique: str, load: Load) -> None:
    load("first", f"env = flyte.TaskEnvironment('{unique}')")
    for _ in range(3):
        load("second", f"env = flyte.TaskEnvironment('{unique}')")
    assert len(conflicts_of(unique)) == 1


def test_a_reloaded_module_replaces_its_environment(unique: str, load: Load) -> None:
    first = load("first", f"env = flyte.TaskEnvironment('{unique}')")
    old = first.env
    load("first", f"# a new line\n\nenv = flyte.TaskEnvironment('{unique}')")
    assert environments()[unique] is first.env is not old
    assert conflicts_of(unique) == []


def test_a_notebook_cell_that_runs_again_replaces_its_environment(unique: str) -> None:
    notebook = ModuleType("a_notebook")
    sys.modules["a_notebook"] = notebook
    try:
        for cell in ("<cell 1>", "<cell 2>"):
            code = compile(f"\n\nenv = flyte.TaskEnvironment('{unique}'); Out = _1 = env", cell, "exec")
            notebook.__dict__["flyte"] = importlib.import_module("flyte_celery.environment")
            held = notebook.__dict__.get("env")
            exec(code, notebook.__dict__)
            del held
        assert conflicts_of(unique) == []
    finally:
        del sys.modules["a_notebook"]


def test_a_factory_that_is_called_twice_replaces_its_environment(unique: str) -> None:
    def make() -> TaskEnvironment:
        return TaskEnvironment(unique)

    held = [make(), make()]
    assert environments()[unique] is held[1]
    assert conflicts_of(unique) == []


def test_a_script_that_is_imported_as_well_defines_its_environment_once(unique: str, load: Load) -> None:
    first = load("first", f"env = flyte.TaskEnvironment('{unique}')")
    main = ModuleType("__main__")
    exec(compile(Path(str(first.__file__)).read_text(), str(first.__file__), "exec"), main.__dict__)
    assert environments()[unique] is main.env is not first.env
    assert conflicts_of(unique) == []


def test_a_subclass_is_defined_where_it_is_used(unique: str) -> None:
    class Own(TaskEnvironment):
        def __init__(self, name: str) -> None:
            super().__init__(name=name)

    assert Own(unique).place.qualname == "test_a_subclass_is_defined_where_it_is_used"


def test_two_functions_with_one_task_name_are_a_conflict(unique: str, load: Load, tmp_path: Path) -> None:
    env = load("first", f"env = flyte.TaskEnvironment('{unique}')\n@env.task\ndef f(): ...").env
    load("second", "import first\n@first.env.task\ndef f(): ...")
    assert conflicts_of(unique) == [
        f"Two tasks are named '{unique}.f': one is defined at {tmp_path}/first.py:3, the other at "
        f"{tmp_path}/second.py:3. Give one of them another name."
    ]
    assert env.tasks[f"{unique}.f"].func.__module__ == "second"


def test_a_function_that_is_defined_again_replaces_its_task(unique: str, load: Load) -> None:
    load("envs", f"env = flyte.TaskEnvironment('{unique}')")
    tasks = load("tasks", "import envs\n@envs.env.task\ndef f(): ...")
    old = tasks.f
    load("tasks", "import envs\n\n\n@envs.env.task\ndef f(): ...")
    assert tasks.f is not old
    assert conflicts_of(unique) == []


def test_a_function_that_is_decorated_twice_is_no_conflict(unique: str) -> None:
    env = TaskEnvironment(unique)
    held = [env.task(plain), env.task(retries=1)(plain)]
    assert env.tasks[f"{unique}.plain"] is held[1]
    assert conflicts_of(unique) == []


def test_two_lambdas_are_two_functions(unique: str) -> None:
    env = TaskEnvironment(unique)
    held = [
        env.task(lambda x: x),
        env.task(lambda x: -x),
    ]
    assert len(held) == 2
    assert len(conflicts_of(unique)) == 1


def test_the_environment_of_a_task_can_go(unique: str) -> None:
    env = TaskEnvironment(unique)
    task = env.task(plain)
    assert task.parent_env is not None
    assert task.parent_env() is env
    del env
    TaskEnvironment(unique)
    assert task.parent_env() is None


def test_a_copy_of_an_environment_is_not_registered(unique: str) -> None:
    env = TaskEnvironment(unique)
    assert copy.copy(env) == env
    assert environments()[unique] is env
