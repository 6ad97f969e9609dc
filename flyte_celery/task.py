"""`TaskTemplate`: what `@env.task` makes of a function.

A template knows its function, its options and its typed signature, and nothing of Celery: whatever leaves this
process goes through the process's current `Dispatcher`.

```
where the call is made        task(x)                                  task.aio(x)
outside of tasks              runs the function here                   runs the function here
in a sync task's body         submits and waits                        awaitable: submits
in an async task's body       async task: awaitable, submits           awaitable: submits
                              sync task: an error that says `.aio`
```
`.forward(...)` and `.func(...)` always run the function here; `.delay(...)`, `.apply_async(...)` always submit.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
from collections.abc import Callable, Coroutine, Mapping, Set
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Self, TypeVar, overload

from . import errors
from .cache import Cache
from .context import current_run, in_event_loop
from .dispatcher import Dispatcher, current_dispatcher, set_dispatcher, set_dispatcher_factory, template
from .options import MAX_ATTEMPTS, MAX_INLINE_IO_BYTES, check_options
from .overrides import dumped
from .resources import Resources
from .retry import RetryStrategy
from .reuse import ReusePolicy
from .serialization import NativeInterface, Signature
from .tracing import check_not_traced
from .variables import check_env_vars

if TYPE_CHECKING:
    from .environment import TaskEnvironment
    from .image import Image
    from .secret import SecretRequest
    from .timeout import Timeout

__all__ = [
    "AnyTask",
    "AsyncFunctionTaskTemplate",
    "Dispatcher",
    "TaskTemplate",
    "current_dispatcher",
    "set_dispatcher",
    "set_dispatcher_factory",
]

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, repr=False, kw_only=True)
class TaskTemplate(Generic[P, R_co]):
    """A task: the function that `@env.task` decorates, with its options.

    Call it like the function; the module's page shows what happens where. It is also a Celery task: `.delay`,
    `.apply_async`, `.s`, `.si`, `.signature`, `.AsyncResult` and all other attributes of Celery's tasks work. Templates
    do not change (`override` makes another one), are equal when their options are, and pickle by the name of the task.
    """

    name: str
    """Fully-qualified name, `environment.function`; also the task's name in Celery."""

    func: Callable[..., Any]
    """The function itself."""

    parent_env: Callable[[], TaskEnvironment | None] | None = field(compare=False)
    """Weak reference to the environment: call it. It gives None when the environment is gone."""

    parent_env_name: str
    """Name of the environment, which is the queue that the task's messages go to."""

    short_name: str
    """Name for people; the function's own by default. Never part of `name`."""

    types: Signature = field(compare=False)
    """What arguments and result look like in a message, and what fits."""

    task_type: str = "python"
    image: str | Image | None = "auto"
    resources: Resources | None = None
    cache: Cache = field(default_factory=lambda: Cache("disable"))
    retries: RetryStrategy | None = field(default_factory=lambda: RetryStrategy(0))
    timeout: int | timedelta | Timeout = 0
    """As it was given; `Timeout.of` says what it means."""

    reusable: ReusePolicy | None = None
    """The environment's own policy object, unless overridden. None: every call gets a process of its own."""

    env_vars: dict[str, str] | None = None
    secrets: SecretRequest | None = None
    service_account: str | None = None
    pod_template: Any = None
    docs: Any = None
    report: bool = False
    interruptible: bool = False
    max_inline_io_bytes: int = MAX_INLINE_IO_BYTES
    queue: str | None = None
    """Flyte's cluster queue. It is kept, and changes nothing here: calls go to the environment's Celery queue. Calls
    of a task whose `queue` was overridden with another name are refused."""

    triggers: tuple[Any, ...] = ()
    links: tuple[Any, ...] = ()
    task_resolver: Any = None
    entrypoint: bool = False
    produces_artifacts: bool = False
    plugin_config: Any = None
    max_attempts: int = MAX_ATTEMPTS
    """How often the task is started at most when its worker or replica is lost; its own failures are `retries`."""

    bind: bool = False
    """Whether the function's first parameter is the Celery task (`self`), as in Celery."""

    celery_options: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    """Options of Celery's own that the decorator was given."""

    overrides: Mapping[str, Any] = field(default_factory=lambda: _NOTHING, compare=False)
    """What `override` has changed, by option, as it was given."""

    is_async: bool = field(init=False, compare=False)
    """Whether the function is a coroutine function. Generators of both kinds are not."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_async", inspect.iscoroutinefunction(self.func))
        object.__setattr__(self, "__doc__", self.func.__doc__)

    def __repr__(self) -> str:
        changed = f" with {', '.join(self.overrides)} overridden" if self.overrides else ""
        return f"<task {self.name}{changed}>"

    def __hash__(self) -> int:
        return hash(self.name)

    # -- Calls -------------------------------------------------------------------------------------------------------

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the function here, outside of tasks; submit the task and wait for its value, in a task's body.

        Returns:
            What the function returns: for an async task something to await.

        Raises:
            flyte_celery.errors.RuntimeUserError: A sync task's function failed; `__cause__` is what it raised.
            flyte_celery.errors.SyncTaskCallInAsyncContextError: A sync task is called where it would block an event
                loop that runs a task: use `await task.aio(...)`.
            flyte_celery.errors.TraceDoesNotAllowNestedTasksError: Called from a traced function.
        """
        if current_run.get() is None:
            return self.forward(*args, **kwargs) if self.is_async else self._run_here(args, kwargs)
        check_not_traced(self.name)
        dispatcher = current_dispatcher()
        if self.is_async:
            return dispatcher.call_async(self, args, kwargs)  # type: ignore[return-value]  # R_co is a coroutine here
        if in_event_loop():
            raise errors.SyncTaskCallInAsyncContextError(
                f"The sync task {self.name!r} was called by code that runs on an event loop, which it would block: "
                f"write `await {self.func.__name__}.aio(...)`."
            )
        return dispatcher.call(self, args, kwargs)  # type: ignore[no-any-return]

    @overload
    async def aio(self: TaskTemplate[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T: ...

    @overload
    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    async def aio(self: TaskTemplate[Any, Any], *args: Any, **kwargs: Any) -> Any:
        """Call a sync or async task without blocking the event loop: `await task.aio(...)`.

        Outside of tasks a sync function runs in a thread, and an async one gives its coroutine, to be awaited once
        more, as in Flyte; what they raise arrives as it is.
        """
        if current_run.get() is not None:
            check_not_traced(self.name)
            return await current_dispatcher().call_async(self, args, kwargs)
        if self.is_async:
            return self.forward(*args, **kwargs)
        import asyncio

        return await asyncio.to_thread(self.forward, *args, **kwargs)

    def forward(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the function here, always: nothing is checked, submitted or converted."""
        if self.bind:
            return self.func(self._celery_task(), *args, **kwargs)  # type: ignore[no-any-return]
        return self.func(*args, **kwargs)  # type: ignore[no-any-return]

    def _run_here(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R_co:
        try:
            return self.forward(*args, **kwargs)
        except errors.BaseRuntimeError:
            raise
        except Exception as exc:
            raise errors.raised("user", type(exc).__name__, errors.message_of(exc), original=exc) from exc

    # -- Celery's face -----------------------------------------------------------------------------------------------

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Submit a call, as Celery's `delay`; returns its `AsyncResult`."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self, args: tuple[Any, ...] | list[Any] | None = None, kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """Submit a call with Celery's options (`countdown`, `eta`, `expires`, `link`, ...); returns its `AsyncResult`.

        Raises:
            TypeError: An argument does not fit the task's signature.
        """
        return current_dispatcher().apply_async(self, self._given(args, kwargs), kwargs, options)

    def _given(self, args: Any, kwargs: Any) -> tuple[Any, ...]:
        """The positional arguments, where Celery takes them in a list."""
        if isinstance(args, str | bytes | Mapping | Set) or not (kwargs is None or isinstance(kwargs, Mapping)):
            raise self._not_given(args, kwargs)
        try:
            return tuple(args or ())
        except TypeError:
            raise self._not_given(args, kwargs) from None

    def _not_given(self, args: Any, kwargs: Any) -> TypeError:
        return TypeError(
            f"Task {self.name!r} got args={args!r}, kwargs={kwargs!r}: pass positional arguments in a tuple and named "
            'ones in a dict, as in apply_async((1,), {"name": 2}).'
        )

    def s(self, *args: Any, **kwargs: Any) -> Any:
        """A Celery signature with some or all of the arguments."""
        return current_dispatcher().signature(self, args, kwargs, {})

    def si(self, *args: Any, **kwargs: Any) -> Any:
        """A Celery signature that takes no result of the task before it."""
        return current_dispatcher().signature(self, args, kwargs, {"immutable": True})

    def signature(
        self, args: tuple[Any, ...] | list[Any] | None = None, kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """A Celery signature with arguments and options, as Celery's `task.signature`."""
        return current_dispatcher().signature(self, self._given(args, kwargs), kwargs, options)

    def apply(
        self, args: tuple[Any, ...] | list[Any] | None = None, kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """Run the task here with Celery's machinery, as Celery's `apply`; returns an `EagerResult`."""
        if self.overrides:
            options["headers"] = {**dumped(self), **(options.get("headers") or {})}
        return self._celery_task().apply(args, kwargs, **options)

    def AsyncResult(self, task_id: str, **options: Any) -> Any:  # Celery's name
        """The result of an earlier call by its id."""
        return self._celery_task().AsyncResult(task_id, **options)

    def _celery_task(self) -> Any:
        return current_dispatcher().celery_task(self)

    def __getattr__(self, name: str) -> Any:
        # Only for what is not found here: whatever else Celery's tasks have. Names with an underscore are asked for
        # by copy, pickle, inspect and the like, on objects of any kind, and are no part of Celery's face.
        if not name.startswith("_"):
            try:
                task = self._celery_task()
            except errors.InitializationError as exc:
                raise AttributeError(
                    f"{type(self).__name__!r} object has no attribute {name!r}, and no Celery task to ask: {exc}"
                ) from None
            return getattr(task, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # -- Types -------------------------------------------------------------------------------------------------------

    @property
    def native_interface(self) -> NativeInterface:
        """Parameters and outputs in Python's types."""
        return self.types.native_interface

    @property
    def json_schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments."""
        return self.types.json_schema

    def dump_call(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """See `Signature.dump_call`."""
        return self.types.dump_call(args, kwargs)

    def load_call(self, args: Any, kwargs: dict[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """See `Signature.load_call`."""
        return self.types.load_call(args, kwargs)

    def dump_partial(
        self, args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """See `Signature.dump_partial`."""
        return self.types.dump_partial(args, kwargs)

    def dump_result(self, value: Any) -> Any:
        """See `Signature.dump_result`."""
        return self.types.dump_result(value)

    def load_result(self, value: Any) -> Any:
        """See `Signature.load_result`."""
        return self.types.load_result(value)

    # -- Other templates ---------------------------------------------------------------------------------------------

    def override(
        self,
        *,
        short_name: str | None = None,
        resources: Resources | None = None,
        cache: str | Cache | None = None,
        retries: int | RetryStrategy = 0,
        timeout: int | timedelta | Timeout = 0,
        reusable: ReusePolicy | Literal["off"] | None = None,
        env_vars: dict[str, str] | None = None,
        secrets: SecretRequest | None = None,
        service_account: str | None = None,
        max_inline_io_bytes: int | None = None,
        pod_template: Any = None,
        queue: str | None = None,
        interruptible: bool | None = None,
        entrypoint: bool | None = None,
        produces_artifacts: bool | None = None,
        links: tuple[Any, ...] = (),
        plugin_config: Any = None,
        **kwargs: Any,
    ) -> Self:
        """The same task with other options, for instance for one call: `task.override(retries=3)(x)`.

        An option that is not given, or that is false (0, `""`, `{}`), is inherited; only `interruptible`,
        `entrypoint` and `produces_artifacts` take False. The name, image, documentation and interface stay.

        Args:
            reusable: Another policy, or `"off"` for a process of its own. While a policy applies, `resources`,
                `env_vars`, `secrets` and `service_account` are those of its replicas and cannot be overridden.

        Returns:
            A new template. It is not listed in the environment's `tasks`.

        Raises:
            ValueError: An option cannot be overridden, or has a bad value.
            TypeError: An option does not exist, or a variable of `env_vars` is no text.
        """
        for option in ("name", "image", "docs", "interface"):
            if option in kwargs:
                raise ValueError(f"The {option} of a task cannot be overridden: decorate another function for that.")
        check_options("override()", kwargs, _OVERRIDABLE)
        policy: Any = reusable or self.reusable
        if policy == "off":
            policy = None
        fixed = {
            "resources": resources,
            "env_vars": env_vars,
            "secrets": secrets,
            "service_account": service_account,
        }
        for option, value in fixed.items():
            if policy and value is not None:
                raise ValueError(
                    f"{option}={value!r} cannot be overridden while the task is reusable, because its replicas run "
                    f"already: set reusable='off' as well, for task {self.name!r}."
                )
        if isinstance(env_vars, dict):
            check_env_vars(f"override() of {self.name!r}", env_vars)
        given = {
            **fixed,
            "short_name": short_name,
            "cache": cache,
            "retries": retries,
            "timeout": timeout,
            "reusable": reusable,
            "max_inline_io_bytes": max_inline_io_bytes,
            "pod_template": pod_template,
            "queue": queue,
            "links": links,
            "plugin_config": plugin_config,
        }
        switches = {
            "interruptible": interruptible,
            "entrypoint": entrypoint,
            "produces_artifacts": produces_artifacts,
        }
        changes = {option: value for option, value in given.items() if value}
        changes |= {option: value for option, value in switches.items() if value is not None}
        changes |= kwargs
        overrides = MappingProxyType({**self.overrides, **changes})
        if "cache" in changes:
            changes["cache"] = Cache.of(cache)
        if "retries" in changes:
            changes["retries"] = RetryStrategy.of(retries)
        if "links" in changes and not isinstance(links, tuple):
            changes["links"] = (links,)
        if kwargs.keys() & {"func", "bind", "celery_options"}:
            interface = {name: kwargs.get(name, getattr(self, name)) for name in ("func", "bind", "celery_options")}
            changes["types"] = signature_of(self.name, **interface)
        return replace(self, **{**changes, "reusable": policy, "overrides": overrides})

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, (self.func.__module__, self.name, dict(self.overrides))


#: Any task at all.
AnyTask = TaskTemplate[Any, Any]

#: Flyte's name for what `@env.task` returns, for sync functions as well.
AsyncFunctionTaskTemplate = TaskTemplate

_OVERRIDABLE = {attribute.name for attribute in fields(TaskTemplate) if attribute.init} - {
    "name",
    "image",
    "docs",
    "types",
    "overrides",
}


def signature_of(name: str, func: Callable[..., Any], bind: bool, celery_options: Mapping[str, Any]) -> Signature:
    """The typed signature of a task's function.

    Raises:
        ValueError: If the function takes `*args` or `**kwargs`.
    """
    return Signature(func, bind, name, pickled=celery_options.get("serializer") == "pickle")


def _find(module: str, name: str, overrides: dict[str, Any]) -> AnyTask:
    """The template that was pickled by its name."""
    task = template(name)
    if task is None:
        importlib.import_module(module)
        task = template(name)
    if task is None:
        raise pickle.UnpicklingError(
            f"There is no task {name!r} after importing {module!r}: define it at the top level of that module."
        )
    return task.override(**overrides) if overrides else task
