"""What `@env.task` returns: calls, Celery's face, `override`."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from flyte_celery import context, errors, task
from flyte_celery.cache import Cache
from flyte_celery.environment import TaskEnvironment
from flyte_celery.resources import Resources
from flyte_celery.retry import RetryStrategy
from flyte_celery.reuse import ReusePolicy
from flyte_celery.task import AsyncFunctionTaskTemplate, TaskTemplate
from flyte_celery.timeout import Timeout
from flyte_celery.tracing import trace

env = TaskEnvironment("test-task", resources=Resources(cpu=1), env_vars={"A": "1"}, secrets="key")
reusable_env = TaskEnvironment("test-task-reusable", reusable=ReusePolicy(), service_account="robot")


class KeptError(KeyError):
    """An error of a user's own."""


@env.task
def double(x: int) -> int:
    """Twice as much."""
    if x < 0:
        raise KeptError("negative")
    return 2 * x


@env.task
async def double_async(x: int) -> int:
    await asyncio.sleep(0)
    if x < 0:
        raise KeptError("negative")
    return 2 * x


@env.task(bind=True, retries=3, timeout=60)
def bound(self: Any, x: int) -> tuple[str, int]:
    return self.label, x


@reusable_env.task
async def warm(x: int) -> int:
    return x


class FakeCeleryTask:
    """Has what Celery's tasks have beside their frequent methods."""

    label = "celery"
    rate_limit = "10/m"

    def AsyncResult(self, task_id: str) -> str:
        return f"result of {task_id}"

    def apply(self, args: Any, kwargs: Any, **options: Any) -> tuple[Any, ...]:
        return ("applied", args, kwargs, options)

    def chunks(self, values: list[int], size: int) -> str:
        return f"chunks of {size}"


class FakeDispatcher:
    """Carries calls nowhere and writes them down."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.known: list[str] = []

    def registered(self, task: TaskTemplate[Any, Any]) -> None:
        self.known.append(task.name)

    def celery_task(self, task: TaskTemplate[Any, Any]) -> Any:
        return FakeCeleryTask()

    def apply_async(self, task: Any, args: Any, kwargs: Any, options: Any) -> str:
        self.calls.append(("apply_async", task.name, args, kwargs, options))
        return "AsyncResult"

    def signature(self, task: Any, args: Any, kwargs: Any, options: Any) -> str:
        self.calls.append(("signature", task.name, args, kwargs, options))
        return "Signature"

    def call(self, task: Any, args: Any, kwargs: Any) -> str:
        self.calls.append(("call", task.name, args, kwargs))
        return "called"

    async def call_async(self, task: Any, args: Any, kwargs: Any) -> str:
        self.calls.append(("call_async", task.name, args, kwargs))
        await asyncio.sleep(0)
        return "awaited"


@pytest.fixture
def dispatcher() -> Iterator[FakeDispatcher]:
    with dispatching(FakeDispatcher()) as fake:
        yield fake


@contextmanager
def dispatching(fake: FakeDispatcher) -> Iterator[FakeDispatcher]:
    task.set_dispatcher(fake)
    try:
        yield fake
    finally:
        task.set_dispatcher(None)


@contextmanager
def in_a_task(*, is_async: bool = False) -> Iterator[None]:
    run = context.RunContext.of_task(task_id="t", root_id="r", environment=env.name, is_async=is_async)
    token = context.current_run.set(run)
    try:
        yield
    finally:
        context.current_run.reset(token)


# -- Calls outside of tasks ------------------------------------------------------------------------------------------


def test_a_sync_task_runs_here() -> None:
    assert double(2) == 4


def test_an_async_task_gives_its_raw_coroutine() -> None:
    coroutine = double_async(2)
    assert inspect.iscoroutine(coroutine)
    assert coroutine.cr_code is double_async.func.__code__
    assert asyncio.run(coroutine) == 4


def test_what_a_sync_task_raises_becomes_a_user_error_with_its_cause() -> None:
    with pytest.raises(errors.RuntimeUserError) as error:
        double(-1)
    assert (error.value.code, error.value.kind, str(error.value)) == ("KeptError", "user", "'negative'")
    assert type(error.value.__cause__) is KeptError


def test_it_can_be_caught_as_what_was_raised() -> None:
    with pytest.raises(KeptError):
        double(-1)


def test_a_wrong_number_of_arguments_is_a_user_error_too() -> None:
    with pytest.raises(errors.RuntimeUserError) as error:
        double()
    assert error.value.code == "TypeError"


@pytest.mark.parametrize("raised", [errors.RuntimeUserError("MINE", "m"), errors.RuntimeSystemError("SYS", "s")])
def test_errors_of_flytes_face_pass_as_they_are(raised: Exception) -> None:
    @env.task
    def failing() -> None:
        raise raised

    with pytest.raises(type(raised)) as error:
        failing()
    assert error.value is raised


def test_what_is_no_exception_passes_as_it_is() -> None:
    @env.task
    def leaving() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        leaving()


def test_what_an_async_task_raises_arrives_as_it_is() -> None:
    with pytest.raises(KeptError) as error:
        asyncio.run(double_async(-1))
    assert type(error.value) is KeptError


def test_nothing_is_checked_or_converted_in_a_plain_call() -> None:
    assert double(1.5) == 3.0


def test_aio_of_a_sync_task_runs_it_in_a_thread() -> None:
    @env.task
    def loop_here() -> bool:
        return context.in_event_loop()

    assert asyncio.run(loop_here.aio()) is False


def test_aio_of_a_sync_task_raises_what_it_raises() -> None:
    with pytest.raises(KeptError) as error:
        asyncio.run(double.aio(-1))
    assert type(error.value) is KeptError


def test_aio_of_an_async_task_gives_its_coroutine_as_in_flyte() -> None:
    async def main() -> tuple[bool, int]:
        inner: Any = await double_async.aio(2)
        return inspect.iscoroutine(inner), await inner

    assert asyncio.run(main()) == (True, 4)


def test_a_sync_task_may_block_plain_asyncio_code() -> None:
    async def main() -> int:
        return double(2)

    assert asyncio.run(main()) == 4


@pytest.mark.parametrize("inside", [True, False])
def test_forward_and_func_always_run_the_body(inside: bool) -> None:
    def calls() -> list[Any]:
        return [double.forward(2), double.func(2), asyncio.run(double_async.forward(2)), double.func is not double]

    if inside:
        with in_a_task():
            assert calls() == [4, 4, 4, True]
    else:
        assert calls() == [4, 4, 4, True]
    with pytest.raises(KeptError) as error:
        double.forward(-1)
    assert type(error.value) is KeptError


def test_a_bound_task_gets_celerys_task_first(dispatcher: FakeDispatcher) -> None:
    assert bound(1) == ("celery", 1)
    assert bound.forward(1) == ("celery", 1)
    assert list(bound.native_interface.inputs) == ["x"]


# -- Calls inside of tasks -------------------------------------------------------------------------------------------


def test_a_sync_task_called_in_a_sync_task_is_submitted(dispatcher: FakeDispatcher) -> None:
    with in_a_task():
        assert double(2) == "called"
    assert dispatcher.calls == [("call", double.name, (2,), {})]


def test_an_async_task_called_in_a_sync_task_is_something_to_await(dispatcher: FakeDispatcher) -> None:
    with in_a_task():
        awaitable = double_async(2)
        assert dispatcher.calls == []
        assert asyncio.run(awaitable) == "awaited"
    assert dispatcher.calls == [("call_async", double_async.name, (2,), {})]


def test_an_async_task_called_in_an_async_task_is_submitted(dispatcher: FakeDispatcher) -> None:
    async def body() -> list[Any]:
        return await asyncio.gather(double_async(1), double_async(x=2))

    with in_a_task(is_async=True):
        assert asyncio.run(body()) == ["awaited", "awaited"]
    calls = [("call_async", double_async.name, (1,), {}), ("call_async", double_async.name, (), {"x": 2})]
    assert dispatcher.calls == calls


@pytest.mark.parametrize("is_async", [True, False])
def test_a_sync_task_must_not_block_an_event_loop(is_async: bool, dispatcher: FakeDispatcher) -> None:
    async def body() -> Any:
        return double(2)

    with in_a_task(is_async=is_async), pytest.raises(errors.SyncTaskCallInAsyncContextError, match=r"double\.aio"):
        asyncio.run(body())
    assert dispatcher.calls == []


def test_a_thread_of_an_async_task_may_wait_for_a_sync_task(dispatcher: FakeDispatcher) -> None:
    async def body() -> Any:
        return await asyncio.to_thread(double, 2)

    with in_a_task(is_async=True):
        assert asyncio.run(body()) == "called"


@pytest.mark.parametrize("child", [double, double_async], ids=["sync", "async"])
@pytest.mark.parametrize("is_async", [True, False])
def test_aio_submits_any_task_and_one_await_gives_the_value(
    child: TaskTemplate[Any, Any], is_async: bool, dispatcher: FakeDispatcher
) -> None:
    async def body() -> Any:
        return await child.aio(2)

    with in_a_task(is_async=is_async):
        assert asyncio.run(body()) == "awaited"
    assert dispatcher.calls == [("call_async", child.name, (2,), {})]


@pytest.mark.parametrize("call", [lambda: double(2), lambda: double_async(2), lambda: asyncio.run(double.aio(2))])
def test_a_traced_function_must_not_call_tasks(call: Any, dispatcher: FakeDispatcher) -> None:
    with in_a_task(), pytest.raises(errors.TraceDoesNotAllowNestedTasksError, match=r"test-task\.double"):
        trace(call)()
    assert dispatcher.calls == []


def test_a_traced_function_may_run_a_tasks_body(dispatcher: FakeDispatcher) -> None:
    with in_a_task():
        assert trace(lambda: double.forward(2))() == 4


# -- Celery's face ---------------------------------------------------------------------------------------------------


def test_delay_and_apply_async_submit(dispatcher: FakeDispatcher) -> None:
    assert double.delay(2) == "AsyncResult"
    assert double.apply_async([1], {"x": 1}, countdown=3) == "AsyncResult"
    assert double.apply_async() == "AsyncResult"
    assert dispatcher.calls == [
        ("apply_async", double.name, (2,), {}, {}),
        ("apply_async", double.name, (1,), {"x": 1}, {"countdown": 3}),
        ("apply_async", double.name, (), None, {}),
    ]


def test_signatures_are_made_by_the_dispatcher(dispatcher: FakeDispatcher) -> None:
    assert {double.s(1), double.si(x=1), double.signature([1], countdown=3)} == {"Signature"}
    assert dispatcher.calls == [
        ("signature", double.name, (1,), {}, {}),
        ("signature", double.name, (), {"x": 1}, {"immutable": True}),
        ("signature", double.name, (1,), None, {"countdown": 3}),
    ]


def test_everything_else_of_celerys_tasks_works_too(dispatcher: FakeDispatcher) -> None:
    assert double.AsyncResult("7") == "result of 7"
    assert double.apply((2,), None, link="x") == ("applied", (2,), None, {"link": "x"})
    assert double.chunks([1, 2], 2) == "chunks of 2"
    assert double.rate_limit == "10/m"
    with pytest.raises(AttributeError, match="colour"):
        _ = double.colour


@pytest.mark.usefixtures("dispatcher")
@pytest.mark.parametrize("given", [(5,), ("text",), (b"bytes",), ({"n": 1},), ({1},), ((1,), 5), ([1], [2])])
@pytest.mark.parametrize("call", [double.apply_async, double.signature])
def test_arguments_that_are_not_in_a_list_are_refused(call: Any, given: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match=r"^Task 'test-task.double' got args=.*, kwargs=.*: pass positional arguments"):
        call(*given)


@pytest.mark.parametrize("call", [double.delay, double.apply_async, double.s, double.si, double.apply])
def test_without_a_dispatcher_submitting_says_what_to_call(call: Any) -> None:
    with pytest.raises(errors.InitializationError, match=r"flyte\.init\(\.\.\.\).*FLYTE_CELERY_BROKER_URL"):
        call()


def test_without_a_dispatcher_other_attributes_do_not_exist() -> None:
    assert not hasattr(double, "rate_limit")
    with pytest.raises(AttributeError, match=r"rate_limit.*flyte\.init"):
        _ = double.rate_limit


@pytest.mark.parametrize("name", ["__name__", "__wrapped__", "_private", "__array__", "__qualname__"])
def test_special_names_are_never_asked_of_celery(name: str, dispatcher: FakeDispatcher) -> None:
    assert not hasattr(double, name)
    task.set_dispatcher(None)
    assert not hasattr(double, name)


# -- The current dispatcher ------------------------------------------------------------------------------------------


def test_a_dispatcher_is_told_of_earlier_and_of_later_tasks(dispatcher: FakeDispatcher) -> None:
    assert {double.name, warm.name} <= set(dispatcher.known)

    @env.task
    def defined_later() -> None: ...

    assert dispatcher.known[-1] == "test-task.defined_later"


def test_a_factory_makes_the_dispatcher_when_it_is_needed() -> None:
    made: list[FakeDispatcher] = []

    def factory() -> FakeDispatcher:
        made.append(FakeDispatcher())
        return made[-1]

    task.set_dispatcher_factory(factory)
    try:
        assert made == []
        assert double.delay(1) == double.delay(2) == "AsyncResult"
        assert len(made) == 1
        assert double.name in made[0].known
    finally:
        task.set_dispatcher_factory(None)
        task.set_dispatcher(None)


def test_a_factory_may_have_nothing_to_offer() -> None:
    task.set_dispatcher_factory(lambda: None)
    try:
        with pytest.raises(errors.InitializationError):
            double.delay(1)
    finally:
        task.set_dispatcher_factory(None)


# -- The template ----------------------------------------------------------------------------------------------------


def test_attributes_of_a_task() -> None:
    assert (double.name, double.short_name, double.func.__name__) == ("test-task.double", "double", "double")
    assert double.parent_env is not None
    assert double.parent_env() is env
    assert (double.parent_env_name, double.is_async, double_async.is_async) == ("test-task", False, True)
    assert (double.retries, double.timeout, double.cache) == (RetryStrategy(0), 0, Cache("disable"))
    assert (bound.retries, bound.timeout, bound.bind) == (RetryStrategy(3), 60, True)
    assert (double.resources, double.env_vars, double.secrets) == (env.resources, env.env_vars, "key")
    assert double.resources is env.resources
    assert double.env_vars is env.env_vars
    assert warm.reusable is reusable_env.reusable
    assert (double.triggers, double.max_inline_io_bytes, double.max_attempts) == ((), 10_485_760, 3)
    assert double.json_schema == {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    assert double.native_interface.outputs == {"o0": int}
    assert double.__doc__ == "Twice as much."


def test_sync_and_async_tasks_have_one_class_under_flytes_name() -> None:
    assert type(double) is type(double_async) is AsyncFunctionTaskTemplate is TaskTemplate


def test_a_tasks_types_are_within_reach() -> None:
    assert double.dump_call((2,), None) == double.load_call((2,), None) == ((2,), {})
    assert double.dump_partial((2,), {}) == ((2,), {})
    assert double.dump_result(2) == double.load_result(2) == 2
    with pytest.raises(TypeError, match=r"'test-task\.double' takes int for its parameter 'x'"):
        double.dump_call(("2",), None)


def test_a_task_does_not_change() -> None:
    with pytest.raises(AttributeError):
        double.timeout = 5


def test_a_task_can_be_a_key() -> None:
    assert {double: 1}[double.override()] == 1


def test_a_task_shows_its_name() -> None:
    assert repr(double) == "<task test-task.double>"
    assert repr(double.override(retries=1)) == "<task test-task.double with retries overridden>"


def test_copies_are_the_task_itself() -> None:
    assert copy.copy(double) is double
    assert copy.deepcopy({"task": double})["task"] is double


def test_a_task_is_pickled_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(double)) is double
    partial = pickle.loads(pickle.dumps(functools.partial(double, 2)))
    assert partial.func is double
    assert partial() == 4


def test_an_overridden_task_survives_a_pickle() -> None:
    overridden = double.override(retries=3, env_vars={"B": "2"}).override(interruptible=True)
    loaded = pickle.loads(pickle.dumps(overridden))
    assert loaded == overridden
    assert loaded.overrides == overridden.overrides


def test_a_pickled_task_that_does_not_exist_is_named() -> None:
    data = pickle.dumps(double).replace(b"test-task.double", b"test-task.treble")
    with pytest.raises(pickle.UnpicklingError, match=r"There is no task 'test-task\.treble' after importing"):
        pickle.loads(data)


# -- override --------------------------------------------------------------------------------------------------------


def test_an_override_is_an_equal_task_until_something_changes() -> None:
    assert double.override() is not double
    assert double.override() == double
    assert double.override(retries=3) != double
    assert double != double_async


def test_an_override_keeps_name_environment_and_original() -> None:
    changed = double.override(resources=Resources(cpu=4))
    assert (changed.resources, double.resources) == (Resources(cpu=4), Resources(cpu=1))
    assert (changed.name, changed.parent_env, changed.parent_env_name) == (double.name, double.parent_env, env.name)
    assert env.tasks[double.name] is double
    assert changed(2) == 4


@pytest.mark.parametrize("option", ["name", "image", "docs", "interface"])
def test_these_cannot_be_overridden(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} of a task cannot be overridden"):
        double.override(**{option: "x"})


def test_an_unknown_option_is_a_type_error_with_a_suggestion() -> None:
    with pytest.raises(TypeError, match=r"override\(\) has no option 'resource': did you mean 'resources'\?"):
        double.override(resource=Resources())
    with pytest.raises(TypeError):
        double.override(1)


@pytest.mark.parametrize("option", ["types", "overrides", "is_async"])
def test_what_belongs_to_the_template_itself_is_no_option(option: str) -> None:
    with pytest.raises(TypeError, match="has no option"):
        double.override(**{option: None})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("report", True),
        ("task_type", "spark"),
        ("triggers", ("t",)),
        ("parent_env", None),
        ("parent_env_name", "other"),
        ("task_resolver", "r"),
        ("resources", "bad"),
        ("short_name", "nice"),
        ("timeout", 5),
        ("timeout", Timeout(5)),
        ("timeout", timedelta(seconds=5)),
        ("env_vars", {"B": "2"}),
        ("secrets", ["other"]),
        ("service_account", "me"),
        ("pod_template", "template"),
        ("queue", "q"),
        ("max_inline_io_bytes", 5),
        ("plugin_config", "spark"),
        ("max_attempts", 5),
        ("interruptible", True),
        ("entrypoint", True),
        ("produces_artifacts", True),
        ("links", ("a",)),
    ],
)
def test_what_is_given_replaces_what_was(option: str, value: Any) -> None:
    changed = double.override(**{option: value})
    assert getattr(changed, option) == value
    assert changed.overrides == {option: value}
    assert double.overrides == {}


def test_another_function_brings_its_own_types() -> None:
    def renamed(y: str) -> str:
        return y

    changed = double.override(func=renamed)
    assert (changed.func, list(changed.native_interface.inputs)) == (renamed, ["y"])
    assert list(double.override(retries=1).native_interface.inputs) == ["x"]


def test_an_override_shares_the_types_of_its_origin() -> None:
    """So that an override for one call costs no new validators."""
    assert double.override(retries=1).types is double.types


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cache", None),
        ("cache", ""),
        ("retries", 0),
        ("timeout", 0),
        ("env_vars", {}),
        ("secrets", []),
        ("short_name", ""),
        ("queue", ""),
        ("service_account", ""),
        ("resources", None),
        ("max_inline_io_bytes", 0),
        ("links", ()),
        ("pod_template", None),
    ],
)
def test_false_values_inherit(option: str, value: Any) -> None:
    changed = bound.override(**{option: value})
    assert getattr(changed, option) == getattr(bound, option)
    assert (changed, changed.overrides) == (bound, {})


@pytest.mark.parametrize("option", ["interruptible", "entrypoint", "produces_artifacts"])
def test_switches_can_be_turned_off(option: str) -> None:
    on = double.override(**{option: True})
    assert getattr(on.override(**{option: None}), option) is True
    off = on.override(**{option: False})
    assert getattr(off, option) is False
    assert off.overrides == {option: False}


def test_caches_and_retries_are_normalised() -> None:
    assert double.override(cache="auto").cache == Cache("auto")
    assert double.override(cache=Cache("override")).cache == Cache("override")
    assert double.override(retries=2).retries == double.override(retries=RetryStrategy(2)).retries == RetryStrategy(2)


@pytest.mark.parametrize("options", [{"cache": "bogus"}, {"cache": True}, {"retries": -1}, {"retries": "x"}])
def test_bad_caches_and_retries_are_value_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        double.override(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"resources": Resources()},
        {"env_vars": {"A": "2"}},
        {"env_vars": {}},
        {"secrets": "x"},
        {"secrets": []},
        {"service_account": "x"},
        {"service_account": ""},
        {"reusable": ReusePolicy((1, 5), concurrency=3), "resources": Resources()},
    ],
    ids=str,
)
def test_replicas_that_run_already_cannot_be_changed(options: dict[str, Any]) -> None:
    name = next(option for option in options if option != "reusable")
    with pytest.raises(ValueError, match=f"^{name}=.*set reusable='off'.*'test-task-reusable.warm'"):
        warm.override(**options)
    assert warm.override(**{**options, "reusable": "off"}).reusable is None


@pytest.mark.parametrize(
    "options",
    [
        {"resources": None, "env_vars": None, "secrets": None},
        {"cache": "auto"},
        {"retries": 2},
        {"timeout": 5},
        {"queue": "q"},
        {"short_name": "s"},
        {"interruptible": True},
        {"pod_template": "p"},
        {"reusable": None},
    ],
    ids=str,
)
def test_a_reusable_task_keeps_its_policy_while_other_options_change(options: dict[str, Any]) -> None:
    assert warm.override(**options).reusable is warm.reusable


def test_reuse_that_was_turned_off_stays_off() -> None:
    off = warm.override(reusable="off")
    assert (off.reusable, off.resources) == (None, warm.resources)
    assert off.override(retries=1).reusable is None
    assert off.override(retries=1).override(resources=Resources(cpu=4)).resources == Resources(cpu=4)
    assert off.override(retries=1).overrides == {"reusable": "off", "retries": 1}


def test_a_plain_task_can_become_reusable() -> None:
    policy = ReusePolicy(3)
    assert double.override(reusable=policy).reusable is policy
    with pytest.raises(ValueError, match="resources="):
        double.override(reusable=policy, resources=Resources())


def test_the_concurrency_of_an_overriding_policy_is_not_checked() -> None:
    assert double.override(reusable=ReusePolicy(2, concurrency=4)).reusable == ReusePolicy(2, concurrency=4)


@pytest.mark.parametrize("value", ["OFF", "on", 5])
def test_other_words_are_stored_and_block_the_rest(value: Any) -> None:
    assert double.override(reusable=value).reusable == value
    with pytest.raises(ValueError, match="resources="):
        double.override(reusable=value, resources=Resources())
