"""The one publish path: `.delay`, `flyte.run`, `await child(x)` and `flyte.map` all end here."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import states
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError
from celery.utils.serialization import UnpickleableExceptionWrapper

from .. import context, embedded, errors, overrides
from ..environment import environments
from ..queues import environment_queue
from ..registry import check_conflicts
from . import local
from .batch import Batch, Turn
from .caching import answer_all, answer_async
from .celery_task import make_task
from .publish import Call, Publisher
from .results import Meta, outcome, wait_for

if TYPE_CHECKING:
    from celery import Celery

    from ..task import TaskTemplate

    AnyTask = TaskTemplate[Any, Any]


logger = logging.getLogger("flyte_celery")

#: Seconds that a revocation may keep the one waiting who is being ended: kombu tries for ever to reach its broker.
REVOKE_PATIENCE = 5.0


class CeleryDispatcher:
    """Submits an app's environment tasks.

    Args:
        app: The Celery app.
        embedded_home: Project directory of the bundled Redis, when that is the broker.
    """

    def __init__(self, app: Celery, embedded_home: Path | None = None) -> None:
        self.app = app
        self.embedded_home = embedded_home
        self.publisher = Publisher(app, self.ensure_broker)
        self._broker_started = False

    # -- Registration ------------------------------------------------------------------------------------------------

    def register_all(self, **_: Any) -> None:
        """Register every task that is defined so far; the app has just been finalized."""
        for environment in environments().values():
            for task in environment.tasks.values():
                self.registered(task)

    def registered(self, task: AnyTask) -> None:
        """A task was defined; before the app is finalized it only waits for `register_all`."""
        if self.app.finalized:
            make_task(self.app, task, environment_queue(self.app, task.parent_env_name), self.publisher)

    def celery_task(self, task: AnyTask) -> Any:
        """The registered Celery task of a template."""
        return self.app.tasks[task.name]

    def ensure_broker(self) -> None:
        """Start the bundled Redis when it is this app's broker and does not run."""
        if self.embedded_home is not None and not self._broker_started:
            embedded.start(self.embedded_home)
            self._broker_started = True

    @property
    def has_broker(self) -> bool:
        """Whether there is somewhere to submit to: a configured broker, or a bundled Redis that runs."""
        if self.embedded_home is not None:
            return embedded.running(self.embedded_home) is not None
        return bool(self.app.conf.broker_url or self.app.conf.broker_write_url)

    # -- Celery's face -----------------------------------------------------------------------------------------------

    def apply_async(
        self, task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any] | None, options: dict[str, Any]
    ) -> Any:
        """Submit, and return the result's handle.

        Raises:
            ValueError: Two definitions claim one name in this process; names both places.
        """
        check_conflicts()
        return self.celery_task(task).apply_async(args, kwargs, **_with_overrides(task, options))

    def add_to(
        self, batch: Batch | Turn, task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> Any:
        """Submit with others in one write; returns what the batch does.

        Raises:
            TypeError: An argument does not fit the task's signature.
        """
        celery_task = self.celery_task(task)
        call = celery_task.outgoing(args, kwargs, _with_overrides(task, options), sends=batch.begin())
        return batch.add(celery_task, *call)

    def is_cached(self, task: AnyTask) -> bool:
        """Whether calls of a task may be answered from the cache."""
        headers = _with_overrides(task, {}).get("headers")
        return bool(self.celery_task(task).caching.concerns(headers))

    def answers(
        self, task: AnyTask, calls: list[tuple[tuple[Any, ...], dict[str, Any]]], options: dict[str, Any]
    ) -> list[Any]:
        """The results of those calls that are in the cache, None for the others; asked in one round trip."""
        return answer_all(self.celery_task(task), calls, _with_overrides(task, options))

    def signature(
        self, task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any] | None, options: dict[str, Any]
    ) -> Any:
        """A Celery signature; its arguments are in JSON form already, because signatures travel inside messages."""
        args, kwargs = task.dump_partial(args, kwargs)
        return self.celery_task(task).signature(args, kwargs, **_with_overrides(task, options))

    # -- Flyte's face ------------------------------------------------------------------------------------------------

    def call(self, task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Submit a child from a sync task and wait for its value; a task that is cancelled meanwhile revokes it."""
        if _is_local():
            return local.call(task, args, kwargs)
        result = self.apply_async(task, args, kwargs, {})
        try:
            meta = wait_for(result)
        except BaseException:  # the task was cancelled while it waited
            self.revoke(result.id)
            raise
        return value_of(task, meta)

    async def submit(self, task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Submit without blocking the event loop, and return Celery's result.

        Raises:
            kombu.exceptions.OperationalError: The broker cannot be reached.
        """
        check_conflicts()
        if (stored := await self._stored(task, args, kwargs)) is not None:
            return stored
        call, published = self.add_to(Turn.current(self.publisher), task, args, kwargs, {})
        result = call.handle() if isinstance(call, Call) else call
        await asyncio.shield(published)  # others wait for it, too
        return result

    async def call_async(self, task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Submit a child from an async task and wait for its value; cancelling the wait revokes the child."""
        if _is_local():
            return await local.call_async(task, args, kwargs)
        check_conflicts()
        if (stored := await self._stored(task, args, kwargs)) is not None:
            return value_of(task, await outcome(stored))
        call, published = self.add_to(Turn.current(self.publisher), task, args, kwargs, {})
        try:
            await asyncio.shield(published)
            meta = await outcome(call)
        except asyncio.CancelledError:
            asyncio.get_running_loop().run_in_executor(None, self.revoke, call.id)
            raise
        return value_of(task, meta)

    def revoke(self, *task_ids: str) -> None:
        """End calls whose values nobody wants any more, running ones, too; never raises.

        A broker that does not answer keeps the caller waiting for `REVOKE_PATIENCE` seconds, and is told when it does.
        """
        revoking = threading.Thread(target=self._revoke, args=(task_ids,), name="flyte-celery-revoke", daemon=True)
        revoking.start()
        revoking.join(REVOKE_PATIENCE)

    def _revoke(self, task_ids: tuple[str, ...]) -> None:
        try:
            self.app.control.revoke(list(task_ids), terminate=True)
        except Exception as exc:
            logger.warning("%s cannot be revoked: %s", ", ".join(task_ids), exc)

    async def _stored(self, task: AnyTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call that is in the cache."""
        celery_task, options = self.celery_task(task), _with_overrides(task, {})
        if not celery_task.caching.concerns(options.get("headers")):
            return None
        return await answer_async(celery_task, args, kwargs, options)


def value_of(task: AnyTask, meta: Meta) -> Any:
    """The value of a finished call, with the task's return type.

    Raises:
        flyte_celery.errors.RuntimeUserError: The task failed; also an instance of the class that it raised.
        flyte_celery.errors.RuntimeSystemError: The platform failed it.
    """
    if meta["status"] == states.SUCCESS:
        return task.load_result(meta["result"])
    raise failure(meta)


def failure(meta: Meta) -> errors.BaseRuntimeError:
    """A failed call as Flyte's face raises it."""
    original = meta["result"]
    if not isinstance(original, BaseException):
        original = RuntimeError(repr(original))
    kind, code, message = "user", type(original).__name__, errors.message_of(original)
    match original:
        case errors.BaseRuntimeError():  # what others have under these names is their own
            kind, code = getattr(original, "kind", kind), getattr(original, "code", None) or code
        case UnpickleableExceptionWrapper():  # stands for a user's exception that does not survive a pickle
            code = original.exc_cls_name
        case WorkerLostError():
            kind, code = "system", "WorkerLost"
        case TaskRevokedError():
            return errors.ActionAbortedError(f"The task was revoked: {message}")
        case TimeLimitExceeded():
            return errors.MaxRuntimeExceededError(f"The task ran over its time limit: {message}")
    return errors.raised(kind, str(code), message, traceback=meta.get("traceback"), original=original)


def _is_local() -> bool:
    run = context.current_run.get()
    return run is not None and run.mode == "local"


def _with_overrides(task: AnyTask, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call, with what its template asks of the message; always a new dict."""
    options = {**options}
    if task.overrides and (headers := overrides.dumped(task)):
        options["headers"] = {**headers, **(options.get("headers") or {})}
    if task.short_name and task.short_name != task.func.__name__:
        options.setdefault("shadow", task.short_name)
    return options
