"""The options of `@env.task(...)`: Flyte's, Celery's that still mean something, and one of our own; their checks."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypedDict

from .cache import Cache
from .retry import RetryStrategy
from .timeout import Timeout


class CeleryOptions(TypedDict, total=False):
    """Options of Celery's own `@app.task` that keep their meaning. Celery's documentation describes them."""

    autoretry_for: tuple[type[BaseException], ...]
    dont_autoretry_for: tuple[type[BaseException], ...]
    retry_backoff: bool | int
    retry_backoff_max: int
    retry_jitter: bool
    retry_kwargs: Mapping[str, Any]
    max_retries: int | None
    default_retry_delay: float
    rate_limit: str | float | None
    time_limit: float | None
    soft_time_limit: float | None
    ignore_result: bool
    store_errors_even_if_ignored: bool
    track_started: bool
    throws: tuple[type[BaseException], ...]
    priority: int | None
    expires: float | datetime | None
    serializer: str
    compression: str | None
    send_events: bool
    trail: bool
    resultrepr_maxsize: int
    acks_on_failure: bool
    acks_on_timeout: bool
    before_start: Callable[..., Any]
    on_success: Callable[..., Any]
    on_failure: Callable[..., Any]
    on_retry: Callable[..., Any]
    after_return: Callable[..., Any]


class TaskOptions(CeleryOptions, total=False):
    """All options of `@env.task(...)` but `bind`; `TaskEnvironment.task` describes them."""

    short_name: str | None
    cache: str | Cache | bool | None
    retries: int | RetryStrategy | None
    timeout: int | timedelta | Timeout
    docs: Any
    pod_template: Any
    report: bool
    interruptible: bool | None
    max_inline_io_bytes: int
    queue: str | None
    service_account: str | None
    triggers: Any
    links: Any
    task_resolver: Any
    entrypoint: bool
    produces_artifacts: bool
    max_attempts: int


#: Names of Celery's options.
CELERY_OPTIONS = frozenset(CeleryOptions.__annotations__)

#: Names of all options.
TASK_OPTIONS = frozenset(TaskOptions.__annotations__) | {"bind"}

#: Default of `max_inline_io_bytes`: 10 MiB.
MAX_INLINE_IO_BYTES = 10 * 1024 * 1024

#: Default of `max_attempts`.
MAX_ATTEMPTS = 3


#: Options of Celery's tasks that are not to be chosen for an environment's.
_DECIDED = {
    "acks_late": "it is always on, a task is acknowledged when its result is stored.",
    "reject_on_worker_lost": "it is always on, a task whose replica is lost runs again, up to max_attempts times.",
    "typing": "arguments are always checked by the annotations.",
    "base": "it is the app's own task class, Celery(..., task_cls=...).",
}


def check_options(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse options that do not exist.

    Args:
        where: What takes the options, for the message.
        given: Names that were passed.
        known: Names that exist.

    Raises:
        TypeError: Names the first unknown option and the most similar one.
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}."
            hint = _DECIDED.get(name, hint)
            raise TypeError(f"{where} has no option {name!r}: {hint}")


def check_max_attempts(value: object) -> int:
    """Accept a valid `max_attempts`.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is below 1.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"max_attempts must be an int, got {value!r}: pass 1 or more.")
    if value < 1:
        raise ValueError(f"max_attempts must be at least 1, got {value}: 1 means that a lost task is not run again.")
    return value


def check_grace(value: object) -> float | None:
    """Accept a valid `grace`.

    Returns:
        Seconds, or None.

    Raises:
        TypeError: If it is no number of seconds and no `timedelta`.
        ValueError: If it is negative.
    """
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise TypeError(f"grace must be seconds or a timedelta, got {value!r}: pass for instance 60.")
    if not seconds >= 0:
        raise ValueError(f"grace must not be negative, got {value!r}: 0 hands running tasks back at once.")
    return float(seconds)


def check_buffer(value: object) -> int:
    """Accept a valid `buffer`.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is negative.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"buffer must be an int, got {value!r}: pass 0 or more replicas.")
    if value < 0:
        raise ValueError(f"buffer must not be negative, got {value}: 0 keeps no replica beyond those that work needs.")
    return value


def check_labels(value: object) -> None:
    """Accept the labels that an environment requires.

    Raises:
        TypeError: If they are no mapping of text to text.
    """
    if value is None:
        return
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for item in value.items() for each in item):
        raise TypeError(f'labels must map names to values, got {value!r}: pass for instance {{"zone": "a"}}.')
