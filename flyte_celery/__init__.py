"""Flyte's reusable environments on Celery: a queue per environment, warm replicas, and an autoscaler.

```python
import flyte_celery as flyte

app = flyte.init()
env = flyte.TaskEnvironment(name="digits", reusable=flyte.ReusePolicy(replicas=(0, 4), concurrency=8))


@env.task
async def classify(image: list[float]) -> int: ...
```

Importing this package defines words and does nothing else: no Celery, no Redis, no connection. The functions that
need those are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors
from .cache import Cache, CachePolicy
from .context import ctx, custom_context, get_custom_context, group
from .devices import AMD_GPU, APPLE_SILICON, GPU, HABANA_GAUDI, TPU, Device, Neuron
from .dispatcher import set_dispatcher_factory as _set_dispatcher_factory
from .environment import TaskEnvironment
from .environment_base import Environment
from .image import Image
from .resources import Resources
from .retry import Backoff, RetryStrategy
from .reuse import ReusePolicy
from .secret import Secret, SecretRequest
from .timeout import Timeout
from .tracing import trace

if TYPE_CHECKING:
    from .client.install import init
    from .client.local_run import workflow
    from .client.mapping import map, map_task
    from .client.run import run, with_runcontext

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - grouped for the reader
    # Environments
    "Environment",
    "ReusePolicy",
    "TaskEnvironment",
    # Resources and devices
    "AMD_GPU",
    "APPLE_SILICON",
    "Device",
    "GPU",
    "HABANA_GAUDI",
    "Neuron",
    "Resources",
    "TPU",
    # Policies of a task
    "Backoff",
    "Cache",
    "CachePolicy",
    "Image",
    "RetryStrategy",
    "Secret",
    "SecretRequest",
    "Timeout",
    # Running
    "init",
    "map",
    "run",
    "with_runcontext",
    # Inside a task
    "ctx",
    "custom_context",
    "get_custom_context",
    "group",
    "trace",
    # Errors
    "errors",
    # Names of Flyte 1, kept for old code
    "map_task",
    "workflow",
    # About this package
    "__version__",
]

#: Where the names live that need Celery.
_NEEDS_CELERY = {
    "init": "client.install",
    "map": "client.mapping",
    "map_task": "client.mapping",
    "run": "client.run",
    "with_runcontext": "client.run",
    "workflow": "client.local_run",
}


# A process that has a broker URL in its environment can submit without calling `init`; Celery is loaded when it does.
_set_dispatcher_factory(lambda: import_module(".client.install", __name__).default_dispatcher())


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_CELERY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_NEEDS_CELERY[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
