"""What a task's body knows about its run: `ctx()`, `group` and `custom_context`.

One context variable says it all: `current_run` holds a `RunContext` while a task's body runs, and None elsewhere, so
"is this code inside a task?" is `current_run.get() is not None`. asyncio tasks and `asyncio.to_thread` copy context
variables, so it stays right under concurrency; a bare `threading.Thread` starts outside of any task.
"""

from __future__ import annotations

import contextvars
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

from .names import CHAIN_HEADER, CUSTOM_CONTEXT_HEADER, RUN_CACHE_HEADER

T = TypeVar("T")

#: Most tasks that `RunContext.chain` hands on: each message carries them.
MOST_OF_A_CHAIN = 50


@dataclass(frozen=True, slots=True)
class ActionID:
    """What identifies one task execution."""

    name: str
    """The task's id, as in Celery and Flower; the same for all attempts."""

    run_name: str
    """The id of the task that everything began with: Celery's root id."""

    project: str | None = None
    """Flyte's project; nothing here sets it."""

    domain: str | None = None
    """Flyte's domain; nothing here sets it."""

    org: str | None = None
    """Flyte's organisation; nothing here sets it."""


@dataclass(frozen=True, slots=True)
class GroupData:
    """The group that calls belong to."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What `ctx()` returns inside a task."""

    task_id: str
    """Id of this task."""

    root_id: str
    """Id of the task that everything began with."""

    environment: str
    """Name of the task's environment."""

    task: str | None = None
    """The task's name, `environment.function`."""

    is_async: bool = False
    """Whether the body is a coroutine on the replica's event loop."""

    mode: str = "remote"
    """`"remote"` in a replica, `"local"` where `flyte.run` runs a task in the calling process."""

    attempt_number: int = 0
    """0 for the first attempt; retries count, and starts that were lost. Always 0 in local runs."""

    version: str = ""
    """Version of the deployed code; empty when nobody gave it one."""

    worker: str | None = None
    """Node name of the worker, `ENV@host`. None in local runs."""

    replica: str | None = None
    """Name of the replica within its worker. None in local runs."""

    custom_context: Mapping[str, str] = field(default_factory=dict)
    """See `get_custom_context`."""

    group_data: GroupData | None = None
    """The innermost `group` that this code is in. A child task starts without one."""

    chain: tuple[str, ...] = ()
    """This task, and before it those that called it, as `name[id]`; of a very long chain the end."""

    run_cache: str | None = None
    """`"disable"` where the run uses no cache, `"override"` where it renews what is cached, for all of its tasks."""

    data: dict[str, Any] = field(default_factory=dict, compare=False)
    """A place for this task's own notes; nothing here reads it, and child tasks do not get it."""

    started: float = field(default_factory=time.time, compare=False)
    """When this attempt's body began, in seconds since 1970."""

    # Flyte's names for parts of its back end that do not exist here.
    raw_data_path: ClassVar[None] = None
    input_path: ClassVar[None] = None
    output_path: ClassVar[None] = None
    run_base_dir: ClassVar[None] = None
    report: ClassVar[None] = None
    checkpoint_paths: ClassVar[None] = None
    checkpoint: ClassVar[None] = None
    code_bundle: ClassVar[None] = None
    compiled_image_cache: ClassVar[None] = None
    interactive_mode: ClassVar[bool] = False

    @classmethod
    def of_task(
        cls,
        *,
        task_id: str,
        root_id: str,
        environment: str,
        attempt_number: int = 0,
        is_async: bool = False,
        headers: Mapping[str, Any] | None = None,
        hostname: str | None = None,
        task: str | None = None,
        replica: str | None = None,
        version: str = "",
    ) -> RunContext:
        """The context of a task that was received as a message.

        Args:
            headers: The message's headers, of which those from `outgoing_headers` are used.
            hostname: Node name of the worker.
        """
        return cls(
            task_id=task_id,
            root_id=root_id,
            environment=environment,
            task=task,
            is_async=is_async,
            attempt_number=attempt_number,
            version=version,
            worker=hostname,
            replica=replica,
            custom_context=(headers or {}).get(CUSTOM_CONTEXT_HEADER) or {},
            run_cache=(headers or {}).get(RUN_CACHE_HEADER),
            chain=(*((headers or {}).get(CHAIN_HEADER) or ()), f"{task or environment}[{task_id}]"),
        )

    @classmethod
    def local(cls, *, environment: str, task: str | None = None, is_async: bool = False) -> RunContext:
        """The context of a task that runs in the calling process, as a child of the current task if there is one."""
        parent = current_run.get()
        task_id = str(uuid.uuid4())
        return cls(
            task_id=task_id,
            root_id=task_id if parent is None else parent.root_id,
            environment=environment,
            task=task,
            is_async=is_async,
            mode="local",
            custom_context=_outgoing_custom_context(),
        )

    @property
    def action(self) -> ActionID:
        """What identifies this execution."""
        return ActionID(self.task_id, self.root_id)

    @property
    def task_action(self) -> ActionID:
        """The same as `action`: a traced function has no action of its own here."""
        return self.action

    @property
    def run_start_time(self) -> datetime:
        """When this attempt's body began, in UTC."""
        return datetime.fromtimestamp(self.started, UTC)

    @property
    def disable_run_cache(self) -> bool:
        """Whether the run was started with `with_runcontext(disable_run_cache=True)`."""
        return self.run_cache == "disable"

    def is_in_cluster(self) -> bool:
        """Whether the task runs in a replica, and not in the process that called it."""
        return self.mode != "local"


class _Outside(RunContext):
    """What `ctx()` returns outside a task. Its declared types are those that task bodies want to see."""

    __slots__ = ()

    action = task_action = run_start_time = interactive_mode = disable_run_cache = None  # type: ignore[assignment]

    def __init__(self) -> None:
        for attribute in fields(RunContext):
            object.__setattr__(self, attribute.name, None)
        object.__setattr__(self, "attempt_number", 0)

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "<not in a task>"

    def is_in_cluster(self) -> bool:
        return False


_OUTSIDE = _Outside()

#: The run that the current code belongs to. None outside of tasks.
current_run: ContextVar[RunContext | None] = ContextVar("flyte_celery_run", default=None)

#: What `custom_context` holds outside of tasks, for the runs that are submitted from there.
_custom_outside: ContextVar[Mapping[str, str]] = ContextVar("flyte_celery_custom_context")


def ctx() -> RunContext:
    """The current task's context.

    Outside of tasks it is a false object whose attributes are None (`attempt_number` is 0), so that code which runs
    in both places needs no `if`:

    ```python
    logger.info("attempt %d", flyte.ctx().attempt_number)
    ```
    """
    return current_run.get() or _OUTSIDE


@contextmanager
def group(name: str) -> Iterator[None]:
    """Give the calls made in a `with` block a common name, for people who look at them. Does nothing outside tasks."""
    run = current_run.get()
    if run is None:
        yield
        return
    token = current_run.set(replace(run, group_data=GroupData(name)))
    try:
        yield
    finally:
        current_run.reset(token)


@contextmanager
def custom_context(**values: str) -> Iterator[None]:
    """Hand values to all tasks called in a `with` block, and to the tasks that those call.

    Inner values win over outer ones of the same name and are undone at the end of the block. Used outside of tasks
    it applies to the runs submitted in the block.

    Args:
        **values: Strings; they travel in the headers of messages.
    """
    run = current_run.get()
    merged = {**_outgoing_custom_context(), **values}
    if run is None:
        outside = _custom_outside.set(merged)
        try:
            yield
        finally:
            _custom_outside.reset(outside)
        return
    inside = current_run.set(replace(run, custom_context=merged))
    try:
        yield
    finally:
        current_run.reset(inside)


def get_custom_context() -> dict[str, str]:
    """The values that reached this task through `custom_context`; empty outside of tasks."""
    run = current_run.get()
    return {} if run is None else dict(run.custom_context)


#: What `with_run_cache` holds outside of tasks.
_run_cache_outside: ContextVar[str | None] = ContextVar("flyte_celery_run_cache", default=None)


def run_cache() -> str | None:
    """What the run that this code belongs to, or is about to start, says about the cache."""
    run = current_run.get()
    return _run_cache_outside.get() if run is None else run.run_cache


@contextmanager
def with_run_cache(what: str | None) -> Iterator[None]:
    """Have the calls made in a `with` block, and those that they make, use the cache in another way.

    Args:
        what: `"disable"`, `"override"`, or None to leave it as it is.
    """
    run = current_run.get()
    if what is None:
        yield
    elif run is None:
        outside = _run_cache_outside.set(what)
        try:
            yield
        finally:
            _run_cache_outside.reset(outside)
    else:
        inside = current_run.set(replace(run, run_cache=what))
        try:
            yield
        finally:
            current_run.reset(inside)


def _outgoing_custom_context() -> Mapping[str, str]:
    run = current_run.get()
    return _custom_outside.get({}) if run is None else run.custom_context


def outgoing_headers() -> dict[str, Any]:
    """Message headers that give a task submitted now what it inherits from here; `RunContext.of_task` reads them."""
    custom = _outgoing_custom_context()
    headers: dict[str, Any] = {CUSTOM_CONTEXT_HEADER: dict(custom)} if custom else {}
    if (cache := run_cache()) is not None:
        headers[RUN_CACHE_HEADER] = cache
    run = current_run.get()
    if run is not None and run.chain:
        headers[CHAIN_HEADER] = list(run.chain[-MOST_OF_A_CHAIN:])
    return headers


# -- Coroutines ------------------------------------------------------------------------------------------------------


def in_event_loop() -> bool:
    """Whether this thread's event loop is running, so that blocking here would block it."""
    import asyncio  # loaded where something asynchronous may run: importing the package stays light

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def run_coroutine_here(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own, on a new thread when this thread's loop is running."""
    import asyncio

    if not in_event_loop():
        return asyncio.run(coroutine)
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(coroutine))
        except BaseException as exc:
            failure.append(exc)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name="flyte-celery-coroutine")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


_coroutine_runner: Callable[[Coroutine[Any, Any, Any]], Any] = run_coroutine_here


def set_coroutine_runner(runner: Callable[[Coroutine[Any, Any, Any]], Any] | None) -> None:
    """Replace what `run_coroutine` does in this process; None restores the default. A replica installs its bridge."""
    global _coroutine_runner
    _coroutine_runner = runner or run_coroutine_here


def run_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code.

    By default in an event loop of its own, on this thread, or on a new one when this thread's loop is running (which
    is then blocked); the context variables are the caller's.
    """
    return _coroutine_runner(coroutine)  # type: ignore[no-any-return]
