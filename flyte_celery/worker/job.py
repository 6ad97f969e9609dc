"""One task in the pool, between Celery's request and a replica."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery.utils.log import get_logger
from celery.worker import state as worker_state

from ..fleet.storing import FENCE_FIELD, UNFENCED, NotOwnedError
from ..replica import wire
from ..supervisor.wire import encode

if TYPE_CHECKING:
    from ..errors import TaskTimeoutError
    from ..task import TaskTemplate
    from .groups import Group

logger = get_logger("flyte_celery.worker")


@dataclass(slots=True, eq=False, weakref_slot=True)
class Job:
    """A task that Celery handed to the pool; it is what `apply_async` returns to Celery's `Request`."""

    number: int
    task_name: str
    task_id: str
    #: The encoded message to a replica.
    frame: bytes
    on_accepted: Callable[[int, float], Any]
    on_done: Callable[[Any], Any]
    on_error: Callable[[ExceptionInfo], Any]
    on_timeout: Callable[[bool, float], Any]
    soft_limit: float | None
    hard_limit: float | None
    #: Whether the body runs on the replica's loop, so that it can be cancelled alone.
    on_loop: bool
    #: Ends the job where it runs; set by the pool.
    terminator: Callable[[Job], None]
    #: Calls what makes Celery wait for Redis when that answers, see `untold`; set by the pool.
    tell: Callable[[Callable[[], None]], None]
    arrived_at: float
    #: The replicas that may take it.
    group: Group
    #: The task as its caller had it, overrides included; None for a task of no environment that was routed here.
    task: TaskTemplate[Any, Any] | None = None
    #: Its run, where its group's replicas belong to runs.
    run: str = ""
    #: Its claim in the worker's keeper, None without one.
    claim: int | None = None
    #: What its end is guarded with, see `fleet.storing`.
    fence: tuple[str, str] = UNFENCED
    #: What it needs that this host has not, see `fleet.needs`; None when it may run here.
    need: str | None = None
    #: When it is over if it has not begun, in seconds since the epoch; known of tasks that may be passed on.
    over_at: float | None = None
    #: Whether it may share a replica with no other, see `losses`.
    alone: bool = False
    #: Number of the replica that owns it, None while it waits in the pool.
    replica: int | None = None
    accepted_at: float | None = None
    #: Celery's number of the retry that it is, 0 for the first run.
    retries: int = 0
    #: Whether it has waited for children; an error may be one of theirs then, from another host.
    waited: bool = False
    #: How it ended, kept only while its message is expected to be delivered again.
    outcome: tuple[Any, ...] | None = None
    #: It was ended on request (revoked, over its hard limit): its outcome is already recorded.
    terminated: bool = False
    #: The limit of its task's `timeout` that it has exceeded, whose error is its outcome.
    exceeded: TaskTimeoutError | None = None
    timers: list[Any] = field(default_factory=list)

    @property
    def words(self) -> str:
        """Its name and id."""
        return f"{self.task_name}[{self.task_id}]"

    @property
    def key(self) -> tuple[str, int]:
        """What a second delivery of its message has in common with it, and a retry has not."""
        return self.task_id, self.retries

    def answer_to(self, other: Job) -> None:
        """From now on, tell another request of the same task what happens."""
        self.on_accepted, self.on_done = other.on_accepted, other.on_done
        self.on_error, self.on_timeout = other.on_error, other.on_timeout

    def terminate(self, signum: int | None = None) -> None:
        """Celery's `Request.terminate` calls this; one that has not begun ends when it does."""
        if self.accepted_at is not None:
            self.terminator(self)

    def withdrawn(self) -> bool:
        """Whether it was revoked, or has expired, while it waited; Celery has recorded that then."""
        # Celery looks before it hands a task to its pool, for its own pools start it at once.
        request = worker_state.requests.get(self.task_id)
        try:
            return request is not None and bool(request.revoked())
        except Exception:
            logger.exception("%s cannot be recorded as revoked, so it runs", self.words)
            return False

    def stop_timers(self) -> None:
        """Its time limits no longer matter."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    def fail(self, reason: Exception | Callable[[], Exception]) -> None:
        """Tell Celery's request that the task ended, as soon as that can record it.

        Args:
            reason: The exception that it ended with, or what finds that out then.
        """
        self.stop_timers()
        self.tell(lambda: self._fail(reason if isinstance(reason, Exception) else reason()))

    def _fail(self, exc: Exception) -> None:
        try:
            raise exc
        except Exception:
            self.on_error(ExceptionInfo())

    def time_out(self, seconds: float) -> None:
        """Tell Celery's request that the task ran for longer than its hard limit, as soon as that can record it."""
        self.tell(lambda: self.on_timeout(False, seconds))


def guarded(
    callback: Callable[..., Any],
    failed: Callable[[], Any] = lambda: None,
    discarded: Callable[[], Any] = lambda: None,
) -> Callable[..., None]:
    """Celery's callback of one task, which may fail without ending the worker, as in Celery's own pool.

    Callbacks run user code (errbacks, `on_failure`, signals), store failures and publish messages.

    Args:
        callback: Celery's.
        failed: Called when it has failed.
        discarded: Called when the task was not this worker's any more, so that nothing was recorded.
    """

    def call(*args: Any) -> None:
        try:
            callback(*args)
        except NotOwnedError:
            discarded()
        except Exception:
            logger.exception("A callback of a task failed: %r", callback)
            failed()

    return call


def frame(number: int, args: tuple[Any, ...], fence: tuple[str, str]) -> bytes:
    """Encode the tracer's arguments for a replica.

    The request carries the decoded arguments besides the body that they were decoded from; the replica decodes the
    body itself, so they are left out. `fence` guards its result, see `fleet.storing`.
    """
    name, task_id, request, body, content_type, content_encoding = args
    slim = {key: value for key, value in request.items() if key not in ("args", "kwargs")}
    slim["properties"] = {**request["properties"], FENCE_FIELD: fence}
    return encode((wire.RUN, number, name, task_id, slim, body, content_type, content_encoding))
