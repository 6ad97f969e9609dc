"""What Celery would put on the wire for a call, made from a template instead of step by step.

The template of a task is made once, from a message that Celery builds itself, so that every header which does not
differ between calls is Celery's. A call fills in the rest:

```
fields of the message   from
headers                 id, arguments' text, parent, root, group, retries, shadow, limits, eta, expiry, your own headers
body                    the arguments, as JSON in base64
properties              id, reply address, priority, expiry, a delivery tag of its own
```
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from celery.app.task import extract_exec_options
from celery.utils.saferepr import saferepr
from celery.utils.time import maybe_iso8601, maybe_make_aware

from ..kombu_json import dumps

if TYPE_CHECKING:
    from celery import Celery

#: Options of `apply_async` that a template can express. A call with any other, unless it is None, goes Celery's way.
EXPRESSIBLE = frozenset(
    {
        "add_to_parent",
        "countdown",
        "eta",
        "expires",
        "group_id",
        "group_index",
        "headers",
        "ignore_result",
        "parent_id",
        "priority",
        "reply_to",
        "retries",
        "root_id",
        "shadow",
        "soft_time_limit",
        "task_id",
        "time_limit",
    }
)

#: What a retry inherits from the attempt before it, besides: a message has it already, in the form in which it travels.
INHERITED = frozenset({"chain", "chord", "link", "link_error", "origin", "replaced_task_nesting"})

#: Longest text of arguments that is put together here: further on, Celery's rules of shortening begin to matter.
_SHORT = 500

#: Headers that `MessageTemplate.fill` gives a value.
_FILLED_IN = frozenset(
    {
        "id",
        "shadow",
        "eta",
        "expires",
        "group",
        "group_index",
        "retries",
        "timelimit",
        "root_id",
        "parent_id",
        "argsrepr",
        "kwargsrepr",
        "ignore_result",
    }
)


def _members(values: dict[str, Any]) -> str:
    """The members of a JSON object, to be put between braces with others."""
    return dumps(values)[1:-1]


class Inexpressible(Exception):
    """A call whose message is better built by Celery; its argument says why."""


class Caller(NamedTuple):
    """What a call inherits from where it is made."""

    parent: Any = None
    """The Celery task that is running; None outside of tasks."""

    root_id: str | None = None
    parent_id: str | None = None
    priority: int | None = None
    """The parent's, where `task_inherit_parent_priority` is set."""

    @classmethod
    def here(cls, app: Celery) -> Caller:
        """What calls made by the current code inherit, by Celery's rules."""
        parent = app.current_worker_task
        if parent is None:
            return _NOBODY
        request = parent.request
        inherits = app.conf.task_inherit_parent_priority
        priority = request.delivery_info.get("priority") if inherits else None
        return cls(parent, request.root_id or request.id, request.id, priority)


_NOBODY = Caller()


class Message(NamedTuple):
    """One message, ready to be pushed."""

    id: str
    key: str
    """The Redis list that it belongs on."""

    text: str
    ignore_result: Any

    number: int
    """The number of that list among the queue's, from 1."""


class MessageTemplate:
    """Makes the messages of one task.

    Args:
        task: The registered Celery task.
        delivery_mode: AMQP's delivery mode.
        lists: The Redis lists of the task's queue, by priority from 0 to 9.
    """

    def __init__(self, task: Any, delivery_mode: int, lists: Sequence[str]) -> None:
        self.task = task
        self._amqp = task.app.amqp
        self._lists = tuple(lists)
        self._numbers = {key: number for number, key in enumerate(dict.fromkeys(lists), 1)}
        of_task = extract_exec_options(task)
        self._defaults = {name: of_task[name] for name in ("time_limit", "soft_time_limit", "expires", "priority")}
        message = self._amqp.as_task_v2("", task.name)
        self._embed: dict[str, Any] = message.body[2]
        self._names: frozenset[str] = frozenset(message.headers)
        # What is the same in all messages is encoded once.
        self._same = headers = {name: value for name, value in message.headers.items() if name not in _FILLED_IN}
        properties = {
            "delivery_mode": delivery_mode,
            # No exchange: the routing key is the queue.
            "delivery_info": {"exchange": "", "routing_key": task.queue.name},
            "body_encoding": "base64",
        }
        content = {"content-encoding": "utf-8", "content-type": "application/json"}
        self._headers, self._properties, self._content = (_members(each) for each in (headers, properties, content))

    def fill(self, args: Sequence[Any], kwargs: Mapping[str, Any], given: Mapping[str, Any], caller: Caller) -> Message:
        """The message of a call.

        Args:
            args: JSON-native positional arguments.
            kwargs: JSON-native keyword arguments.
            given: Options of `apply_async`, of those that are `EXPRESSIBLE`; for a retry also what it has `INHERITED`.
            caller: What the call inherits.

        Raises:
            Inexpressible: Some value needs what only Celery does.
            Exception: Something cannot be encoded, by whatever kombu's encoder raises.
        """
        options = {**self._defaults, **given}
        task_id = options.get("task_id") or random_id()
        priority = options["priority"]
        if priority is None:
            # An explicit None counts as not given; only a call that lacks an id of its family inherits.
            orphan = not (options.get("root_id") and options.get("parent_id"))
            priority = (caller.priority if orphan else None) or 0
        if type(priority) is not int or not isinstance(task_id, str):
            raise Inexpressible("a priority or an id of another type")
        ignore_result = options.get("ignore_result", self.task.ignore_result)
        headers = {
            "id": task_id,
            "shadow": options.get("shadow") or None,
            "eta": None,
            "expires": None,
            "group": options.get("group_id"),
            "group_index": options.get("group_index"),
            "retries": options.get("retries", 0),
            "timelimit": [options["time_limit"], options["soft_time_limit"]],
            "root_id": options.get("root_id") or caller.root_id or task_id,
            "parent_id": options.get("parent_id") or caller.parent_id,
            "argsrepr": self._shown(tuple(args), self._amqp.argsrepr_maxsize),
            "kwargsrepr": self._shown(kwargs, self._amqp.kwargsrepr_maxsize),
            "ignore_result": ignore_result,
        }
        properties = {
            "correlation_id": task_id,
            "reply_to": options.get("reply_to") or self.task.app.thread_oid,
            "priority": priority,
            "delivery_tag": random_id(),
        }
        if options.get("countdown") or options.get("eta") or options["expires"] is not None:
            self._set_times(options, headers, properties)
        if own := options.get("headers"):
            if not self._names.isdisjoint(own):
                raise Inexpressible("headers in place of Celery's")
            headers.update(own)
        embed, same = self._embed, self._headers
        if not INHERITED.isdisjoint(given):
            embed, same = self._inherited(given)
        body = base64.b64encode(dumps((args, kwargs, embed)).encode()).decode()
        text = (
            f'{{{self._content}, "body": "{body}", "headers": {{{same}, {_members(headers)}}}, '
            f'"properties": {{{self._properties}, {_members(properties)}}}}}'
        )
        key = self._lists[min(max(priority, 0), 9)]
        return Message(task_id, key, text, ignore_result, self._numbers[key])

    def _inherited(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """What a retry's message embeds, and those of its headers that it has in common with the attempt before it."""
        names = {"callbacks": "link", "errbacks": "link_error", "chain": "chain", "chord": "chord"}
        embed = {name: given.get(option) for name, option in names.items()}
        headers = {name: given.get(name) for name in ("origin", "replaced_task_nesting")}
        same = {**self._same, **{name: value for name, value in headers.items() if value is not None}}
        return embed, self._headers if same == self._same else _members(same)

    def _set_times(self, options: Mapping[str, Any], headers: dict[str, Any], properties: dict[str, Any]) -> None:
        expires = options["expires"]
        if isinstance(expires, str):  # a retry's, from the message of the attempt before it
            when: Any = maybe_iso8601(expires)
            left = maybe_make_aware(when).timestamp() - time.time()
            if left < 0:
                raise Inexpressible("an expiry in the past: Celery has something to say about it")
            properties["expiration"] = str(int(left * 1000))
        elif expires is not None:
            if type(expires) not in (int, float) or expires < 0:
                raise Inexpressible("an expiry that is a date, or in the past: Celery has something to say about it")
            properties["expiration"] = str(int(expires * 1000))
        timed = self._amqp.as_task_v2(
            "", "", countdown=options.get("countdown"), eta=options.get("eta"), expires=expires
        ).headers
        headers["eta"], headers["expires"] = timed["eta"], timed["expires"]

    def _shown(self, values: Any, longest: int) -> str:
        text = _flat_repr(values)
        if text is None or len(text) >= min(_SHORT, longest):
            return str(saferepr(values, longest, maxlevels=self.task.app.conf.task_repr_maxlevels))
        return text


def _flat_repr(values: tuple[Any, ...] | dict[str, Any]) -> str | None:
    """Celery's `saferepr` of short arguments that hold no others; None where its rules are more than this."""
    shown = []
    for value in values.values() if type(values) is dict else values:
        kind = type(value)
        if kind is str:
            shown.append(_quoted(value))
        elif kind is int or kind is float or kind is bool or value is None:
            shown.append(str(value))
        else:
            return None
    if type(values) is dict:
        shown = [f"{_quoted(name)}: {text}" for name, text in zip(values, shown, strict=True)]
        return f"{{{', '.join(shown)}}}"
    return f"({shown[0]},)" if len(shown) == 1 else f"({', '.join(shown)})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


def random_id() -> str:
    """A random id in the form of a UUID of version 4, as Celery and kombu give one to each message."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
