"""`Dispatcher`: who carries calls of tasks out of this process, and the one that does so now.

Tasks know this protocol alone. `flyte.init` sets a dispatcher that submits through Celery; tests set their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .errors import InitializationError

if TYPE_CHECKING:
    from .task import AnyTask


class Dispatcher(Protocol):
    """Carries calls of tasks out of this process."""

    def apply_async(
        self, task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any] | None, options: dict[str, Any]
    ) -> Any:
        """Submit a call and return Celery's `AsyncResult`."""
        ...

    def signature(
        self, task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any] | None, options: dict[str, Any]
    ) -> Any:
        """A Celery signature of the task, for chains, groups and chords."""
        ...

    def celery_task(self, task: AnyTask) -> Any:
        """The registered Celery task."""
        ...

    def call(self, task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Submit a call from a sync task's body and wait for its value."""
        ...

    async def call_async(self, task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Submit a call from a task's body and wait for its value without blocking the event loop."""
        ...

    def registered(self, task: AnyTask) -> None:
        """A task was defined; also told of each one that was defined before this dispatcher became the current one."""
        ...


_templates: dict[str, AnyTask] = {}
_dispatcher: Dispatcher | None = None
_dispatcher_factory: Callable[[], Dispatcher | None] | None = None


def template(name: str) -> AnyTask | None:
    """The task of that name, if this process has defined it."""
    return _templates.get(name)


def define(task: AnyTask) -> None:
    """Make a template known by its name, in place of an earlier one, and tell the current dispatcher."""
    _templates[task.name] = task
    if _dispatcher is not None:
        _dispatcher.registered(task)


def set_dispatcher(dispatcher: Dispatcher | None) -> None:
    """Let a dispatcher carry this process's calls, and tell it of every task that is defined already."""
    global _dispatcher
    _dispatcher = dispatcher
    if dispatcher is not None:
        for task in list(_templates.values()):
            dispatcher.registered(task)


def set_dispatcher_factory(factory: Callable[[], Dispatcher | None] | None) -> None:
    """Set who is asked for a dispatcher when one is needed and none is set; it may answer None."""
    global _dispatcher_factory
    _dispatcher_factory = factory


def current_dispatcher() -> Dispatcher:
    """Who carries this process's calls.

    Raises:
        flyte_celery.errors.InitializationError: Nobody does.
    """
    if _dispatcher is None and _dispatcher_factory is not None:
        made = _dispatcher_factory()
        if made is not None and _dispatcher is not made:
            set_dispatcher(made)
    if _dispatcher is None:
        raise not_initialized()
    return _dispatcher


def not_initialized() -> InitializationError:
    """The error of whoever needs a Celery app when there is none."""
    return InitializationError(
        "ClientNotInitializedError",
        "user",
        "There is no Celery app to submit tasks to: call flyte.init(...), or flyte.init(app=...) with the app that "
        "you have, or set FLYTE_CELERY_BROKER_URL.",
    )
