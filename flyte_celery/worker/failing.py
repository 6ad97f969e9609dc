"""The end of a task that its replica cannot report: it failed, or is tried again, as its own code could have said."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from celery import signals
from celery.exceptions import Retry
from celery.utils.log import get_logger
from celery.worker import state as worker_state

from ..attempts import next_attempt
from ..fleet.storing import FENCE_FIELD, Fence, NotOwnedError
from .job import Job

logger = get_logger("flyte_celery.worker")


def fail_or_retry(job: Job, exc: Exception) -> None:
    """End an attempt that failed: submit the next one, if its task has retries left, else tell Celery's request.

    A retry is in the queue when, or before, the attempt's own message is acknowledged, see `fleet.storing`.
    """
    request = _request_of(job)
    follows = None
    if job.task is not None and request is not None:
        follows = next_attempt(job.task, exc, job.retries, request.request_dict)
    if isinstance(follows, timedelta):
        try:
            _retry(job, request, exc, follows.total_seconds())
            return
        except NotOwnedError as discarded:
            job.fail(discarded)
            return
        except Exception:
            logger.exception("%s cannot be submitted again, so it fails", job.words)
    job.fail(follows if isinstance(follows, Exception) else exc)


def _request_of(job: Job) -> Any:
    """Celery's request of a task; None when it is gone."""
    # The end of the attempt before takes the id from the first of these, for it is the same.
    found = worker_state.requests.get(job.task_id)
    return found or next((each for each in worker_state.reserved_requests if each.id == job.task_id), None)


def _retry(job: Job, request: Any, exc: Exception, delay: float) -> None:
    """What Celery's `Task.retry` and tracer do, in the worker's main process."""
    args, kwargs, embed = request.message.payload
    fence = Fence(*job.fence)
    properties = {**request.request_dict["properties"], FENCE_FIELD: fence}
    fields = {**request.request_dict, **(embed or {}), "args": args, "kwargs": kwargs, "properties": properties}
    task = request.task
    task.push_request(fields, called_directly=False)
    try:
        context = task.request
        signature = task.signature_from_request(context, args, kwargs, countdown=delay, retries=job.retries + 1)
        signature.apply_async()
        reason = Retry(exc=exc, when=delay, sig=signature)
        if request.store_errors:
            task.backend.mark_as_retry(job.task_id, exc, request=context)
        if fence.next_attempt is not None:
            task.backend.end_attempt(fence)
    finally:
        task.pop_request()
    task.on_retry(exc, job.task_id, args, kwargs, None)
    signals.task_retry.send(sender=task, request=context, reason=reason, einfo=None)
    logger.info("Task %s retry: %s", job.words, reason)
    job.fail(reason)
