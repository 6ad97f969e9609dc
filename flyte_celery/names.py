"""All names in one place: environments, tasks, queues, workers and Redis keys.

```
environment   my-env                          [a-z0-9] words joined by single - or _
task          my-env.function                 environment, a dot, the function's name
queue         my-env                          the environment's name
worker        my-env@host                     Celery's node name
Redis         my-env, my-env\\x06\\x163, ...    kombu's lists of the queue, one per priority step
              flyte-celery:...                everything else that this package keeps there
```
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Sequence

_ENVIRONMENT = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")

#: Every Redis key of this package starts with it; the lists of a queue are kombu's and do not.
PREFIX = "flyte-celery:"

#: Key in a message's headers for what `custom_context` hands to child tasks.
CUSTOM_CONTEXT_HEADER = "flyte_celery_custom_context"

#: Key in a message's headers for the tasks that wait for this one, the first one first.
CHAIN_HEADER = "flyte_celery_chain"

#: Key in a message's headers for what `task.override(...)` asks of this call.
OVERRIDES_HEADER = "flyte_celery_overrides"

#: Key in a message's headers for when the call was submitted, and its current attempt.
TIMES_HEADER = "flyte_celery_times"

#: Key in a retry's headers for how many starts of the attempts before it were lost.
LOST_HEADER = "flyte_celery_lost"
#: Key in a message's headers for what a run says about the cache: `"disable"` or `"override"`.
RUN_CACHE_HEADER = "flyte_celery_run_cache"

#: Environment variable of a replica's process: its number within its worker.
REPLICA_VARIABLE = "FLYTE_CELERY_REPLICA"

#: Environment variable of a replica's process that has devices: their locks, see `gpu.leftovers`.
REPLICA_DEVICES_VARIABLE = "FLYTE_CELERY_REPLICA_DEVICES"

#: kombu's defaults for its Redis transport options `priority_steps` and `sep` (kombu 5.7).
PRIORITY_STEPS = (0, 3, 6, 9)
PRIORITY_SEPARATOR = "\x06\x16"


def check_environment_name(name: object) -> str:
    """Accept a valid environment name.

    Returns:
        The name.

    Raises:
        TypeError: If it is no string.
        ValueError: If it is not lower-case words of letters and digits joined by single `-` or `_`.
    """
    if not isinstance(name, str):
        raise TypeError(f"The name of an environment must be a str, got {name!r} ({type(name).__name__}).")
    if _ENVIRONMENT.fullmatch(name) is None:
        raise ValueError(
            f"The environment name {name!r} is not valid: use lower-case ASCII letters and digits, in words joined by "
            "a single '-' or '_', such as 'my-env' or 'my_env_2'."
        )
    return name


def task_name(environment: str, function: str) -> str:
    """The fully-qualified name of a task, which is also its name in Celery: `environment.function`."""
    return f"{environment}.{function}"


def split_task_name(name: str) -> tuple[str, str] | None:
    """The environment and function of a task's name; None when no environment's task can have that name.

    A plain Celery task such as `tasks.add` has the same form, so a result names an environment that may not exist.
    """
    environment, _, function = name.partition(".")
    if not function or "." in function or _ENVIRONMENT.fullmatch(environment) is None:
        return None
    return environment, function


def queue_name(environment: str) -> str:
    """The queue of an environment."""
    return environment


def worker_name(environment: str, host: str) -> str:
    """The node name of an environment's worker, as Celery and Flower show it."""
    return f"{environment}@{host}"


def priority_lists(
    queue: str, steps: Sequence[int] = PRIORITY_STEPS, separator: str = PRIORITY_SEPARATOR
) -> tuple[str, ...]:
    """The Redis lists that kombu keeps a queue in, most urgent first.

    The depth of a queue is the sum of their lengths: a reader of the first alone strands work.

    Args:
        queue: Name of the queue.
        steps: kombu's transport option `priority_steps`, ascending. kombu's Redis transport takes 0 as most urgent.
        separator: kombu's transport option `sep`.
    """
    return tuple(f"{queue}{separator}{step}" if step else queue for step in steps)


def priority_index(priority: int, steps: Sequence[int] = PRIORITY_STEPS) -> int:
    """Which of a queue's priority lists a message of this priority is in."""
    return max(0, bisect(steps, priority) - 1)


def environment_key(environment: str) -> str:
    """The catalogue's entry of an environment: its description in JSON, for as long as it was published lately."""
    return f"{PREFIX}environment:{environment}"


def workers_key() -> str:
    """The leases of all workers: a sorted set of member `queue/worker` and the end of its lease."""
    return f"{PREFIX}workers"


def graves_key() -> str:
    """Workers that are gone: a sorted set of such members, and when each may be forgotten."""
    return f"{PREFIX}graves"


def graves_seen_key() -> str:
    """There while nobody need look whether anything has come for those who are gone."""
    return f"{PREFIX}graves-seen"


def worker_member(queue: str, worker: str) -> str:
    """How a worker is called in `workers_key`."""
    return f"{queue}/{worker}"


def claims_key(queue: str, worker: str) -> str:
    """What a worker has claimed: a hash of claim id to message."""
    return f"{PREFIX}claims:{queue}:{worker}"


def started_key(queue: str, worker: str) -> str:
    """Which of a worker's claims have begun to run: a hash of claim id to task id."""
    return f"{PREFIX}started:{queue}:{worker}"


def inbox_key(queue: str, worker: str) -> str:
    """Where an idle worker's next message is put by the server: a list of at most one."""
    return f"{PREFIX}inbox:{queue}:{worker}"


def offers_key() -> str:
    """What live workers' hosts offer: a hash of worker to JSON."""
    return f"{PREFIX}offers"


def offers_until_key() -> str:
    """How long each offer holds: a sorted set of worker and server milliseconds."""
    return f"{PREFIX}offers-until"


def dead_key(queue: str) -> str:
    """Dead letters of a queue: a list of messages that were given up, each with the reason, newest first."""
    return f"{PREFIX}dead:{queue}"


def wait_key(task_id: str) -> str:
    """What a task waits for that has waited a while, in JSON; for as long as its replica says so."""
    return f"{PREFIX}wait:{task_id}"


def later_key(queue: str) -> str:
    """Future work of a queue: a sorted set of entry and when it is due, in milliseconds since the epoch."""
    return f"{PREFIX}later:{queue}"


def later_messages_key(queue: str) -> str:
    """The messages of a queue's future work: a hash of entry to message."""
    return f"{PREFIX}later-messages:{queue}"


def later_queues_key() -> str:
    """The queues that have future work: a sorted set of queue and when its next message is due."""
    return f"{PREFIX}later-queues"


def needs_key(queue: str) -> str:
    """What the tasks of a queue need that were passed on: a set of needs, see `fleet.needs`."""
    return f"{PREFIX}needs:{queue}"


def need_key(queue: str, need: str) -> str:
    """The tasks with one need: a sorted set of entry and its place, by priority and by when it was passed on first."""
    return f"{PREFIX}need:{queue}:{need}"


def passed_on_key(queue: str) -> str:
    """The messages of tasks that were passed on: a hash of entry to its need, a line feed and the message."""
    return f"{PREFIX}passed-on:{queue}"


def passed_on_ends_key(queue: str) -> str:
    """When tasks that were passed on are over: a sorted set of entry and milliseconds since the epoch."""
    return f"{PREFIX}passed-on-ends:{queue}"


def ends_key(queue: str) -> str:
    """When the time of messages in a queue ends: a sorted set of seconds since the epoch, see `lua/overdue.lua`."""
    return f"{PREFIX}ends:{queue}"


def turn_key(what: str) -> str:
    """Which worker does, or has lately done, what one of several is to do."""
    return f"{PREFIX}turn:{what}"


def overdue_key(queue: str) -> str:
    """How far somebody has looked through a queue for messages that have waited too long: a hash."""
    return f"{PREFIX}overdue:{queue}"


def cached_key(member: str) -> str:
    """A result in the cache, in Celery's own form; `member` is `task:hash`."""
    return f"{PREFIX}cached:{member}"


def computing_key(member: str) -> str:
    """Id of the task that computes what is not in the cache yet, where only one may (`Cache(serialize=True)`)."""
    return f"{PREFIX}computing:{member}"


def cache_uses_key(environment: str) -> str:
    """When each cached result of an environment was last used: a sorted set of member and milliseconds."""
    return f"{PREFIX}cache-uses:{environment}"


def cache_entries_key(environment: str) -> str:
    """What is known of an environment's cached results: a hash of member to moment, size and key of the result."""
    return f"{PREFIX}cache-entries:{environment}"


def cache_counts_key(environment: str) -> str:
    """What an environment's cache has done: a hash of bytes kept, and of hits and stores by task."""
    return f"{PREFIX}cache-counts:{environment}"


def fleet_key(queue: str, part: str) -> str:
    """What the workers of an environment tell each other, see `fleet/lua/seats.lua`: one key for each part of it."""
    return f"{PREFIX}fleet:{queue}:{part}"


def orders_key(queue: str) -> str:
    """What operators have ordered of an environment: a hash, which outlives every worker."""
    return f"{PREFIX}orders:{queue}"


def drained_hosts_key() -> str:
    """Hosts that are to run nothing: a hash of host to since when, in seconds since the epoch."""
    return f"{PREFIX}drained-hosts"


def pulse_key() -> str:
    """When any worker last looked at the others, in milliseconds, and until when those who were cut off are awaited."""
    return f"{PREFIX}pulse"


def host_shares_key(host: str) -> str:
    """What the replicas of a host's workers take of it: a hash of worker to millicores and megabytes."""
    return f"{PREFIX}host:{host}"


def replies_key(process: str) -> str:
    """The channel on which a process hears of the results of its calls; also the `reply_to` of their messages."""
    return f"{_REPLIES}{process}"


def is_replies_key(reply_to: str | None) -> bool:
    """Whether a message's `reply_to` is such a channel; Celery gives every message one of its own making."""
    return reply_to is not None and reply_to.startswith(_REPLIES)


_REPLIES = f"{PREFIX}replies:"
