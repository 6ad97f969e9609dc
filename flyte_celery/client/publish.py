"""How calls reach the broker: messages from a template pushed straight to Redis, or Celery's general path.

A template's message and Celery's own are the same in every field; `shortcut` says when a template may be used. A push
that fails is tried again by Celery's own policy (`task_publish_retry`), and raises kombu's error in the end. A message
whose push was interrupted may so be queued twice, as it may with kombu's own retries.
"""

from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import redis
from celery.utils.log import get_logger
from kombu.common import maybe_declare
from kombu.exceptions import EncodeError, OperationalError
from kombu.transport.redis import Channel
from kombu.utils.functional import retry_over_time

from .. import names, overrides
from ..attempts import end_of
from ..names import TIMES_HEADER
from ..urls import redacted
from . import shortcut
from .message import EXPRESSIBLE, INHERITED, Caller, Message, MessageTemplate
from .sizes import check_size

if TYPE_CHECKING:
    from celery import Celery

logger = get_logger("flyte_celery.publish")

Options = dict[str, Any]

#: Options of a retry that a template can express.
_OF_A_RETRY = EXPRESSIBLE | INHERITED

#: What a push fails with.
_ERRORS = (redis.RedisError, OSError, OperationalError)

#: Most ends of messages' times that a connection remembers to have noted.
_MOST_NOTED = 1000

#: The parts of Celery's `task_publish_retry_policy` that say when to try again.
_POLICY = ("max_retries", "interval_start", "interval_step", "interval_max")


class Publisher:
    """Publishes the calls of an app's environment tasks.

    Args:
        app: The Celery app.
        ensure_broker: Called before anything is published: starts the bundled broker when the app uses that.
    """

    def __init__(self, app: Celery, ensure_broker: Callable[[], None]) -> None:
        self.app = app
        self.ensure_broker = ensure_broker
        self._line: Line | None = None
        self._templates: dict[str, tuple[Any, MessageTemplate | None]] = {}
        self._executor: ThreadPoolExecutor | None = None
        _publishers.add(self)

    def publish(
        self, task: Any, args: Sequence[Any], kwargs: dict[str, Any], options: Options, *, open_now: bool
    ) -> Any:
        """Publish one call, with arguments and options as they travel; returns its result.

        Args:
            task: The registered Celery task.
            args: JSON-native positional arguments.
            kwargs: JSON-native keyword arguments.
            options: Those of `apply_async`.
            open_now: Whether the shortcut is open, see `shortcut.closed_for_now`.

        Raises:
            kombu.exceptions.OperationalError: The broker cannot be reached within Celery's retry policy.
            kombu.exceptions.EncodeError: The serializer cannot write the arguments.
            flyte_celery.errors.InlineIOMaxBytesBreached: The arguments are larger than the task allows.
        """
        self.ensure_broker()
        call = None
        if open_now:
            call = self.prepare(task, args, kwargs, options, Caller.here(self.app))
        if call is None:
            return self.by_celery(task, args, kwargs, options)
        self.push([call])
        return call.result()

    def prepare_retry(
        self, task: Any, args: Sequence[Any], kwargs: dict[str, Any], options: Options, caller: Caller
    ) -> Call | None:
        """As `prepare`, for another attempt of a call: it has options that its message gave it.

        The message is nobody's yet; whoever ends the attempt before it submits it.
        """
        if shortcut.closed_for_now(self.app) or options.get("queue") not in (None, task.queue, task.queue.name):
            return None
        own = {name: value for name, value in options.items() if name != "queue"}
        return self.prepare(task, args, kwargs, own, caller, _OF_A_RETRY)

    def prepare(
        self,
        task: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        options: Options,
        caller: Caller,
        expressible: frozenset[str] = EXPRESSIBLE,
    ) -> Call | None:
        """The message of a call from the task's template; None when the call must take Celery's general path.

        Whether `shortcut.closed_for_now` is for the caller of this to ask.
        """
        known, template = self._templates.get(task.name, _NOTHING)
        if known is not task:
            template = self._template(task)
            self._templates[task.name] = task, template
        if template is None:
            return None
        for name, value in options.items():
            if name not in expressible and value is not None:
                return None
        try:
            message = template.fill(args, kwargs, options, caller)
        except Exception as exc:  # whatever it is, Celery meets it as well and has its own way to say it
            logger.debug("%s: Celery builds this message: %r", task.name, exc)
            return None
        most = _most_bytes(task, options)
        if len(message.text) > most:  # it may be the envelope
            _check_size(task, args, kwargs, message.id, most)
        return Call(task, options, caller, message)

    def _template(self, task: Any) -> MessageTemplate | None:
        connection = self.app.connection_for_write()
        why = shortcut.closed_for(task, _inherited_apply_async(task), task.queue) or shortcut.closed_for_broker(
            connection
        )
        if why is not None:
            logger.debug("Celery publishes all calls of %s: %s", task.name, why)
            return None
        options = connection.transport_options or {}
        steps = options.get("priority_steps", Channel.priority_steps)
        kept = [steps[bisect(steps, priority) - 1] for priority in range(10)]
        name, separator = task.queue.name, options.get("sep", Channel.sep)
        lists = [f"{name}{separator}{step}" if step else name for step in kept]
        return MessageTemplate(task, shortcut.delivery_mode(self.app, task.queue), lists)

    def push(self, calls: Sequence[Call]) -> None:
        """Write messages to the broker.

        Raises:
            kombu.exceptions.OperationalError: It cannot be reached within Celery's retry policy.
        """
        try:
            try:
                self._push(calls)
            except _ERRORS as exc:
                conf: Any = self.app.conf
                if not conf.task_publish_retry:
                    raise
                logger.info("A push of %d message(s) is tried again: %s", len(calls), exc)
                policy = {name: value for name, value in conf.task_publish_retry_policy.items() if name in _POLICY}
                retry_over_time(self._push, _ERRORS, (calls,), **policy)
        except _ERRORS as exc:
            raise self._unreachable(calls[0].task, exc) from exc

    def _push(self, calls: Sequence[Call]) -> None:
        line = self._line
        if line is None:
            line = self._line = Line(self.app)
        try:
            line.push(calls)
        except BaseException:
            self._line = None
            raise

    def by_celery(self, task: Any, args: Sequence[Any], kwargs: dict[str, Any], options: Options) -> Any:
        """Publish one call by Celery's general path; raises as `publish`."""
        _check_size(task, args, kwargs, options.get("task_id"), _most_bytes(task, options))
        try:
            result = task.celerys_apply_async(args, kwargs, options)
            self._note_end(task, options)
            return result
        except OperationalError as exc:
            raise self._unreachable(task, exc) from exc
        except EncodeError as exc:
            raise EncodeError(
                f"A call of task {task.name!r} cannot be written by the serializer {task.serializer!r}: {exc}. "
                "Pass values that it can write."
            ) from exc

    def _note_end(self, task: Any, options: Options) -> None:
        """Let workers know when the time of a message ends that Celery has published; they find it late without."""
        end = end_of(options.get("headers"))
        if not end or shortcut.closed_for_broker(self.app.connection_for_write()):
            return
        try:
            self._line = self._line or Line(self.app)
            self._line.note_ends(task.queue.name, [end])
        except _ERRORS as exc:
            self._line = None
            logger.debug("%s: nobody knows when the time of a message ends: %s", task.name, exc)

    def _unreachable(self, task: Any, exc: BaseException) -> OperationalError:
        url = self.app.conf.broker_write_url
        broker = redacted(";".join(url) if isinstance(url, list | tuple) else str(url))
        return OperationalError(
            f"Task {task.name!r} was not submitted to the broker {broker}: {str(exc).rstrip('.')}. "
            "Check that it runs, and that broker_url is right."
        )

    @property
    def executor(self) -> Executor:
        """The thread that writes for event loops: one of its own, because a loop's may all wait for tasks."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="flyte-celery-publish")
        return self._executor

    def begin_anew(self) -> None:
        """A forked child has no right to its parent's connection, none of its threads, and another origin."""
        self._line = None
        self._templates = {}
        self._executor = None


_NOTHING: tuple[Any, None] = (None, None)


def _inherited_apply_async(task: Any) -> Any:
    """The `apply_async` that a task would have without ours."""
    classes = iter(type(task).__mro__)
    next(cls for cls in classes if "celerys_apply_async" in vars(cls))
    return next(vars(cls)["apply_async"] for cls in classes if "apply_async" in vars(cls))


def _most_bytes(task: Any, options: Options) -> int:
    most: int = overrides.effective(task.template, options.get("headers")).max_inline_io_bytes
    return most


def _check_size(task: Any, args: Any, kwargs: Any, task_id: str | None, most: int) -> None:
    try:
        check_size("arguments", task.name, (args, kwargs), most)
    except Exception:
        if task_id is not None and hasattr(task.backend, "replies"):
            task.backend.expect_no_more(task_id)
        raise


class Call(NamedTuple):
    """A call with its message. Its id and backend are all that is needed to wait for its result."""

    task: Any
    options: Options
    caller: Caller
    message: Message

    @property
    def id(self) -> str:
        """The task id."""
        return self.message.id

    @property
    def backend(self) -> Any:
        """Where its result will be."""
        return self.task.backend

    @property
    def ignored(self) -> bool:
        """Whether its result is not stored."""
        return bool(self.message.ignore_result)

    @property
    def reply(self) -> Any:
        """What the reply channel knows of its result; None where the backend has no such channel."""
        backend = self.backend
        return backend.reply(self.id) if hasattr(backend, "replies") else None

    def result(self) -> Any:
        """Celery's result of the call. Inside a task its parent keeps it, too."""
        result = self.handle()
        if self.has_parent:
            self.caller.parent.add_trail(result)
        return result

    def handle(self) -> Any:
        """Celery's result of the call, for its caller alone."""
        result = self.task.AsyncResult(self.message.id)
        result.ignored = self.message.ignore_result
        return result

    @property
    def has_parent(self) -> bool:
        """Whether a parent keeps the call's result."""
        return self.caller.parent is not None and self.options.get("add_to_parent", True)


class Line:
    """One connection to the broker's Redis, shared by the threads of a process.

    A thread that finds it in use waits; whoever is next then writes for all who wait, so that threads which publish at
    once share round trips.

    Args:
        app: The Celery app, whose options for the broker all hold.

    Raises:
        kombu.exceptions.OperationalError: The broker cannot be reached.
    """

    def __init__(self, app: Celery) -> None:
        connection = app.connection_for_write()
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        self._channel: Any = connection.default_channel
        self._redis = redis.Redis(connection_pool=self._channel.pool, single_connection_client=True)
        self._gate = threading.Lock()
        self._waiting: deque[_Push] = deque()
        self._declared: set[str] = set()
        self._noted: set[tuple[str, int]] = set()

    def push(self, calls: Sequence[Call]) -> None:
        """Write messages, and return when the broker has them.

        Raises:
            redis.RedisError: It is unknown which of them it has.
            OSError: The same.
        """
        push = _Push(calls)
        self._waiting.append(push)
        with self._gate:
            if not push.written:
                self._write_all()
        if push.error is not None:
            raise push.error

    def _write_all(self) -> None:
        pushes = [self._waiting.popleft() for _ in range(len(self._waiting))]
        lists: dict[str, list[str]] = {}
        queues: dict[str, Any] = {}
        ends: dict[str, set[int]] = {}
        for push in pushes:
            push.written = True
            for call in push.calls:
                lists.setdefault(call.message.key, []).append(call.message.text)
                queues[call.task.queue.name] = call.task.queue
                headers = call.options.get("headers")
                if headers and TIMES_HEADER in headers and (end := end_of(headers)):
                    ends.setdefault(call.task.queue.name, set()).add(end)
        try:
            for name in queues.keys() - self._declared:  # as Celery does, once per connection
                maybe_declare(queues[name], self._channel)
                self._declared.add(name)
            for queue, seconds in ends.items():
                self.note_ends(queue, seconds)
            for key, texts in lists.items():
                self._redis.lpush(key, *texts)
        except BaseException as exc:
            # An interruption is this thread's alone; the others try again.
            shared = exc if isinstance(exc, _ERRORS) else redis.ConnectionError("Who wrote for all was interrupted.")
            for push in pushes:
                push.error = shared
            raise

    def note_ends(self, queue: str, seconds: Iterable[int]) -> None:
        """Let workers know when the time of messages in a queue ends, see `attempts.end_of`; raises as `push`."""
        if new := {(queue, second) for second in seconds} - self._noted:
            self._redis.zadd(names.ends_key(queue), {str(second): second for _, second in new})
            if len(self._noted) > _MOST_NOTED:
                self._noted.clear()
            self._noted |= new


class _Push:
    """What one thread wants written."""

    __slots__ = ("calls", "error", "written")

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.written = False
        self.error: BaseException | None = None


_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()


def _begin_anew_in_child() -> None:
    for publisher in list(_publishers):
        publisher.begin_anew()


os.register_at_fork(after_in_child=_begin_anew_in_child)
