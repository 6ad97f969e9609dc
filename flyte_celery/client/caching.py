"""Calls that are answered from the cache: looked up before anything is published, and never queued.

What a task's results are cached under:

```
task, interface   name; parameters and return value with their types
version           of the function's code, or what `Cache` says, see `cache`
inputs            in the form in which they travel, defaults filled in, without `ignored_inputs`
```
A hit is a result that is there already, under the id of the task that computed it; a call whose id was chosen by
somebody (`task_id=`, groups, chains) gets a copy under that id. Calls that only their task can answer, because of what
Celery does when it ends (`link`, chords) or before it begins (`eta`), are published, and the replica looks instead, see
`cached_run`.

The cache lives in the Redis of the result backend. Where that does not answer, calls are made as if nothing was there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import redis
from celery import signature
from celery.utils.log import get_logger
from kombu.utils.json import dumps

from .. import context
from ..cache import Cache, VersionParameters
from ..fleet.cached import Found, Place, find, look_up
from ..fleet.scripts import script
from ..fleet.storing import UNFENCED, arguments, store
from ..names import OVERRIDES_HEADER, is_replies_key
from ..urls import redacted

if TYPE_CHECKING:
    from ..task import TaskTemplate
    from .publish import Publisher
    from .results import EnvironmentResult

    AnyTask = TaskTemplate[Any, Any]

logger = get_logger("flyte_celery.cache")

Options = Mapping[str, Any]

#: Options of a call whose work is the task's own to do, or which make it another task than the one that is cached.
_LEFT_TO_THE_TASK = ("chord", "countdown", "eta", "ignore_result", "link", "retries")

#: Most caches of one task that are remembered: calls may override it as they like.
_MOST_PLANS = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """How results of a task are cached, for calls with the same `Cache`."""

    template: AnyTask
    cache: Cache
    #: What all keys of these calls have in common.
    prefix: str

    @property
    def max_age(self) -> float | None:
        """Seconds after which a result is not used any more."""
        age = self.cache.max_age
        return age.total_seconds() if isinstance(age, timedelta) else None

    def place(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Place:
        """Where the result of a call is kept, of arguments as they travel."""
        inputs = self.template.types.inputs(args, kwargs)
        for name in self.cache.get_ignored_inputs():
            inputs.pop(name, None)
        # What arrives in a message has been through JSON; what is about to leave is brought to the same form.
        text = self.prefix + json.dumps(json.loads(dumps(inputs)), sort_keys=True)
        name = self.template.name
        return Place(self.template.parent_env_name, name, f"{name}:{hashlib.sha256(text.encode()).hexdigest()}")


class TaskCache:
    """The caches that calls of one task may have: the task's own, and those that callers override it with."""

    def __init__(self, template: AnyTask) -> None:
        self._template = template
        self._plans: dict[str, Plan | None] = {}
        self._enabled = template.cache.is_enabled()

    def concerns(self, headers: Options | None) -> bool:
        """Whether a call may have to do with the cache: for nearly all this is all that is asked."""
        return self._enabled or (headers is not None and OVERRIDES_HEADER in headers)

    def plan(self, headers: Options | None, run: str | None) -> Plan | None:
        """How the result of a call is cached; None if not.

        Args:
            headers: The call's.
            run: What its run says: `"disable"`, `"override"`, or None.

        Raises:
            ValueError: No version can be found.
        """
        if run == "disable":
            return None
        overrides = (headers or {}).get(OVERRIDES_HEADER)
        sent = overrides.get("cache") if isinstance(overrides, dict) else None
        known = f"{run} {json.dumps(sent, sort_keys=True)}"
        if known not in self._plans:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[known] = self._make(sent, run)
        return self._plans[known]

    def _make(self, sent: Any, run: str | None) -> Plan | None:
        template = self._template
        cache = template.cache
        if sent is not None:
            try:
                age = sent["max_age"]
                cache = Cache(**{**sent, "max_age": None if age is None else timedelta(seconds=age)})
            except (TypeError, ValueError, KeyError) as exc:
                logger.warning("A call of %s overrides its cache with %r, which is none: %s", template.name, sent, exc)
        if not cache.is_enabled():
            return None
        if template.celery_options.get("serializer") == "pickle":
            logger.warning(
                "Results of %s are not cached: with serializer='pickle' its inputs have no text to be known by.",
                template.name,
            )
            return None
        version = cache.get_version(VersionParameters(template.func, template.image))
        if run == "override":
            cache = Cache("override", version, ignored_inputs=cache.get_ignored_inputs(), max_age=cache.max_age)
        return Plan(template, cache, "\0".join((template.name, template.types.interface, version, "")))


# -- Where the cache is ----------------------------------------------------------------------------------------------


def client_of(task: Any) -> Any:
    """A client of the Redis that keeps a task's results; None, said once, where another kind of backend does."""
    backend = task.backend
    if hasattr(backend, "replies"):
        return backend.client
    app = task.app
    if app not in _without_redis:
        _without_redis.add(app)
        logger.warning(
            "%s asks for a cache, and there is none: results are cached in Redis, and the result backend is %s. "
            "Set result_backend to a Redis.",
            task.name,
            redacted(str(app.conf.result_backend or "disabled")),
        )
    return None


_without_redis: weakref.WeakSet[Any] = weakref.WeakSet()

Look = tuple[list[str], list[Any]]


def find_or_miss(client: Any, looks: Sequence[Look]) -> list[Found]:
    """Look up several results in one round trip; without an answer none of them is there."""
    if not looks:
        return []
    try:
        return find(client, looks)
    except (redis.RedisError, OSError) as exc:
        logger.warning("The cache does not answer, so %d call(s) count as misses: %s", len(looks), exc)
        return [Found()] * len(looks)


class Looks:
    """Looks up in one round trip what the coroutines of an event loop ask for in the same turn; blocks no loop.

    It does not hold its loop, which would never be freed then.
    """

    def __init__(self, publisher: Publisher, client: Any) -> None:
        self._publisher = publisher
        self._client = client
        self._asked: list[tuple[Look, asyncio.Future[Found]]] = []

    @classmethod
    def current(cls, publisher: Publisher, client: Any) -> Looks:
        """That of the running event loop."""
        of_loop = _looks.setdefault(asyncio.get_running_loop(), weakref.WeakKeyDictionary())
        if client not in of_loop:
            of_loop[client] = cls(publisher, client)
        return of_loop[client]

    async def find(self, look: Look) -> Found:
        """Look one result up."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Found] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._ask, loop)
        self._asked.append((look, answer))
        return await answer

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        asked, self._asked = self._asked, []
        looks = [look for look, _ in asked]
        finding = loop.run_in_executor(self._publisher.executor, find_or_miss, self._client, looks)
        finding.add_done_callback(lambda done: _tell([answer for _, answer in asked], done))


def _tell(answers: list[asyncio.Future[Found]], done: asyncio.Future[list[Found]]) -> None:
    found = [Found()] * len(answers) if done.cancelled() or done.exception() else done.result()
    for answer, each in zip(answers, found, strict=True):
        if not answer.done():
            answer.set_result(each)


_looks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.WeakKeyDictionary[Any, Looks]] = (
    weakref.WeakKeyDictionary()
)


# -- Before a call is made -------------------------------------------------------------------------------------------


def look_of(task: Any, args: Any, kwargs: Any, options: Options) -> tuple[Any, Look] | None:
    """The Redis to ask for a call's result, and what to ask; None for a call that must be made.

    Args:
        task: The registered Celery task.
        args: Its positional arguments, as in the call or as they travel.
        kwargs: Its keyword arguments, likewise.
        options: Those of `apply_async`.

    Raises:
        TypeError: An argument does not fit.
        ValueError: No version can be found for the cache.
    """
    headers = options.get("headers")
    if not task.caching.concerns(headers) or any(options.get(name) for name in _LEFT_TO_THE_TASK):
        return None
    plan = task.caching.plan(headers, context.run_cache())
    if plan is None or plan.cache.behavior != "auto" or task.ignore_result or task.app.conf.task_always_eager:
        return None
    client = client_of(task)
    if client is None:
        return None
    task.publisher.ensure_broker()  # the bundled Redis keeps the results, too
    place = plan.place(*task.template.dump_call(tuple(args or ()), kwargs or {}))
    return client, look_up(place, plan.max_age, int(task.backend.expires or 0))


def answer(task: Any, args: Any, kwargs: Any, options: Options) -> EnvironmentResult | None:
    """The result of a call that is in the cache, None when the call must be made; raises as `look_of`."""
    asked = look_of(task, args, kwargs, options)
    if asked is None:
        return None
    client, look = asked
    return hit(task, find_or_miss(client, [look])[0], options)


def answer_all(task: Any, calls: Sequence[tuple[Any, Any]], options: Options) -> list[EnvironmentResult | None]:
    """The same for many calls of a task in one round trip; one whose arguments do not fit counts as not there."""
    looks: list[Look | None] = []
    client: Any = None
    for args, kwargs in calls:
        asked = None
        with contextlib.suppress(TypeError):
            asked = look_of(task, args, kwargs, options)
        client, look = asked or (client, None)
        looks.append(look)
    found = iter(find_or_miss(client, [look for look in looks if look is not None]))
    return [None if look is None else hit(task, next(found), options) for look in looks]


async def answer_async(task: Any, args: Any, kwargs: Any, options: Options) -> EnvironmentResult | None:
    """The same without blocking the event loop: calls of one turn share the round trip."""
    asked = look_of(task, args, kwargs, options)
    if asked is None:
        return None
    client, look = asked
    return hit(task, await Looks.current(task.publisher, client).find(look), options)


def hit(task: Any, found: Found, options: Options) -> EnvironmentResult | None:
    """The result of a call that was found, with all that Celery does for a call; None when it was not."""
    if found.payload is None:
        return None
    backend = task.backend
    payload: Any = found.payload
    meta = backend.decode(payload)
    task_id = options.get("task_id") or meta["task_id"]
    children: list[Any] = []
    if chain := list(options.get("chain") or ()):
        root_id = options.get("root_id") or task_id
        following = signature(chain.pop(), app=task.app)
        children = [following.apply_async((meta["result"],), chain=chain, parent_id=task_id, root_id=root_id)]
    if task_id != meta["task_id"]:
        meta = {**meta, "task_id": task_id, "children": [each.as_tuple() for each in children], "cached": True}
        payload = backend.encode(meta)
        _store_copy(backend, task_id, payload, options.get("reply_to"))
    result: EnvironmentResult = task.AsyncResult(task_id)
    result.answer(payload)
    parent = task.app.current_worker_task
    if parent is not None and options.get("add_to_parent", True):
        parent.add_trail(result)
    return result


def _store_copy(backend: Any, task_id: str, payload: Any, reply_to: str | None) -> None:
    """Give a result the id that somebody waits for, here and elsewhere."""
    key = backend.get_key_for_task(task_id)
    name = key.decode() if isinstance(key, bytes) else key
    to = reply_to if reply_to is not None and is_replies_key(reply_to) else ""
    write = store(name, payload, int(backend.expires or 0), to, UNFENCED, finished=False)
    backend.ensure(script("store").run, (backend.client, *arguments([write])))
    backend.replies.known(name.encode(), payload)
