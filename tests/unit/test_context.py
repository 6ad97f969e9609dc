"""What a task's body knows about its run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

import pytest

from flyte_celery import context
from flyte_celery.context import RunContext, ctx, custom_context, get_custom_context, group
from flyte_celery.errors import TraceDoesNotAllowNestedTasksError
from flyte_celery.names import RUN_CACHE_HEADER
from flyte_celery.tracing import check_not_traced, trace


@contextmanager
def running(run: RunContext | None = None) -> Iterator[RunContext]:
    """Be the body of a task."""
    run = run or RunContext.of_task(task_id="t1", root_id="r1", environment="env")
    token = context.current_run.set(run)
    try:
        yield run
    finally:
        context.current_run.reset(token)


# -- ctx() -----------------------------------------------------------------------------------------------------------


def test_outside_a_task_the_context_is_false() -> None:
    assert not ctx()
    assert repr(ctx()) == "<not in a task>"


@pytest.mark.parametrize(
    "attribute",
    [
        *("action", "version", "raw_data_path", "input_path", "output_path", "run_base_dir", "report", "group_data"),
        *("checkpoint_paths", "code_bundle", "compiled_image_cache", "data", "mode", "interactive_mode"),
        *("custom_context", "disable_run_cache", "run_start_time", "task_action", "checkpoint"),
        *("environment", "task", "worker", "replica"),
    ],
)
def test_outside_a_task_attributes_are_none(attribute: str) -> None:
    assert getattr(ctx(), attribute) is None


def test_outside_a_task_it_is_the_first_attempt_and_no_cluster() -> None:
    assert ctx().attempt_number == 0
    assert ctx().is_in_cluster() is False


@pytest.mark.parametrize("inside", [True, False])
def test_an_unknown_attribute_is_an_attribute_error(inside: bool) -> None:
    with running() if inside else group("nothing"), pytest.raises(AttributeError):
        _ = ctx().attempts


def test_inside_a_task_the_context_tells_of_it() -> None:
    run = RunContext.of_task(
        task_id="t1",
        root_id="r1",
        environment="env",
        task="env.f",
        attempt_number=2,
        is_async=True,
        hostname="env@node",
        replica="3",
        version="v7",
    )
    with running(run):
        assert ctx()
        assert (ctx().action.name, ctx().action.run_name) == ("t1", "r1")
        assert ctx().task_action == ctx().action
        assert (ctx().attempt_number, ctx().version, ctx().mode, ctx().is_in_cluster()) == (2, "v7", "remote", True)
        assert (ctx().environment, ctx().task, ctx().worker, ctx().replica) == ("env", "env.f", "env@node", "3")
        assert (ctx().group_data, ctx().custom_context) == (None, {})
        assert (ctx().raw_data_path, ctx().report, ctx().checkpoint) == (None, None, None)
        assert abs(datetime.now(UTC) - ctx().run_start_time).total_seconds() < 5
    assert not ctx()


def test_a_context_cannot_be_changed() -> None:
    with running(), pytest.raises(AttributeError):
        ctx().mode = "local"


def test_a_local_run_is_no_cluster_and_always_the_first_attempt() -> None:
    run = RunContext.local(environment="env", task="env.f")
    assert (run.mode, run.is_in_cluster(), run.attempt_number) == ("local", False, 0)
    assert run.action.name == run.action.run_name


def test_a_local_child_belongs_to_its_parents_run() -> None:
    with running(), custom_context(a="1"), group("g"):
        child = RunContext.local(environment="env")
    assert (child.root_id, child.custom_context, child.group_data) == ("r1", {"a": "1"}, None)
    assert child.task_id != "t1"


def test_asyncio_tasks_see_their_own_run() -> None:
    async def body(name: str) -> str:
        with running(RunContext.of_task(task_id=name, root_id="r", environment="env")):
            await asyncio.sleep(0)
            return await asyncio.to_thread(lambda: ctx().action.name)

    async def both() -> list[str]:
        return await asyncio.gather(body("a"), body("b"))

    assert asyncio.run(both()) == ["a", "b"]


# -- group -----------------------------------------------------------------------------------------------------------


def test_a_group_names_what_is_inside_it() -> None:
    seen = []
    with running():
        with group("outer"):
            seen.append(ctx().group_data)
            with group("inner"):
                seen.append(ctx().group_data)
            seen.append(ctx().group_data)
        assert ctx().group_data is None
    assert [data.name for data in seen if data] == ["outer", "inner", "outer"]


def test_a_group_ends_with_its_block_also_when_it_raises() -> None:
    with running():
        with pytest.raises(KeyError), group("g"):
            raise KeyError
        assert ctx().group_data is None


def test_a_group_outside_of_tasks_does_nothing() -> None:
    with group("g"):
        assert ctx().group_data is None


# -- The cache of a run ----------------------------------------------------------------------------------------------


def test_what_a_run_says_about_the_cache_reaches_its_tasks() -> None:
    """And those that they call; the innermost word counts, and saying nothing leaves it as it is."""
    assert context.run_cache() is None and context.outgoing_headers() == {}
    with context.with_run_cache("disable"):
        headers = context.outgoing_headers()
        with context.with_run_cache("override"):
            assert context.run_cache() == "override"
        with context.with_run_cache(None):
            assert context.run_cache() == "disable"
    assert context.run_cache() is None
    with running(RunContext.of_task(task_id="t", root_id="r", environment="env", headers=headers)):
        assert ctx().disable_run_cache is True
        assert RUN_CACHE_HEADER in context.outgoing_headers()
        with context.with_run_cache("override"):
            assert context.outgoing_headers()[RUN_CACHE_HEADER] == "override"
    with running():
        assert ctx().disable_run_cache is False
        assert RUN_CACHE_HEADER not in context.outgoing_headers()


# -- custom_context --------------------------------------------------------------------------------------------------


def test_custom_context_merges_and_is_undone() -> None:
    with running():
        with custom_context(a="1"):
            with custom_context(a="2", b="3"):
                assert get_custom_context() == {"a": "2", "b": "3"} == ctx().custom_context
            assert get_custom_context() == {"a": "1"}
        assert get_custom_context() == {}


def test_there_is_no_custom_context_outside_of_tasks() -> None:
    with custom_context(a="1"):
        assert get_custom_context() == {}


def test_what_is_returned_is_a_copy() -> None:
    with running(), custom_context(a="1"):
        get_custom_context()["a"] = "2"
        assert get_custom_context() == {"a": "1"}


@pytest.mark.parametrize("inside", [True, False])
def test_custom_context_reaches_submitted_tasks_through_their_headers(inside: bool) -> None:
    with running() if inside else group("nothing"), custom_context(a="1", b="2"):
        headers = context.outgoing_headers()
    child = RunContext.of_task(task_id="t2", root_id="r1", environment="env", headers={**headers, "other": 1})
    assert child.custom_context == {"a": "1", "b": "2"}


def test_without_custom_context_there_is_no_header() -> None:
    assert context.outgoing_headers() == {}
    assert RunContext.of_task(task_id="t", root_id="r", environment="e", headers=None).custom_context == {}


# -- run_coroutine ---------------------------------------------------------------------------------------------------

VARIABLE: ContextVar[str] = ContextVar("variable", default="unset")


async def what_it_sees() -> tuple[str, str]:
    await asyncio.sleep(0)
    return VARIABLE.get(), threading.current_thread().name


async def failing() -> None:
    raise KeyError("inside")


def test_a_coroutine_runs_on_this_thread_with_the_callers_context() -> None:
    token = VARIABLE.set("mine")
    try:
        assert context.run_coroutine(what_it_sees()) == ("mine", threading.current_thread().name)
    finally:
        VARIABLE.reset(token)


def test_under_a_running_loop_a_coroutine_runs_on_another_thread_with_the_callers_context() -> None:
    async def main() -> tuple[str, str]:
        VARIABLE.set("mine")
        return context.run_coroutine(what_it_sees())

    assert asyncio.run(main()) == ("mine", "flyte-celery-coroutine")


@pytest.mark.parametrize("in_loop", [True, False])
def test_what_a_coroutine_raises_reaches_the_caller(in_loop: bool) -> None:
    async def main() -> None:
        context.run_coroutine(failing())

    with pytest.raises(KeyError, match="inside"):
        asyncio.run(main()) if in_loop else context.run_coroutine(failing())


def test_a_replica_can_replace_the_runner() -> None:
    def runner(coroutine: object) -> str:
        coroutine.close()
        return "bridged"

    context.set_coroutine_runner(runner)
    try:
        assert context.run_coroutine(failing()) == "bridged"
    finally:
        context.set_coroutine_runner(None)
    with pytest.raises(KeyError):
        context.run_coroutine(failing())


# -- trace -----------------------------------------------------------------------------------------------------------


def call_a_task() -> None:
    """What a task does first when it is called."""
    check_not_traced("env.child")


@trace
def traced() -> str:
    """Help."""
    call_a_task()
    return "value"


@trace
async def traced_async() -> str:
    await asyncio.sleep(0)
    call_a_task()
    return "value"


@trace
def traced_generator() -> Generator[int, str, str]:
    """A helper that is resumed with a value, and hears what is thrown into it."""
    call_a_task()
    try:
        received = yield 1
    except KeyError:
        received = "thrown"
    call_a_task()
    return received


@trace
async def traced_async_generator() -> AsyncIterator[int]:
    call_a_task()
    yield 1
    call_a_task()
    yield 2


async def everything(generator: AsyncIterator[int]) -> list[int]:
    return [value async for value in generator]


def send_to(generator: Generator[int, str, str]) -> str:
    assert next(generator) == 1
    try:
        generator.send("sent")
    except StopIteration as end:
        return str(end.value)
    raise AssertionError("The generator did not end.")


def test_outside_of_tasks_a_trace_changes_nothing() -> None:
    assert (traced(), traced.__name__, traced.__doc__) == ("value", "traced", "Help.")
    assert asyncio.run(traced_async()) == "value"
    assert send_to(traced_generator()) == "sent"
    assert asyncio.run(everything(traced_async_generator())) == [1, 2]


def test_a_traced_generator_hears_what_is_thrown_into_it() -> None:
    generator = traced_generator()
    next(generator)
    with pytest.raises(StopIteration) as end:
        generator.throw(KeyError())
    assert end.value.value == "thrown"


def test_a_traced_generator_can_be_closed() -> None:
    closed = []

    @trace
    def generator() -> Iterator[int]:
        try:
            yield 1
        finally:
            closed.append("sync")

    @trace
    async def async_generator() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closed.append("async")

    async def first() -> None:
        steps = async_generator()
        await anext(steps)
        await steps.aclose()

    steps = generator()
    next(steps)
    steps.close()
    asyncio.run(first())
    assert closed == ["sync", "async"]


def test_a_traced_async_generator_hears_what_is_thrown_into_it() -> None:
    @trace
    async def forgiving() -> AsyncIterator[str]:
        try:
            yield "first"
        except KeyError:
            yield "thrown"

    async def main() -> str:
        steps = forgiving()
        await anext(steps)
        return str(await steps.athrow(KeyError()))

    assert asyncio.run(main()) == "thrown"


@pytest.mark.parametrize(
    "call",
    [
        traced,
        lambda: asyncio.run(traced_async()),
        lambda: next(traced_generator()),
        lambda: asyncio.run(everything(traced_async_generator())),
    ],
    ids=["function", "coroutine", "generator", "async generator"],
)
def test_a_traced_function_must_not_call_a_task(call: object) -> None:
    with running(), pytest.raises(TraceDoesNotAllowNestedTasksError, match=r"traced.*'env.child'.*forward"):
        call()


def test_tasks_may_be_called_again_after_a_traced_function() -> None:
    with running():
        with pytest.raises(TraceDoesNotAllowNestedTasksError):
            traced()
        call_a_task()


def test_who_consumes_a_traced_generator_is_not_traced() -> None:
    @trace
    def numbers() -> Iterator[int]:
        yield from (1, 2)

    @trace
    async def numbers_async() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def consume() -> None:
        async for _ in numbers_async():
            call_a_task()

    with running():
        for _ in numbers():
            call_a_task()
        asyncio.run(consume())


def test_a_task_that_runs_inside_a_traced_function_is_not_traced() -> None:
    """Celery's eager mode runs a submitted task in place; its children are not the traced function's."""

    @trace
    def submits_eagerly() -> None:
        with running(RunContext.of_task(task_id="t2", root_id="r1", environment="env")):
            call_a_task()

    with running():
        submits_eagerly()
