"""What an overridden task asks of one call: the options of `task.override(...)` that travel in the call's message.

They travel in one header, `names.OVERRIDES_HEADER`, as a JSON object of option and value; a call without overrides has
no such header. Celery carries headers through signatures, chains, groups, chords, links and retries, and gives them to
no child. Whoever has the message, a worker's main process or a replica, makes the template that the caller had:
`effective(template, headers)`.

```
option                 in the header                                   who acts on it
retries                count, or {"count", "backoff": [s, factor, s]}  replica
timeout                {"max_runtime", "max_queued_time", "deadline"}  worker, replica; seconds
cache                  {"behavior", "version_override", ...}           caller, replica
max_inline_io_bytes    int                                             caller, replica
max_attempts           int                                             worker
reusable               "off", or the policy's fields                   worker: which replicas take it
resources              {"cpu", "memory", "gpu", "disk", "shm"}         worker: a replica of such resources
env_vars               {name: value}                                   worker: a replica with these variables
secrets                list of {"key", "group", ...}, never a value    worker: a replica with these secrets
interruptible          bool                                            nobody; `ctx` and tools may look
```
Before all of them stands `"beside": true` where the call needs replicas other than the environment's own, so that who
counts the queue's messages need not read them.
`short_name` travels as Celery's `shadow`. `queue` does not travel: the Celery queue of a call is its environment's, and
another one is refused. What is not in `_OPTIONS` stays with the caller.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .cache import Cache, FunctionBodyPolicy, VersionParameters
from .devices import Device
from .names import OVERRIDES_HEADER, queue_name
from .resources import Resources
from .retry import Backoff, RetryStrategy
from .reuse import ReusePolicy
from .secret import Secret, secrets_of
from .timeout import Timeout
from .variables import as_environ, check_env_vars

if TYPE_CHECKING:
    from .environment import TaskEnvironment
    from .task import TaskTemplate

    Template = TypeVar("Template", bound=TaskTemplate[Any, Any])

logger = logging.getLogger("flyte_celery")

#: Overridden templates that are kept: the same ones come again and again, and each takes as long as a message.
REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class _Option:
    """How one option travels."""

    #: Makes JSON of the overridden template; raises `ValueError` for a value that no worker could act on.
    dump: Callable[[Any], Any]
    #: Makes the argument of `override` from that JSON; raises what it likes for anything else.
    load: Callable[[Any], Any]
    #: Whether the call needs a replica other than the environment's own: one that was made with this option.
    of_replica: bool = False


def dumped(task: TaskTemplate[Any, Any]) -> dict[str, Any]:
    """The message headers that tell of a task's overrides; empty when there are none that travel.

    Raises:
        ValueError: A value has a type that no worker can act on, or names another queue; `override` itself does not
            check all of them.
    """
    if (queue := task.overrides.get("queue")) is not None and queue != queue_name(task.parent_env_name):
        raise ValueError(
            f"queue={queue!r} of {task.name} is not possible: its calls go to the queue of its environment, "
            f"{queue_name(task.parent_env_name)!r}, whose workers alone have its resources, variables and secrets. For "
            "other workers make an environment of another name with `clone_with`, and decorate the function with its "
            "`task`."
        )
    options = {name: option.dump(task) for name, option in _OPTIONS.items() if name in task.overrides}
    if not options:
        return {}
    environment = None if task.parent_env is None else task.parent_env()
    asks = any(option.of_replica and name in options for name, option in _OPTIONS.items())
    if asks and (environment is None or not is_as_of(task, environment)):
        options = {"beside": True, **options}
    return {OVERRIDES_HEADER: options}


def is_as_of(task: TaskTemplate[Any, Any], environment: TaskEnvironment) -> bool:
    """Whether an environment's own replicas are such as a task asks for."""
    return (task.reusable, task.resources, as_environ(task.env_vars), secrets_of(task.secrets)) == (
        environment.reusable,
        environment.resources,
        as_environ(environment.env_vars),
        secrets_of(environment.secrets),
    )


def loaded(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of `override` that a message's headers tell of.

    What cannot be read, because somebody else wrote it, is left out with a warning: the task runs with its own options.
    """
    sent = (headers or {}).get(OVERRIDES_HEADER)
    if sent is None:
        return {}
    if not isinstance(sent, dict):
        logger.warning("A call's overrides cannot be read and count as none: %.200r", sent)
        return {}
    arguments = {}
    for name, option in _OPTIONS.items():
        if name in sent:
            try:
                arguments[name] = option.load(sent[name])
            except Exception as exc:
                logger.warning(
                    "A call's override %s=%.200r cannot be read and counts as none: %s", name, sent[name], exc
                )
    return arguments


def effective(task: Template, headers: Mapping[str, Any] | None) -> Template:
    """The template that a call was made with: `task` itself where nothing was overridden.

    Args:
        task: The task as it was decorated.
        headers: Those of the call's message, or a Celery request that holds them.
    """
    sent = (headers or {}).get(OVERRIDES_HEADER)
    return task if sent is None else _effective(task, json.dumps(sent, default=str))


@lru_cache(maxsize=REMEMBERED)
def _effective(task: Template, sent: str) -> Template:
    arguments = loaded({OVERRIDES_HEADER: json.loads(sent)})
    if not arguments:
        return task
    try:
        return task.override(**arguments)
    except Exception as exc:
        logger.warning("The overrides of a call of %s do not fit and count as none: %s", task.name, exc)
        return task


def replica_options(headers: Mapping[str, Any] | None) -> str | None:
    """What a call asks of its replica: calls with equal answers may share one; None for the environment's own replicas.

    Args:
        headers: As for `effective`.

    Returns:
        Canonical JSON, to be compared and used as a key.
    """
    sent = (headers or {}).get(OVERRIDES_HEADER)
    if not isinstance(sent, dict):
        return None
    options = {name: sent[name] for name, option in _OPTIONS.items() if option.of_replica and name in sent}
    return json.dumps(options, sort_keys=True) if options else None


# -- Retries and times -----------------------------------------------------------------------------------------------


def _dump_retries(task: TaskTemplate[Any, Any]) -> Any:
    strategy = task.retries
    if strategy is None or strategy.backoff is None:
        return 0 if strategy is None else strategy.count
    backoff = strategy.backoff
    if not isinstance(backoff, Backoff):
        raise ValueError(f"backoff={backoff!r} of {task.name} cannot be sent: use a flyte.Backoff.")
    cap = None if backoff.cap is None else backoff.cap.total_seconds()
    return {"count": strategy.count, "backoff": [backoff.base.total_seconds(), backoff.factor, cap]}


def _load_retries(sent: Any) -> RetryStrategy:
    if isinstance(sent, int):
        return RetryStrategy(sent)
    base, factor, cap = sent["backoff"]
    return RetryStrategy(sent["count"], Backoff(timedelta(seconds=base), factor, _span(cap)))


def _dump_timeout(task: TaskTemplate[Any, Any]) -> dict[str, float]:
    limits = Timeout.of(task.timeout)
    seconds = {
        "max_runtime": limits.max_runtime_seconds,
        "max_queued_time": limits.max_queued_seconds,
        "deadline": limits.deadline_seconds,
    }
    return {name: value for name, value in seconds.items() if value is not None}


def _load_timeout(sent: Any) -> Timeout:
    return Timeout(*(_span(sent.get(name)) for name in ("max_runtime", "max_queued_time", "deadline")))


def _span(seconds: Any) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


# -- Cache -----------------------------------------------------------------------------------------------------------


def _dump_cache(task: TaskTemplate[Any, Any]) -> dict[str, Any]:
    cache = task.cache
    version = cache.version_override
    policies = cache.policies if isinstance(cache.policies, list) else []
    if cache.is_enabled() and version is None and not all(type(each) is FunctionBodyPolicy for each in policies):
        # A policy of the user's own is code, which stays here; what it says travels.
        version = cache.get_version(VersionParameters(task.func, task.image))
    return {
        "behavior": cache.behavior,
        "version_override": version,
        "serialize": cache.serialize,
        "ignored_inputs": list(cache.get_ignored_inputs()),
        "salt": cache.salt,
        "max_age": cache.max_age.total_seconds() if isinstance(cache.max_age, timedelta) else None,
    }


def _load_cache(sent: Any) -> Cache:
    return Cache(**{**sent, "max_age": _span(sent["max_age"])})


# -- What a replica is made with -------------------------------------------------------------------------------------


def _dump_reusable(task: TaskTemplate[Any, Any]) -> Any:
    policy: Any = task.reusable
    if policy is None:
        return "off"
    if not isinstance(policy, ReusePolicy):
        raise ValueError(f"reusable={policy!r} of {task.name} is not possible: use a ReusePolicy, or 'off'.")
    return {
        "replicas": [policy.min_replicas, policy.max_replicas],
        "idle_ttl": _seconds(policy.idle_ttl),
        "concurrency": policy.concurrency,
        "scaledown_ttl": _seconds(policy.scaledown_ttl),
        "scope": policy.scope,
    }


def _load_reusable(sent: Any) -> Any:
    if sent == "off":
        return "off"
    low, high = sent["replicas"]
    idle, scaledown = timedelta(seconds=sent["idle_ttl"]), timedelta(seconds=sent["scaledown_ttl"])
    return ReusePolicy((low, high), idle, sent["concurrency"], scaledown, sent["scope"])


def _seconds(span: Any) -> float:
    return span.total_seconds() if isinstance(span, timedelta) else float(span)


def _dump_resources(task: TaskTemplate[Any, Any]) -> dict[str, Any]:
    resources: Any = task.resources
    if not isinstance(resources, Resources):
        raise ValueError(f"resources={resources!r} of {task.name} is not possible: use flyte.Resources(...).")
    resources.check_amounts()
    return resources_sent(resources)


def resources_sent(resources: Resources) -> dict[str, Any]:
    """Resources as they travel: JSON-native, read by `resources_received`."""
    gpu = resources.gpu
    return {
        "cpu": resources.cpu,
        "memory": resources.memory,
        "gpu": [gpu.quantity, gpu.device_class, gpu.device, gpu.partition] if isinstance(gpu, Device) else gpu,
        "disk": resources.disk,
        "shm": resources.shm,
    }


def resources_received(sent: Any) -> Resources:
    """The resources that `resources_sent` has made this of.

    Raises:
        Exception: It is something else; of whatever class.
    """
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in sent.items()}
    if isinstance(gpu := sent.get("gpu"), list):
        values["gpu"] = Device(*gpu)
    resources = Resources(**values)
    resources.check_amounts()
    return resources


def _dump_env_vars(task: TaskTemplate[Any, Any]) -> dict[str, str]:
    variables: Any = task.env_vars
    if not isinstance(variables, dict):
        raise ValueError(f"env_vars={variables!r} of {task.name} is not possible: use a dict of names to values.")
    check_env_vars(f"An override of {task.name}", variables)
    return as_environ(variables)


def _dump_secrets(task: TaskTemplate[Any, Any]) -> list[dict[str, str]]:
    requests: Any = task.secrets
    given = requests if isinstance(requests, list) else [requests]
    if not all(isinstance(each, str | Secret) for each in given):
        raise ValueError(
            f"secrets={requests!r} of {task.name} is not possible: use a key, a Secret, or a list of those."
        )
    secrets = [Secret(each) if isinstance(each, str) else each for each in given]
    return [
        {
            attribute.name: str(value)
            for attribute in fields(each)
            if (value := getattr(each, attribute.name)) is not None
        }
        for each in secrets
    ]


def _load_secrets(sent: Any) -> list[Secret]:
    return [Secret(**{**each, **({"mount": Path(each["mount"])} if "mount" in each else {})}) for each in sent]


# -- Plain values ----------------------------------------------------------------------------------------------------


def _plain(name: str, kind: type) -> _Option:
    """An option whose value is JSON already."""

    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"{name}={value!r} must be of type {kind.__name__}: override it with one that is.")
        return value

    return _Option(lambda task: check(getattr(task, name)), check)


_OPTIONS: dict[str, _Option] = {
    "retries": _Option(_dump_retries, _load_retries),
    "timeout": _Option(_dump_timeout, _load_timeout),
    "cache": _Option(_dump_cache, _load_cache),
    "max_inline_io_bytes": _plain("max_inline_io_bytes", int),
    "reusable": _Option(_dump_reusable, _load_reusable, of_replica=True),
    "resources": _Option(_dump_resources, resources_received, of_replica=True),
    "env_vars": _Option(_dump_env_vars, dict, of_replica=True),
    "secrets": _Option(_dump_secrets, _load_secrets, of_replica=True),
    "max_attempts": _plain("max_attempts", int),
    "interruptible": _plain("interruptible", bool),
}
