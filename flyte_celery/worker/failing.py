"""The end of a task that its replica cannot report: it failed, or is tried again, as its own code could have said."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.exceptions import Retry
from celery.utils.log import get_logger
from celery.worker import state as worker_state

from ..attempts import next_attempt
from ..fleet.storing import FENCE_FIELD, Fence, NotOwnedError
from .job import Job

if TYPE_CHECKING:
    from ..task import TaskTemplate

    AnyTask = TaskTemplate[Any, Any]

logger = get_logger("flyte_celery.worker")


def fail_or_retry(job: Job, exc: Exception) -> None:
    """End an attempt that failed: submit the next one, if its task has retries left, else tell Celery's request."""

    def ended_with() -> Exception:
        request = _request_of(job)
        return exc if request is None else after_failure(request, job.task, exc, Fence(*job.fence))

    job.fail(ended_with)


def after_failure(request: Any, task: AnyTask | None, exc: Exception, fence: Fence) -> Exception:
    """Submit the next attempt of a task, if it has retries left.

    A retry is in the queue when, or before, the attempt's own message is acknowledged, see `fleet.storing`.

    Args:
        request: Celery's request of the attempt that failed.
        task: The task as its caller had it, None for one of no environment.
        exc: What it failed with.
        fence: What its end is guarded with.

    Returns:
        What Celery's request is to be told that it ended with.
    """
    follows = None
    if task is not None:
        follows = next_attempt(task, exc, request.request_dict.get("retries") or 0, request.request_dict)
    if isinstance(follows, timedelta):
        try:
            return _retry(request, exc, follows.total_seconds(), fence)
        except NotOwnedError as discarded:
            return discarded
        except Exception:
            logger.exception("%s[%s] cannot be submitted again, so it fails", request.type, request.id)
    return follows if isinstance(follows, Exception) else exc


def _request_of(job: Job) -> Any:
    """Celery's request of a task; None when it is gone."""
    # The end of the attempt before takes the id from the first of these, for it is the same.
    found = worker_state.requests.get(job.task_id)
    return found or next((each for each in worker_state.reserved_requests if each.id == job.task_id), None)


def _retry(request: Any, exc: Exception, delay: float, fence: Fence) -> Exception:
    """What Celery's `Task.retry` and tracer do, in a worker's main process."""
    args, kwargs, embed = request.message.payload
    properties = {**request.request_dict["properties"], FENCE_FIELD: fence}
    fields = {**request.request_dict, **(embed or {}), "args": args, "kwargs": kwargs, "properties": properties}
    task = request.task
    task.push_request(fields, called_directly=False)
    try:
        context = task.request
        retries = (request.request_dict.get("retries") or 0) + 1
        signature = task.signature_from_request(context, args, kwargs, countdown=delay, retries=retries)
        signature.apply_async()
        reason: Exception = Retry(exc=exc, when=delay, sig=signature)
        if request.store_errors:
            task.backend.mark_as_retry(request.id, exc, request=context)
        if fence.next_attempt is not None:
            task.backend.end_attempt(fence)
    finally:
        task.pop_request()
    task.on_retry(exc, request.id, args, kwargs, None)
    signals.task_retry.send(sender=task, request=context, reason=reason, einfo=None)
    logger.info("Task %s[%s] retry: %s", request.type, request.id, reason)
    return reason
