"""The control and inspect commands of environments' workers, as `celery control` and `celery inspect` know them.

Celery's commands send only what their own process knows. So this module needs nothing of a worker; the handlers are in
`control`, and a worker that serves no environment says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery.worker.control import Panel, nok

#: What `Panel.register` takes, by command.
COMMANDS: Mapping[str, dict[str, Any]] = {
    "env_pause": {"type": "control", "help": "Take no more tasks. For all workers of the environment."},
    "env_resume": {"type": "control", "help": "End a pause or a drain. For all workers of the environment."},
    "env_drain": {
        "type": "control",
        "help": "Take no more tasks and end every replica. For all workers of the environment.",
    },
    "env_drain_host": {
        "type": "control",
        "args": [("host", str)],
        "signature": "HOST",
        "help": "Take no more tasks on a host and end every replica there, of all environments.",
    },
    "env_resume_host": {
        "type": "control",
        "args": [("host", str)],
        "signature": "HOST",
        "help": "End the drain of a host.",
    },
    "env_scale": {
        "type": "control",
        "args": [("lowest", int), ("highest", int)],
        "signature": "[MIN MAX]",
        "help": "Let other bounds hold than the policy's, or the policy's again, for all workers of the environment.",
    },
    "env_prewarm": {
        "type": "control",
        "args": [("n", int)],
        "signature": "[N=1]",
        "help": "Start N replicas now.",
    },
    "env_fleet": {"type": "inspect", "help": "What all workers of this worker's environment have together."},
    "env_status": {"type": "inspect", "help": "Status of the environment that this worker serves."},
    "env_explain": {"type": "inspect", "help": "The last autoscaling decisions."},
}


def register(handlers: Mapping[str, Callable[..., Any]]) -> None:
    """Make the commands known to this process, a worker's or a client's."""
    for name, options in COMMANDS.items():
        Panel.register(name=name, **options)(handlers.get(name, _of_no_environment))


def _of_no_environment(state: Any, **_: Any) -> Any:
    return nok(f"{state.hostname} serves no environment")
