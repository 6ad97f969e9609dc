"""`TaskEnvironment`: the name, the resources, the reuse policy and the settings that a group of tasks shares.

What an option means, and where it can be given:

| option | environment | `clone_with` | `task(...)` | `override(...)` |
|---|---|---|---|---|
| `image` | yes | yes | | |
| `resources`, `env_vars`, `secrets` | yes | yes | | unless reusable |
| `reusable` | yes | yes, None is off | | yes, `"off"` is off |
| `cache` | yes | yes | yes | yes |
| `service_account` | yes | yes | unless reusable | unless reusable |
| `pod_template` | yes | | unless reusable | yes |
| `queue` | yes | | yes | yes |
| `interruptible` | yes | yes | yes | yes |
| `plugin_config` | yes | | | yes |
| `depends_on`, `description`, `include` | yes | yes | | |
| `retries`, `timeout`, `short_name`, `max_inline_io_bytes`, `links` | | | yes | yes |
| `max_attempts` | yes | yes | yes | |
| `grace` | yes | yes | | |
| `buffer` | yes | yes | | |
| `labels` | yes | yes | | |
| Celery's options | | | yes | |
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, Unpack, overload

from . import registry
from .cache import Cache
from .dispatcher import define
from .environment_base import Environment
from .hooks import Hook, limit_of, with_hook
from .image import Image
from .names import task_name
from .options import (
    CELERY_OPTIONS,
    MAX_ATTEMPTS,
    MAX_INLINE_IO_BYTES,
    TASK_OPTIONS,
    TaskOptions,
    check_buffer,
    check_grace,
    check_labels,
    check_max_attempts,
    check_options,
)
from .registry import Conflict, Place, conflicts, environments
from .resources import Resources
from .retry import RetryStrategy
from .reuse import ReusePolicy
from .secret import SecretRequest
from .task import AnyTask, TaskTemplate, signature_of

__all__ = ["Conflict", "Environment", "Hook", "Place", "TaskEnvironment", "conflicts", "environments"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[[], Any])


@dataclass
class TaskEnvironment(Environment):
    """A group of tasks that share their resources, their replicas and their queue.

    ```python
    env = flyte.TaskEnvironment(
        name="digits",
        resources=flyte.Resources(cpu=1, memory="1Gi"),
        reusable=flyte.ReusePolicy(replicas=(0, 4), concurrency=8, idle_ttl=300),
    )

    @env.task
    async def classify(image: list[float]) -> int: ...
    ```
    An environment is known to the whole process by its name. The same definition made again (a reload, a notebook
    cell) replaces it; two definitions at different places are a conflict, see `conflicts`.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: The name is not valid, or `plugin_config` cannot be combined with `reusable`.
    """

    cache: str | Cache | bool | None = "disable"
    """Default for the tasks: `"auto"`, `"override"`, `"disable"` or a `Cache`. Checked when a task is made."""

    reusable: ReusePolicy | None = None
    """How many warm replicas to keep. None: every call runs in a process of its own."""

    plugin_config: Any = None
    """Configuration of a task plugin. With `reusable` its class must have a true attribute `supports_reuse`."""

    queue: str | None = None
    """Flyte's cluster queue. It is kept, and changes nothing here: the Celery queue has the environment's name."""

    max_attempts: int = MAX_ATTEMPTS
    """How often a task is started at most when its worker or replica is lost; a task's own `max_attempts` wins."""

    buffer: int = 0
    """With `reusable`: replicas that are kept ready beyond those that the work needs, until the environment rests."""

    grace: float | timedelta | None = None
    """Seconds that running tasks get to finish when a worker stops. None: the worker's setting, 25."""

    labels: Mapping[str, str] | None = None
    """Labels that a host must have to serve the environment, such as `{"zone": "a"}`. None: any host."""

    place: Place = field(init=False, compare=False, repr=False)
    """Where this environment is defined."""

    startup_hooks: tuple[Hook, ...] = field(default=(), init=False, compare=False, repr=False)
    """What `on_startup` has added, in order."""

    shutdown_hooks: tuple[Hook, ...] = field(default=(), init=False, compare=False, repr=False)
    """What `on_shutdown` has added, in order."""

    _tasks: dict[str, AnyTask] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache not in (None, False) and not isinstance(self.cache, str | Cache):
            raise self._wrong("cache", '"auto", "override", "disable" or a Cache')
        if self.reusable and not isinstance(self.reusable, ReusePolicy):
            raise self._wrong("reusable", "a ReusePolicy, or None for no reuse")
        self.reusable = self.reusable or None
        if self.reusable and self.plugin_config and not getattr(type(self.plugin_config), "supports_reuse", False):
            raise ValueError(
                f"Environment {self.name!r} cannot combine reusable with the plugin "
                f"{type(self.plugin_config).__name__}, which does not support reuse: leave out one of them."
            )
        check_max_attempts(self.max_attempts)
        check_buffer(self.buffer)
        if self.buffer and not self.reusable:
            raise ValueError(
                f"Environment {self.name!r} has buffer={self.buffer} and reusable=None, but ephemeral replicas are "
                "never kept ready. Leave buffer out, or give a ReusePolicy."
            )
        self.grace = check_grace(self.grace)
        check_labels(self.labels)
        self.place = registry.calling_place()
        registry.add_environment(self)

    @property
    def tasks(self) -> dict[str, AnyTask]:
        """The environment's tasks by their fully-qualified names, `environment.function`."""
        return dict(self._tasks)

    # -- Tasks -------------------------------------------------------------------------------------------------------

    @overload
    def task(self, func: Callable[P, R], /) -> TaskTemplate[P, R]: ...

    @overload
    def task(
        self, *, bind: Literal[True], **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[Concatenate[Any, P], R]], TaskTemplate[P, R]]: ...

    @overload
    def task(
        self, *, bind: Literal[False] = False, **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[P, R]], TaskTemplate[P, R]]: ...

    def task(self, func: Any = None, **options: Any) -> Any:
        """Make a task of a function: `@env.task`, or `@env.task(retries=3)`.

        Args:
            func: The function, sync or async. Its annotations say what may be passed and what it returns.
            short_name: Name for people. The task's name is always `environment.function`.
            cache: Whether results are reused; beats the environment's. None: the environment's. False: `"disable"`.
            retries: How often a failed call is tried again: a count, or a `RetryStrategy`.
            timeout: Seconds, a `timedelta` or a `Timeout`. 0: no limit.
            docs: Documentation to be deployed with the task.
            pod_template: Kubernetes pod template; not with `reusable`.
            report: Whether the task writes a report.
            interruptible: None: the environment's.
            max_inline_io_bytes: Largest argument or result in a message, in bytes. Default 10 MiB.
            queue: Kept, without effect: the environment's queue always wins.
            service_account: With `reusable` only the environment's own.
            triggers: A trigger, or a tuple of them.
            links: A link, or a tuple of them.
            task_resolver: Kept, without effect.
            entrypoint: Kept, without effect.
            produces_artifacts: Kept, without effect.
            max_attempts: How often the task is started at most when its worker or replica is lost. Default: the
                environment's, 3.
            bind: Whether the first parameter is the Celery task (`self`), as in Celery. It is no part of the interface.
            **options: Celery's task options: `autoretry_for`, `rate_limit`, `soft_time_limit`, `ignore_result`,
                `serializer`, `on_failure` and the others of `CeleryOptions`.

        Returns:
            The task: call it like the function, or use it like a Celery task.

        Raises:
            TypeError: An option does not exist, or has the wrong type.
            ValueError: An option has a bad value or cannot be combined with `reusable`; or the function takes `*args`
                or `**kwargs`, or is not `async def` while `concurrency` is above 1.
            AttributeError: `func` is no function.
        """
        check_options(f"@task of environment {self.name!r}", options, TASK_OPTIONS)
        if self.reusable:
            for option, own in (("pod_template", None), ("service_account", self.service_account)):
                given = options.get(option)
                if given is not None and given != own:
                    raise ValueError(
                        f"{option}={given!r} cannot be set for one task of the reusable environment {self.name!r}, "
                        "whose tasks share their replicas: set it on the environment."
                    )
        check_max_attempts(options.get("max_attempts", MAX_ATTEMPTS))

        def decorate(function: Callable[..., Any]) -> AnyTask:
            return self._make(function, options)

        return decorate if func is None else decorate(func)

    def _make(self, func: Callable[..., Any], options: dict[str, Any]) -> AnyTask:
        function = getattr(func, "__name__", None)
        if function is None:
            raise AttributeError(f"{func!r} has no attribute '__name__', so it cannot be a task: decorate a function.")
        if self.reusable and self.reusable.concurrency > 1 and not inspect.iscoroutinefunction(func):
            raise ValueError(
                f"The function {function!r} is not `async def`, but environment {self.name!r} has "
                f"concurrency={self.reusable.concurrency}, which is only supported for async tasks: make the function "
                "async, or set concurrency to 1."
            )
        name = task_name(self.name, function)
        celery_options = MappingProxyType({n: value for n, value in options.items() if n in CELERY_OPTIONS})
        bind = bool(options.get("bind", False))
        cache, retries = options.get("cache"), options.get("retries", 0)
        task = TaskTemplate[..., Any](
            name=name,
            func=func,
            parent_env=weakref.ref(self),
            parent_env_name=self.name,
            short_name=options.get("short_name") or function,
            types=signature_of(name, func, bind, celery_options),
            image=self.image,
            resources=self.resources,
            cache=Cache.of(self.cache if cache is None else "disable" if cache is False else cache),
            retries=None if retries is None else RetryStrategy.of(retries),
            timeout=options.get("timeout", 0),
            reusable=self.reusable,
            env_vars=self.env_vars,
            secrets=self.secrets,
            service_account=_first(options.get("service_account"), self.service_account),
            pod_template=_first(options.get("pod_template"), self.pod_template),
            docs=options.get("docs"),
            report=options.get("report", False),
            interruptible=_first(options.get("interruptible"), self.interruptible),
            max_inline_io_bytes=options.get("max_inline_io_bytes", MAX_INLINE_IO_BYTES),
            queue=_first(options.get("queue"), self.queue),
            triggers=_several(options.get("triggers", ())),
            links=_several(options.get("links", ())),
            task_resolver=options.get("task_resolver"),
            entrypoint=options.get("entrypoint", False),
            produces_artifacts=options.get("produces_artifacts", False),
            plugin_config=self.plugin_config,
            max_attempts=options.get("max_attempts", self.max_attempts),
            bind=bind,
            celery_options=celery_options,
        )
        self._add(task)
        return task

    def _add(self, task: AnyTask) -> None:
        earlier = self._tasks.get(task.name)
        if earlier is not None and earlier.func is not task.func:
            registry.task_replaced(self, earlier)
        self._tasks[task.name] = task
        define(task)

    @classmethod
    def from_task(cls, name: str, *tasks: AnyTask, depends_on: list[Environment] | None = None) -> Self:
        """Make an environment of tasks that belong to none yet (`task.override(parent_env=None)`).

        Their names stay as they are. All must have the same image, which becomes the environment's.

        Raises:
            TypeError: An argument is no task.
            ValueError: A task belongs to another environment, or the images differ.
        """
        for task in tasks:
            if not isinstance(task, TaskTemplate):
                raise TypeError(f"from_task({name!r}, ...) got {task!r}, which is no task: decorate it with @env.task.")
            if task.parent_env is not None:
                raise ValueError(
                    f"Task {task.name!r} belongs to environment {task.parent_env_name!r} and cannot belong to "
                    f"{name!r} as well: pass task.override(parent_env=None)."
                )
            if task.image != tasks[0].image:
                raise ValueError(
                    f"Tasks {tasks[0].name!r} and {task.name!r} have different images, so they cannot share "
                    f"environment {name!r}: give them one image."
                )
        made = cls(name=name, depends_on=depends_on or [], image=tasks[0].image if tasks else "auto")
        for task in tasks:
            # The same objects as before, so that callers who hold them reach the new environment.
            object.__setattr__(task, "parent_env", weakref.ref(made))
            object.__setattr__(task, "parent_env_name", name)
            made._add(task)
        return made

    # -- Copies ------------------------------------------------------------------------------------------------------

    def clone_with(
        self,
        name: str,
        image: str | Image | None = None,
        resources: Resources | None = None,
        env_vars: dict[str, str] | None = None,
        secrets: SecretRequest | None = None,
        depends_on: list[Environment] | None = None,
        description: str | None = None,
        interruptible: bool | None = None,
        include: tuple[str, ...] | None = None,
        service_account: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Another environment like this one: `env.clone_with("parent", reusable=None, depends_on=[env])`.

        What is not given, or None, is inherited; what is given replaces the whole value. The hooks of `on_startup` and
        `on_shutdown` are inherited, because they describe the process; tasks are not.

        Args:
            name: Name of the clone.
            **kwargs: `cache`, `max_attempts`, `grace`, `buffer`, `labels`, and `reusable`, where None turns reuse off.

        Raises:
            TypeError: An argument does not exist or has the wrong type.
            ValueError: The name is not valid.
        """
        check_options("clone_with()", kwargs, ("cache", "reusable", "max_attempts", "grace", "buffer", "labels"))
        if "reusable" in kwargs and not kwargs["reusable"]:
            kwargs.setdefault("buffer", 0)
        if kwargs.get("cache", ...) is None:
            del kwargs["cache"]
        given = {
            "image": image,
            "resources": resources,
            "env_vars": env_vars,
            "secrets": secrets,
            "depends_on": depends_on,
            "description": description,
            "interruptible": interruptible,
            "include": include,
            "service_account": service_account,
        }
        values = {attribute.name: getattr(self, attribute.name) for attribute in fields(self) if attribute.init}
        values |= {option: value for option, value in given.items() if value is not None}
        clone = type(self)(**{**values, **kwargs, "name": name})
        clone.startup_hooks, clone.shutdown_hooks = self.startup_hooks, self.shutdown_hooks
        return clone

    # -- Hooks -------------------------------------------------------------------------------------------------------

    @overload
    def on_startup(self, func: F, /) -> F: ...

    @overload
    def on_startup(self, *, timeout: float | timedelta | None = None) -> Callable[[F], F]: ...

    def on_startup(self, func: Any = None, *, timeout: float | timedelta | None = None) -> Any:
        """Run a function in every replica before it takes work, for instance to load a model.

        ```python
        @env.on_startup(timeout=300)
        def load() -> None:
            global model
            model = read_model()
        ```

        Args:
            func: Sync or async, without parameters. Hooks run in the order of their definition.
            timeout: Seconds, or a `timedelta`. None: as long as the worker allows (its setting `startup_timeout`).

        Raises:
            TypeError: `func` is not callable without arguments, or is a generator; `timeout` has the wrong type.
            ValueError: `timeout` is not above 0.
        """
        limit = limit_of(timeout)

        def decorate(function: F) -> F:
            self.startup_hooks = with_hook(self.startup_hooks, function, limit)
            return function

        return decorate if func is None else decorate(func)

    @overload
    def on_shutdown(self, func: F, /) -> F: ...

    @overload
    def on_shutdown(self, *, timeout: float | timedelta | None = None) -> Callable[[F], F]: ...

    def on_shutdown(self, func: Any = None, *, timeout: float | timedelta | None = None) -> Any:
        """Run a function in every replica that ends in good order, after its last task. As `on_startup`."""
        limit = limit_of(timeout)

        def decorate(function: F) -> F:
            self.shutdown_hooks = with_hook(self.shutdown_hooks, function, limit)
            return function

        return decorate if func is None else decorate(func)


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)
