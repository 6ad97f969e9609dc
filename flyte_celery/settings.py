"""What this process is told by arguments and environment variables, in one validated value.

A setting is taken from the first place that has it: the argument, then `FLYTE_CELERY_<NAME>`, then for the two URLs
Celery's own `CELERY_BROKER_URL` and `CELERY_RESULT_BACKEND`, then the default. An empty variable counts as absent, as
Compose files and unit files write `NAME=` for "not set". Nothing is read on import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from .setting_kinds import (
    BrokerUrl,
    Bytes,
    Cores,
    Count,
    Directory,
    Kind,
    Seconds,
    SecondsOrZero,
    Switch,
    Text,
    Url,
    kind_of,
    read,
)

_PREFIX = "FLYTE_CELERY_"

#: Fields whose environment variables are not just the prefix and the name, in order of precedence.
_VARIABLES = {
    "broker_url": (f"{_PREFIX}BROKER_URL", "CELERY_BROKER_URL"),
    "result_backend": (f"{_PREFIX}RESULT_BACKEND", "CELERY_RESULT_BACKEND"),
    "project_dir": (f"{_PREFIX}HOME",),
}

#: Seconds that running tasks get to finish when nobody says otherwise: below the 30 s that Kubernetes gives.
GRACE = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one process. Times are seconds; a `timedelta` is accepted and kept as seconds.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of its range.
    """

    broker_url: BrokerUrl | None = field(default=None, repr=False)
    """Where tasks are queued, as Celery writes it. None: the Redis that belongs to `project_dir`."""

    result_backend: Url | None = field(default=None, repr=False)
    """Where results are kept, as Celery writes it. None: the broker's own Redis, where it is one."""

    project_dir: Directory = field(default_factory=Path.cwd)
    """The directory whose `.flyte-celery` folder holds what runs for this project (variable `FLYTE_CELERY_HOME`)."""

    code_version: Text | None = None
    """The version of the code that a worker runs, such as a commit. Workers with another one than the newest drain."""

    secrets_dir: Directory = Path("/run/secrets")
    """The directory in which workers find a file for each secret."""

    flower_url: Url | None = None
    """Where people reach Flower, such as `https://flower.example.com`: `run.url` points into it. None: no `url`."""

    grace: SecondsOrZero | None = None
    """Seconds for running tasks to finish when a worker is told to stop. None: the environment's, then 25."""

    startup_timeout: Seconds = 600.0
    """Seconds that a replica's start-up hooks may take, together. Loading a model may take minutes."""

    start_backoff: SecondsOrZero = 1.0
    """Seconds before the next attempt after a replica failed to start; doubles with each failure in a row."""

    start_backoff_cap: SecondsOrZero = 60.0
    """Most seconds between two attempts to start a replica."""

    max_start_failures: Count = 3
    """Failed starts in a row after which the environment is marked failed and waiting callers are told why."""

    lookahead: SecondsOrZero = 0.05
    """Seconds of work that a worker claims beyond its free slots, by the measured duration of its tasks."""

    lease: Seconds = 15.0
    """Seconds for which a worker's proof of life holds; it is renewed each third of that."""

    max_suspended: Count = 1000
    """Tasks of one replica that may wait for their children at once; the next one fails with `StarvationError`."""

    max_ephemeral: Count | None = None
    """Ephemeral replicas at once beside an environment's own. None: what the machine's cores and memory allow."""

    host_cores: Cores | None = None
    """Cores that this host gives to replicas, by what their `Resources` ask for. None: what the worker may use."""

    host_memory: Bytes | None = None
    """The same in bytes of memory; the variable takes a quantity such as `48Gi`, too. None: the machine's."""

    max_processes: Count = 1000
    """Processes of one replica at once, its tasks' children included; one more, and the replica is ended."""

    max_files: Count = 65536
    """Files that one process of a replica may have open. A replica that has 80 % of them open is replaced."""

    max_age: Seconds | None = None
    """Seconds after which a replica is replaced by a fresh one, up to 10 % sooner. None: never."""

    progress: Switch = True
    """Whether `flyte.map` shows a progress bar when it takes a while and standard error is a terminal."""

    cancel_patience: Seconds = 10.0
    """Seconds that a task which is revoked, or over a limit, has to clean up before its replica is ended with it."""

    cache_ttl: Seconds = 2_592_000.0
    """Seconds that a cached result is kept at most, 30 days; a task's `max_age` may say less."""

    cache_result_bytes: Bytes = 10_485_760
    """Bytes of the largest result that is cached, as it is stored, 10 MiB."""

    cache_bytes: Bytes = 268_435_456
    """Bytes that the cached results of one environment take, 256 MiB; what was not used for longest goes first."""

    autoscale_interval: Seconds = 1.0
    """Seconds between two looks of the autoscaler. New work wakes it up earlier."""

    idle_ttl: SecondsOrZero | None = None
    """Seconds after which this worker lets an idle environment rest, in place of the policy's. None: the policy's."""

    scaledown_ttl: SecondsOrZero | None = None
    """Seconds after which this worker lets surplus replicas go, in place of the policy's. None: the policy's."""

    devices: Text | None = None
    """Devices that a worker's host has, such as `"L4:2"`, in place of those that are found. None: those."""

    labels: Text | None = None
    """Labels of a worker's host, such as `"zone=a,tier=batch"`, beside those that are found. None: no others."""

    device_locks: Directory | None = None
    """The directory where all workers of a host lock its devices. None: one for locks, or for temporary files."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None or each.default is not None:
                object.__setattr__(self, each.name, _kinds()[each.name].check(each.name, value))
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
                    given[name] = read(_kinds()[name], name, variable, text)
                    break
        return cls(**given)


@cache
def _kinds() -> dict[str, Kind]:
    """The kind of each setting."""
    hints = get_type_hints(Settings, include_extras=True)
    return {each.name: kind_of(hints[each.name]) for each in fields(Settings)}
