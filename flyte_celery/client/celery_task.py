"""The Celery task behind a decorated function: what Celery registers, routes, traces and retries.

There is one class per task, made when the app is finalized, on top of the app's own `Task` class, so that custom
task classes (Django's, yours) keep working.
"""

from __future__ import annotations

import os
import time
from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from celery._state import _task_stack
from celery.app.autoretry import add_autoretry_behaviour
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.time import maybe_make_aware

from .. import attempts, context, overrides, overrun, redaction
from ..errors import DeadlineExceededError, NonRecoverableError, RuntimeUserError
from ..fleet.messages import attempts_of
from ..fleet.storing import Fence, NextAttempt
from ..names import LOST_HEADER, REPLICA_VARIABLE
from ..shortening import shorten
from . import cached_run, caching, shortcut
from .backend import address
from .caching import TaskCache
from .message import Caller
from .results import EagerEnvironmentResult, EnvironmentResult
from .sizes import check_size
from .stacks import working_for

if TYPE_CHECKING:
    from celery import Celery, Task
    from celery.result import EagerResult
    from kombu.entity import Queue

    from ..task import TaskTemplate
    from .publish import Call, Publisher


class EnvironmentTask:
    """Behaviour that every environment's task has, mixed into the app's own `Task` class."""

    template: TaskTemplate[Any, Any]
    #: Carries the calls to the broker.
    publisher: Publisher
    #: Which calls are answered from the cache.
    caching: TaskCache

    # A task is acknowledged when its result is stored, and given back when its replica dies: nothing is lost while
    # the worker lives. These are attributes of environment tasks alone; the app's defaults stay as they are.
    acks_late = True
    reject_on_worker_lost = True
    # The template's typed signature checks arguments, and better than by number.
    typing = False
    #: How a worker takes its messages; named, so that only workers load it.
    Strategy = "flyte_celery.worker.strategy:checked"

    if TYPE_CHECKING:
        name: str
        request: Any
        request_stack: Any
        max_retries: int | None

        def retry(self, **options: Any) -> Exception: ...
        def _get_app(self) -> Celery: ...
        @property
        def backend(self) -> Any: ...

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Validate the arguments by the task's signature and submit, unless the result is in the cache.

        Raises:
            TypeError: An argument does not fit; names the task, the parameter, the expected type and the value.
            ValueError: The task is cached, and no version of its code can be found.
            kombu.exceptions.OperationalError: The broker cannot be reached; names it.
            kombu.exceptions.EncodeError: The serializer cannot write the arguments; names the task.
        """
        if self.caching.concerns(options.get("headers")):
            stored = caching.answer(self, args, kwargs, options)
            if stored is not None:
                return stored
        # Asked once for all steps: it reads Celery's settings, which takes as long as a step.
        open_now = not shortcut.closed_for_now(self._get_app())
        outgoing = self.outgoing(args, kwargs, options, sends=open_now)
        if options.get("retries") and (retried := self._retried(*outgoing)) is not None:
            return retried
        return self.publisher.publish(self, *outgoing, open_now=open_now)

    def _retried(self, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        """The result of a call that is the next attempt of the running task, submitted in the step that ends this one.

        None for another call, and where that step cannot submit it: somebody listens to Celery's signals of publishing,
        it goes to another queue, or results are kept on another server.
        """
        request = self.request
        fence = Fence.of(request)
        conf: Any = self._get_app().conf
        next_one = options.get("task_id") == request.id and options["retries"] == request.retries + 1
        if not next_one or fence is None or not fence.claim or conf.broker_write_url != conf.broker_read_url:
            return None
        caller = Caller.here(self._get_app())
        call: Call | None = self.publisher.prepare_retry(self, args, kwargs, options, caller)
        if call is None:
            return None
        due, message = _due(options), call.message
        fence.next_attempt = NextAttempt(
            queue=call.task.queue.name,
            key=message.key,
            number=message.number,
            task_id=message.id,
            message=message.text,
            wait=due - time.time() if due else 0.0,
            due=due,
            end=attempts.end_of(options.get("headers")),
            backend=self.backend,
        )
        return call.result()

    def outgoing(
        self, args: Any, kwargs: Any, options: dict[str, Any], *, sends: bool = False
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Arguments and options of a call as they travel; for `sends` see `address`.

        Raises:
            TypeError: As `apply_async`.
            ValueError: The task's `timeout` is none.
        """
        args, kwargs = self.template.dump_call(tuple(args or ()), kwargs or {})
        headers = options.get("headers")
        template = overrides.effective(self.template, headers)
        more = {**context.outgoing_headers(), **(headers or {}), **attempts.stamped(template, headers, _due(options))}
        if more:
            options["headers"] = more
        address(self, options, sends=sends)
        return args, kwargs, options

    def celerys_apply_async(self, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        """Submit by the app's own `Task.apply_async`, with arguments and options as they travel."""
        return super().apply_async(args, kwargs, **options)  # type: ignore[misc]

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> EagerResult:
        """Run the task here, by Celery's tracer, with arguments and a result as in a message.

        Raises:
            TypeError: As `apply_async`.
        """
        args, kwargs = self.template.dump_call(tuple(args or ()), dict(kwargs or {}))
        options["headers"] = {**context.outgoing_headers(), **(options.get("headers") or {})}
        return EagerEnvironmentResult.of(super().apply(args, kwargs, **options), self.template)  # type: ignore[misc]

    def replace(self, sig: Any) -> Any:
        """Run a workflow in place of this task, as Celery's `Task.replace`; its result goes to this task's caller."""
        if (last := _last_task(sig)) is not None:
            last.options["reply_to"] = self.request.reply_to
        return super().replace(sig)  # type: ignore[misc]

    def signature_from_request(self, request: Any = None, *args: Any, **options: Any) -> Any:
        """The call of the next attempt, as Celery's; it knows how many starts were lost before it."""
        signature = super().signature_from_request(request, *args, **options)  # type: ignore[misc]
        if lost := _lost_starts(self.request if request is None else request):
            signature.options["headers"] = {**(signature.options.get("headers") or {}), LOST_HEADER: lost}
        return signature

    def AsyncResult(self, task_id: str, **options: Any) -> EnvironmentResult:  # Celery's name
        """The result of a call by its id, with the task's return type."""
        app = self._get_app()
        result = EnvironmentResult(task_id, backend=self.backend, task_name=self.name, app=app, **options)
        result.template = self.template
        return result

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function: called by Celery's tracer, in a replica, with JSON-native arguments.

        Returns:
            The JSON-native result.
        """
        request = self.request
        if request.called_directly:
            return self._run_directly(args, kwargs)
        if self.caching.concerns(request.headers) and not request.is_eager:
            with _running(self):
                return cached_run.run(self, args, kwargs)
        return self.compute(args, kwargs)

    def compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the function, with arguments and a result as `run`."""
        request = self.request  # looking it up takes as long as all the rest here
        template = overrides.effective(self.template, request.headers)
        args, kwargs = template.load_call(args, kwargs)
        if template.bind:
            args = (self, *args)
        token = context.current_run.set(_run_of(request, self))
        try:
            try:
                with overrun.watched(request.id, passing=(Retry, Ignore, Reject)):
                    value = template.func(*args, **kwargs)
                    if template.is_async:
                        if request.is_eager:
                            value = _with_request(self, self.request_stack.top, value)
                        value = context.run_coroutine(value)
            except (Retry, Ignore, Reject):
                raise
            except (SystemExit, KeyboardInterrupt) as exc:
                # The process is shared: a task may fail, it may not end its neighbours.
                shorten(exc, redaction.current().value)
                did = f"called sys.exit({exc})" if isinstance(exc, SystemExit) else "raised KeyboardInterrupt"
                raise RuntimeUserError(
                    type(exc).__name__, f"The task {self.name} {did}; raise an exception, or return, instead."
                ) from exc
            except CancelledError as exc:
                # One that the worker ends never gets here.
                raise RuntimeUserError(
                    "CancelledError",
                    f"The task {self.name} was cancelled by its own code; catch what it awaited, or return, instead.",
                ) from exc
            except Exception as exc:
                shorten(exc, redaction.current().value)
                self._retry_by_strategy(template, exc)
                raise
            result = template.dump_result(value)
            check_size("result", self.name, result, template.max_inline_io_bytes)
            return result
        finally:
            context.current_run.reset(token)

    def _run_directly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the function for one who calls the Celery task like a function.

        Celery itself does so where no message is sent: for errbacks that take the error, and for each item of `map`,
        `starmap` and `chunks`. It awaits nothing, and those items are JSON-native as in messages.
        """
        template = self.template
        outer = _task_stack.stack[-2:-1]
        is_item = bool(outer) and outer[0].name.startswith("celery.")
        if is_item:
            args, kwargs = template.load_call(args, kwargs)
        value = template.forward(*args, **kwargs)
        if template.is_async and (is_item or _is_errback(args)):
            value = context.run_coroutine(value)
        return template.dump_result(value) if is_item else value

    def _retry_by_strategy(self, template: TaskTemplate[Any, Any], exc: Exception) -> None:
        """Retry a user's failure as the task's `RetryStrategy` says; raises Celery's `Retry` when it does."""
        follows = attempts.next_attempt(template, exc, self.request.retries, self.request.headers)
        if isinstance(follows, Exception):
            raise follows from exc
        if follows is not None and template.retries is not None:
            raise self.retry(exc=exc, countdown=follows.total_seconds(), max_retries=template.retries.count)


def _lost_starts(request: Any) -> int:
    """How many starts of a task were lost with their replica or worker, over all its attempts."""
    before = (request.headers or {}).get(LOST_HEADER)
    return attempts_of(request.properties or {})[0] + (before if isinstance(before, int) else 0)


def _due(options: dict[str, Any]) -> float:
    """When a call may begin by Celery's options, in seconds since the epoch; 0 for now."""
    if countdown := options.get("countdown"):
        return time.time() + float(countdown)
    eta = options.get("eta")
    return float(maybe_make_aware(eta).timestamp()) if isinstance(eta, datetime) else 0.0


def _last_task(sig: Any) -> Any:
    """The task of a workflow whose result is the workflow's; None where it has several."""
    match sig.subtask_type:
        case "chain":
            return _last_task(sig.tasks[-1])
        case "chord":
            return _last_task(sig.body)
        case "group":
            return None
    return sig


async def _with_request(task: Any, request: Any, body: Any) -> Any:
    """Await a body that may have a thread of its own, where Celery's stacks are empty."""
    with working_for(task, request):
        return await body


def _is_errback(args: tuple[Any, ...]) -> bool:
    """Whether Celery calls the task as an errback that takes the error: where the other task failed."""
    return len(args) >= 3 and isinstance(args[0], Context) and isinstance(args[1], BaseException)


@contextmanager
def _running(task: EnvironmentTask) -> Iterator[None]:
    """Have `flyte.ctx()` tell of a task."""
    token = context.current_run.set(_run_of(task.request, task))
    try:
        yield
    finally:
        context.current_run.reset(token)


def _run_of(request: Any, task: EnvironmentTask) -> context.RunContext:
    """What `flyte.ctx()` tells while a task's body runs."""
    return context.RunContext.of_task(
        task_id=request.id,
        root_id=request.root_id or request.id,
        environment=task.template.parent_env_name,
        task=task.name,
        attempt_number=request.retries + _lost_starts(request),
        is_async=task.template.is_async,
        headers=request.headers or {},
        hostname=request.hostname,
        replica=os.environ.get(REPLICA_VARIABLE),
    )


def make_task(app: Celery, template: TaskTemplate[Any, Any], queue: Queue, publisher: Publisher) -> Task:
    """Make the Celery task of a template and register it with the app, in place of an earlier one of that name."""
    options = dict(template.celery_options)
    attributes = {
        **options,
        "name": template.name,
        "template": template,
        "publisher": publisher,
        "caching": TaskCache(template),
        "__module__": template.func.__module__,
        "__doc__": template.func.__doc__,
        "__wrapped__": template.func,
        # Celery counts the parameters of an errback by it, and knows by its type whether the first one is the task.
        "__header__": staticmethod(partial(template.func, None) if template.bind else template.func),
    }
    cls = type(template.func.__name__, (EnvironmentTask, app.Task), attributes)
    app.tasks.pop(template.name, None)
    task = cls()
    final = (*options.pop("dont_autoretry_for", ()), NonRecoverableError, DeadlineExceededError)
    add_autoretry_behaviour(task, **options, dont_autoretry_for=final)
    app.tasks[template.name] = task
    task._app = app
    task.bind(app)
    # Set only now: Celery warns of the attribute in a class that it binds. It keeps the task on its queue where the
    # app's routes were replaced after ours was added to them.
    cls.queue = queue  # type: ignore[attr-defined]
    return task
