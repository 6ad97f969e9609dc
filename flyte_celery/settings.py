"""What this process is told by arguments and environment variables, in one validated value.

A setting is taken from the first place that has it: the argument, then `FLYTE_CELERY_<NAME>`, then for the two URLs
Celery's own `CELERY_BROKER_URL` and `CELERY_RESULT_BACKEND`, then the default. An empty variable counts as absent, as
Compose files and unit files write `NAME=` for "not set". Nothing is read on import.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from .quantity import cores, size

_PREFIX = "FLYTE_CELERY_"

#: Fields whose environment variables are not just the prefix and the name, in order of precedence.
_VARIABLES = {
    "broker_url": (f"{_PREFIX}BROKER_URL", "CELERY_BROKER_URL"),
    "result_backend": (f"{_PREFIX}RESULT_BACKEND", "CELERY_RESULT_BACKEND"),
    "project_dir": (f"{_PREFIX}HOME",),
}

_URLS = frozenset({"broker_url", "result_backend", "flower_url"})
_SWITCHES = frozenset({"progress"})
_COUNTS = frozenset(
    {
        "max_start_failures",
        "max_suspended",
        "max_ephemeral",
        "max_processes",
        "max_files",
        "host_memory",
        "cache_result_bytes",
        "cache_bytes",
    }
)
#: Times of which 0 means something: at once, or none.
_MAY_BE_ZERO = frozenset({"grace", "lookahead", "start_backoff", "start_backoff_cap", "idle_ttl", "scaledown_ttl"})
_PATHS = frozenset({"project_dir", "secrets_dir", "device_locks"})
#: What `gpu.declare` and `gpu.labels` read, and a word that nobody does.
_TEXTS = frozenset({"devices", "labels", "code_version"})
_OPTIONAL = (
    frozenset({"broker_url", "result_backend", "idle_ttl", "scaledown_ttl", "grace", "flower_url", "device_locks"})
    | frozenset({"max_age", "max_ephemeral", "host_cores", "host_memory"})
    | _TEXTS
)

#: Seconds that running tasks get to finish when nobody says otherwise: below the 30 s that Kubernetes gives.
GRACE = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one process. Times are seconds; a `timedelta` is accepted and kept as seconds.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of its range.
    """

    broker_url: str | None = field(default=None, repr=False)
    """Where tasks are queued, as Celery writes it. None: the Redis that belongs to `project_dir`."""

    result_backend: str | None = field(default=None, repr=False)
    """Where results are kept, as Celery writes it. None: the broker's own Redis, where it is one."""

    project_dir: Path = field(default_factory=Path.cwd)
    """The directory whose `.flyte-celery` folder holds what runs for this project (variable `FLYTE_CELERY_HOME`)."""

    code_version: str | None = None
    """The version of the code that a worker runs, such as a commit. Workers with another one than the newest drain."""

    secrets_dir: Path = Path("/run/secrets")
    """The directory in which workers find a file for each secret."""

    flower_url: str | None = None
    """Where people reach Flower, such as `https://flower.example.com`: `run.url` points into it. None: no `url`."""

    grace: float | None = None
    """Seconds for running tasks to finish when a worker is told to stop. None: the environment's, then 25."""

    startup_timeout: float = 600.0
    """Seconds that a replica's start-up hooks may take, together. Loading a model may take minutes."""

    start_backoff: float = 1.0
    """Seconds before the next attempt after a replica failed to start; doubles with each failure in a row."""

    start_backoff_cap: float = 60.0
    """Most seconds between two attempts to start a replica."""

    max_start_failures: int = 3
    """Failed starts in a row after which the environment is marked failed and waiting callers are told why."""

    lookahead: float = 0.05
    """Seconds of work that a worker claims beyond its free slots, by the measured duration of its tasks."""

    lease: float = 15.0
    """Seconds for which a worker's proof of life holds; it is renewed each third of that."""

    max_suspended: int = 1000
    """Tasks of one replica that may wait for their children at once; the next one fails with `StarvationError`."""

    max_ephemeral: int | None = None
    """Ephemeral replicas at once beside an environment's own. None: what the machine's cores and memory allow."""

    host_cores: float | None = None
    """Cores that this host gives to replicas, by what their `Resources` ask for. None: what the worker may use."""

    host_memory: int | None = None
    """The same in bytes of memory; the variable takes a quantity such as `48Gi`, too. None: the machine's."""

    max_processes: int = 1000
    """Processes of one replica at once, its tasks' children included; one more, and the replica is ended."""

    max_files: int = 65536
    """Files that one process of a replica may have open. A replica that has 80 % of them open is replaced."""

    max_age: float | None = None
    """Seconds after which a replica is replaced by a fresh one, up to 10 % sooner. None: never."""

    progress: bool = True
    """Whether `flyte.map` shows a progress bar when it takes a while and standard error is a terminal."""
    cancel_patience: float = 10.0
    """Seconds that a task which is revoked, or over a limit, has to clean up before its replica is ended with it."""

    cache_ttl: float = 2_592_000.0
    """Seconds that a cached result is kept at most, 30 days; a task's `max_age` may say less."""

    cache_result_bytes: int = 10_485_760
    """Bytes of the largest result that is cached, as it is stored, 10 MiB."""

    cache_bytes: int = 268_435_456
    """Bytes that the cached results of one environment take, 256 MiB; what was not used for longest goes first."""

    autoscale_interval: float = 1.0
    """Seconds between two looks of the autoscaler. New work wakes it up earlier."""

    idle_ttl: float | None = None
    """Seconds after which this worker lets an idle environment rest, in place of the policy's. None: the policy's."""

    scaledown_ttl: float | None = None
    """Seconds after which this worker lets surplus replicas go, in place of the policy's. None: the policy's."""

    devices: str | None = None
    """Devices that a worker's host has, such as `"L4:2"`, in place of those that are found. None: those."""

    labels: str | None = None
    """Labels of a worker's host, such as `"zone=a,tier=batch"`, beside those that are found. None: no others."""

    device_locks: Path | None = None
    """The directory where all workers of a host lock its devices. None: one for locks, or for temporary files."""

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _checked(each.name, getattr(self, each.name)))
        if self.start_backoff_cap < self.start_backoff:
            raise ValueError(
                f"start_backoff_cap={self.start_backoff_cap:g} is below start_backoff={self.start_backoff:g}: "
                "raise the cap or lower the first back-off."
            )

    def grace_for(self, option: float | None, environment: float | None) -> float:
        """Seconds that running tasks get: the worker's option, this setting, the environment's `grace`, 25."""
        return next(seconds for seconds in (option, self.grace, environment, GRACE) if seconds is not None)

    @property
    def lease_renewal(self) -> float:
        """Seconds between two renewals of a lease."""
        return self.lease / 3

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], **arguments: Any) -> Settings:
        """Read the settings.

        Args:
            environ: Usually `os.environ`.
            **arguments: Fields that the caller knows already; None means "not given".

        Raises:
            TypeError: If an argument has the wrong type, or is no setting.
            ValueError: If a value is out of its range, or a variable is not a number. The message names the variable.
        """
        known = {each.name for each in fields(cls)}
        if unknown := sorted(arguments.keys() - known):
            raise TypeError(f"{unknown[0]!r} is not a setting: give one of {', '.join(sorted(known))}.")
        given = {name: value for name, value in arguments.items() if value is not None}
        for name in known - given.keys():
            for variable in _VARIABLES.get(name, (_PREFIX + name.upper(),)):
                if text := environ.get(variable, "").strip():
                    given[name] = _parsed(name, variable, text)
                    break
        return cls(**given)


def _parsed(name: str, variable: str, text: str) -> Any:
    """The value of an environment variable, checked where the variable's name is still known."""
    value: Any = text
    if name in _PATHS:
        value = Path(text)
    elif name in _SWITCHES:
        value = _WORDS.get(text.lower(), text)
        if value is text:
            raise ValueError(f"{variable}={text!r} is neither on nor off: set it to 1 or 0.")
    elif name == "host_memory":
        value = size(text, variable)
    elif name not in _URLS | _TEXTS:
        try:
            value = int(text) if name in _COUNTS else float(text)
        except ValueError:
            wanted = "a whole number" if name in _COUNTS else _wanted(name)
            raise ValueError(f"{variable}={text!r} is not {wanted}: correct or remove the variable.") from None
    try:
        return _checked(name, value)
    except ValueError as error:
        raise ValueError(f"{error} It comes from the environment variable {variable}.") from None


def _wanted(name: str) -> str:
    return "a number of cores" if name == "host_cores" else "a number of seconds"


def _checked(name: str, value: Any) -> Any:
    if value is None and name in _OPTIONAL:
        return None
    if name in _PATHS:
        return _directory(name, value)
    if name in _TEXTS:
        return _text(name, value)
    if name in _URLS:
        return _url(name, value)
    if name in _SWITCHES:
        return _switch(name, value)
    if name == "host_memory" and isinstance(value, str):
        value = size(value, name)
    if name == "host_cores":
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"host_cores={value!r} is a {type(value).__name__}: give a number of cores.")
        if not cores(value, name):
            raise ValueError("host_cores=0 leaves no core for any replica: give more than 0.")
        return float(value)
    return _count(name, value) if name in _COUNTS else _seconds(name, value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: give text.")
    return value


def _directory(name: str, value: Any) -> Path:
    if not isinstance(value, str | Path):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: give a path.")
    return Path(value).expanduser().absolute()


def _url(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}: give one URL as text, several joined by ';'.")
    if name == "broker_url" and "://" not in value:
        raise ValueError(f"broker_url={redacted(value)!r} is no URL: give one such as 'redis://localhost:6379/0'.")
    if not value:
        raise ValueError(f"{name} is empty: give a URL, or None for the default.")
    return value


#: What an environment variable may say of a switch.
_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: give True or False.")
    return value


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: give a whole number.")
    if value < 1:
        raise ValueError(f"{name}={value} is too small: give at least 1.")
    return value


def _seconds(name: str, value: Any) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: give seconds as a number, or a timedelta.")
    if not math.isfinite(seconds) or seconds < 0 or (seconds == 0 and name not in _MAY_BE_ZERO):
        least = "0 or more" if name in _MAY_BE_ZERO else "more than 0"
        raise ValueError(f"{name}={seconds:g} is out of range: give finite seconds, {least}.")
    return float(seconds)


#: Where one URL of a list ends: kombu joins failover URLs by semicolons, and passwords may contain some.
_NEXT_URL = re.compile(r";(?=[\w.+-]+://)")
_SECRET_PARAMETER = re.compile(r"([?&][^=&]*(?:password|passwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


def redacted(url: str) -> str:
    """The URL, or the URLs joined by semicolons, with `**` for each password; for logs and messages.

    Rather too much is hidden than too little: everything between the first colon and the last `@` counts as password,
    as unescaped passwords may contain anything.

    Args:
        url: What a user configured. Text that is no URL comes back unchanged.
    """
    return ";".join(_redacted_one(one) for one in _NEXT_URL.split(url))


def _redacted_one(url: str) -> str:
    hidden = _SECRET_PARAMETER.sub(r"\1**", url)
    start = hidden.find("://") + len("://") if "://" in hidden else 0
    login, at, place = hidden[start:].rpartition("@")
    user, colon, _ = login.partition(":")
    return f"{hidden[:start]}{user}{colon}{'**' if colon else ''}{at}{place}"
