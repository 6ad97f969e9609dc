"""Messages from a template are Celery's own in every field, and calls that need Celery's general path take it."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import functools
import gc
import itertools
import json
import os
import signal
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, Task, signals
from celery._state import _task_stack
from celery.exceptions import Retry
from celery.result import AsyncResult
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.exceptions import OperationalError
from kombu.messaging import Producer

import flyte_celery as flyte
from flyte_celery import names
from flyte_celery.client import mapping
from flyte_celery.client.batch import MOST_AT_ONCE, Batch, Turn
from flyte_celery.client.install import dispatcher_of
from flyte_celery.client.message import Caller, random_id
from flyte_celery.client.publish import _Push
from flyte_celery.fleet.later import Later
from flyte_celery.fleet.storing import FENCE_FIELD, SEEN_WITHIN, Fence
from flyte_celery.task import set_dispatcher
from tests.helpers.redis_server import RedisServer
from tests.helpers.waiting import wait_until

ENV = "test-publish"
env = flyte.TaskEnvironment(ENV)


@env.task
def anything(a: Any = None, b: Any = None) -> int:
    return 0


@env.task
def number(x: int) -> int:
    return x


@env.task(cache="auto")
def cached(x: int) -> int:
    return x


without_version = env.task(cache="auto")(eval("lambda x: x", {"__name__": __name__}))


@env.task(time_limit=60, soft_time_limit=50, expires=600, ignore_result=True)
def with_options(a: Any = None, b: Any = None) -> int:
    return 0


@env.task(serializer="pickle")
def pickled(x: int) -> int:
    return x


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    """An app whose broker nobody consumes."""
    app = Celery("test-publish", broker=redis_url, backend=redis_url, set_as_current=False)
    app.set_current()
    flyte.init(app=app)
    try:
        yield app
    finally:
        set_dispatcher(None)
        app.close()


@pytest.fixture
def broker(redis_url: str) -> Iterator[Broker]:
    """What is in the broker."""
    with redis.Redis.from_url(redis_url) as client:
        yield Broker(client)


class Broker:
    """Takes messages out of the environment's queue."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def lists(self) -> list[str]:
        """The queue's lists that hold a message."""
        return sorted(key.decode() for key in self.client.keys(f"{ENV}*"))

    def take(self) -> tuple[str, dict[str, Any]]:
        """The only message of the queue, decoded, and its list."""
        (key,) = self.lists()
        (text,) = self.take_all(key)
        return key, text

    def take_all(self, key: str = ENV) -> list[dict[str, Any]]:
        """All messages of a list, oldest first."""
        texts: Any = self.client.lrange(key, 0, -1)
        self.client.delete(key)
        return [decoded(json.loads(text)) for text in reversed(texts)]


def decoded(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its body in place of the base64 of it."""
    return {**message, "body": json.loads(base64.b64decode(message["body"]))}


class PublishedByCelery(AssertionError):
    """Celery's general path was taken."""


@contextmanager
def only_templates(task: Any) -> Iterator[None]:
    """Fail what takes Celery's general path."""
    publisher = task.publisher
    general = publisher.by_celery

    def refuse(*_: Any) -> None:
        raise PublishedByCelery

    publisher.by_celery = refuse
    try:
        yield
    finally:
        publisher.by_celery = general


def ready(task: Any, broker: Broker) -> Any:
    """The Celery task, after its first call."""
    task.delay(1)
    broker.client.delete(*broker.lists())
    return task._celery_task()


# -- The same message ------------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
    | st.sampled_from(["'", '"', "\\", "a" * 480, "b" * 2000, "\ud800", "\u2028", "{}", "%s"])
)
values = scalars | st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ids = st.uuids().map(str) | st.just("an id of \u00e4 kind")
options = st.fixed_dictionaries(
    {},
    optional={
        "countdown": st.sampled_from([0, 1, 2.5, 3600]),
        "eta": st.sampled_from(
            [datetime(2040, 1, 2, 3, 4, 5), datetime(2040, 1, 2, tzinfo=UTC), "2040-01-02T03:04:05"]
        ),
        "expires": st.sampled_from(
            [0, 5, 7.25, None, datetime(2040, 1, 2, tzinfo=UTC), "2040-01-02T00:00:00+00:00", -1]
        ),
        "priority": st.integers(-3, 12) | st.none(),
        "headers": st.none()
        | st.dictionaries(st.text(min_size=1, max_size=5), values, max_size=2)
        | st.just({"lang": "x"}),
        "shadow": st.none() | st.text(max_size=5),
        "retries": st.integers(0, 5),
        "time_limit": st.none() | st.integers(1, 100),
        "soft_time_limit": st.none() | st.integers(1, 100),
        "task_id": ids,
        "ignore_result": st.booleans() | st.none(),
        "root_id": ids | st.none(),
        "parent_id": ids | st.none(),
        "group_id": ids,
        "group_index": st.integers(0, 9),
        "reply_to": st.text(min_size=1, max_size=9),
        "link": st.none(),
        "chain": st.none(),
    },
)
parents = st.none() | st.fixed_dictionaries(
    {"priority": st.none() | st.integers(0, 9), "inherit": st.booleans(), "root": st.none() | ids}
)


def comparable(message: dict[str, Any], options: dict[str, Any]) -> tuple[dict[str, Any], list[float]]:
    """A message without what differs between any two calls, and its moments in seconds."""
    headers, properties = dict(message["headers"]), dict(message["properties"])
    assert len(properties.pop("delivery_tag")) == 36
    own = properties.pop("correlation_id")
    if "task_id" not in options:
        assert len(own) == 36
        headers = {name: "its own id" if value == own else value for name, value in headers.items()}
    moments = []
    for name in ("eta", "expires"):
        if headers[name] is not None and options.get("eta") != headers[name]:
            moment = datetime.fromisoformat(headers[name])
            headers[name] = moment.tzinfo
            moments.append(moment.timestamp())
    if "expiration" in properties:
        moments.append(int(properties["expiration"]) / 1000)
        properties["expiration"] = "a number"
    return {**message, "headers": headers, "properties": properties}, moments


@contextmanager
def inside(app: Celery, parent: dict[str, Any] | None) -> Iterator[None]:
    """Run code as the body of a task that a worker has given to Celery's tracer."""
    app.conf.task_inherit_parent_priority = bool(parent and parent["inherit"])
    if parent is None:
        yield
        return
    task = with_options._celery_task()
    request = {"id": "the parent", "root_id": parent["root"], "called_directly": False}
    task.push_request(**request, delivery_info={"priority": parent["priority"]}, children=[])
    _task_stack.push(task)
    try:
        yield
    finally:
        _task_stack.pop()
        task.pop_request()


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(args=st.lists(values, max_size=2), kwargs=st.booleans(), options=options, parent=parents, other=st.booleans())
def test_a_template_makes_celerys_message(
    app: Celery,
    broker: Broker,
    args: list[Any],
    kwargs: bool,
    options: dict[str, Any],
    parent: dict[str, Any] | None,
    other: bool,
) -> None:
    """Whatever the arguments and options: the same call, published both ways, is the same message in the same list."""
    template = with_options if other else anything
    task = template._celery_task()
    if template.name not in task.publisher._templates:
        ready(template, broker)
    call = ((), dict(zip("ab", args, strict=False))) if kwargs else (tuple(args), {})
    with inside(app, parent):
        outcome = both_ways(task, call, options)
    assert type(outcome[0]) is type(outcome[1])
    if isinstance(outcome[0], Exception):
        return
    messages = {key: broker.take_all(key) for key in broker.lists()}
    assert len(messages) == 1, "both are in one list"
    (ours, our_moments), (celerys, celerys_moments) = (
        comparable(message, options) for message in next(iter(messages.values()))
    )
    assert ours == celerys
    assert our_moments == pytest.approx(celerys_moments, abs=30)
    assert outcome[0].ignored == outcome[1].ignored


def both_ways(task: Any, call: tuple[Any, ...], options: dict[str, Any]) -> list[Any]:
    """What a call returns or raises, by a template where there is one for it, and by Celery."""
    outcome: list[Any] = []
    for publish in (functools.partial(task.publisher.publish, open_now=True), task.publisher.by_celery):
        try:
            outcome.append(publish(task, *task.outgoing(*call, dict(options))))
        except Exception as exc:
            outcome.append(exc)
    return outcome


EXPRESSIBLE_CALLS: list[dict[str, Any]] = [
    {},
    {"task_id": "t", "shadow": "s", "headers": {"x": 1}, "retries": 1, "reply_to": "r", "link": None},
    {"countdown": 5},
    {"eta": datetime(2040, 1, 2, tzinfo=UTC), "expires": 5},
    {"time_limit": 5, "soft_time_limit": 4, "priority": 9, "ignore_result": True},
    {"root_id": "r", "parent_id": "p", "group_id": "g", "group_index": 1},
]


@pytest.mark.parametrize("options", EXPRESSIBLE_CALLS, ids=lambda options: "-".join(options) or "none")
def test_calls_that_a_template_can_express_use_it(app: Celery, broker: Broker, options: dict[str, Any]) -> None:
    """The comparison above would hold, too, if Celery published everything."""
    with only_templates(ready(anything, broker)):
        anything.apply_async((1,), **options)
    _, message = broker.take()
    assert message["body"][0] == [1]


# -- Retries ---------------------------------------------------------------------------------------------------------

first_calls = st.fixed_dictionaries(
    {},
    optional={
        "expires": st.sampled_from([600, datetime(2040, 1, 2, tzinfo=UTC)]),
        "priority": st.integers(0, 9),
        "headers": st.dictionaries(st.text(min_size=3, max_size=5), values, max_size=2),
        "shadow": st.text(min_size=1, max_size=5),
        "time_limit": st.integers(50, 100),
        "ignore_result": st.booleans(),
        "root_id": ids,
        "parent_id": ids,
        "group_id": ids,
        "group_index": st.integers(0, 9),
        "link": st.sampled_from([[], [{"task": "x.y", "args": [1], "kwargs": {}, "options": {}}]]),
        "link_error": st.just([{"task": "x.z", "args": [], "kwargs": {}, "options": {"task_id": "e"}}]),
        "chain": st.just([{"task": "x.y", "args": [], "kwargs": {}, "options": {}}]),
        "chord": st.just({"task": "x.y", "args": [], "kwargs": {}, "options": {"task_id": "c"}}),
        "replaced_task_nesting": st.integers(0, 2),
    },
)
retries = st.fixed_dictionaries(
    {},
    optional={
        "countdown": st.sampled_from([0, 1.5, 3600]),
        "eta": st.just(datetime(2040, 1, 2, tzinfo=UTC)),
        "args": st.lists(values, min_size=1, max_size=1).map(tuple),
        "priority": st.integers(0, 9),
    },
)


@contextmanager
def tracing(task: Any, message: dict[str, Any]) -> Iterator[Fence]:
    """Run code where Celery's tracer runs a message's task that a worker has claimed; gives the claim's fence."""
    args, kwargs, embed = message["body"]
    fence = Fence("test-publish/worker", "1")
    properties = {**message["properties"], FENCE_FIELD: fence}
    info = {**message["properties"]["delivery_info"], "priority": message["properties"]["priority"]}
    fields = {
        **message["headers"],
        **embed,
        "args": args,
        "kwargs": kwargs,
        "properties": properties,
        "reply_to": message["properties"]["reply_to"],
        "delivery_info": info,
    }
    task.push_request(fields, called_directly=False, children=[])
    _task_stack.push(task)
    try:
        yield fence
    finally:
        _task_stack.pop()
        task.pop_request()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(args=st.lists(values, max_size=2), first=first_calls, options=retries)
def test_a_retry_that_ends_its_attempt_is_celerys_message(
    app: Celery, broker: Broker, args: list[Any], first: dict[str, Any], options: dict[str, Any]
) -> None:
    task = anything._celery_task()
    if anything.name not in task.publisher._templates:
        ready(anything, broker)
    task.publisher.by_celery(task, *task.outgoing(tuple(args), {}, dict(first)))
    _, message = broker.take()
    with tracing(task, message) as fence:
        with pytest.raises(Retry), only_templates(task):
            task.retry(**options)
        assert broker.lists() == [], "it is nobody's before the attempt has ended"
        assert fence.next_attempt is not None
        fence.member = ""  # without a fence, as for results that anybody may store
        following = fence.next_attempt
        task.backend.end_attempt(fence)
        later = Later(broker.client, ENV)
        entries = [entry for entry, _ in later.entries()]
        assert bool(entries) == (following.wait > SEEN_WITHIN)
        later.drop(entries)
        key, ours = (following.key, decoded(json.loads(following.message))) if entries else broker.take()
        with pytest.raises(Retry):  # a worker without claims has no fence
            task.request.properties.pop(FENCE_FIELD)
            task.retry(**options)
        celerys_key, celerys = broker.take()
    assert key == celerys_key
    celerys["properties"].pop("origin")  # it is among the headers, and here nobody reads it
    (mine, moments), (theirs, their_moments) = comparable(ours, options), comparable(celerys, options)
    assert mine == theirs
    assert moments == pytest.approx(their_moments, abs=30)


# -- Messages whose time ends ----------------------------------------------------------------------------------------


def test_when_the_time_of_a_message_ends_is_noted(app: Celery, broker: Broker) -> None:
    """For workers, which look through the queue only when it is over; whoever publishes it, and each second once."""

    def ends() -> list[float]:
        return [second for _, second in broker.client.zrange(names.ends_key(ENV), 0, -1, withscores=True)]  # type: ignore[union-attr]

    anything.delay(1)
    assert ends() == []
    limited = anything.override(timeout=flyte.Timeout(max_queued_time=600))
    for _ in range(5):
        limited.delay(1)
    now = time.time()
    assert 1 <= len(ends()) <= 2
    assert all(595 <= end - now <= 602 for end in ends())
    signals.before_task_publish.connect(listen := lambda **_: None)  # Celery publishes
    try:
        anything.override(timeout=flyte.Timeout(deadline=1200)).delay(1)
    finally:
        signals.before_task_publish.disconnect(listen)
    assert 1195 <= max(ends()) - now <= 1202


# -- Celery's general path -------------------------------------------------------------------------------------------


def refused(task: Any, **options: Any) -> bool:
    """Whether a call takes Celery's general path."""
    with only_templates(task._celery_task()):
        try:
            task.apply_async((1,), **options)
        except PublishedByCelery:
            return True
    return False


@pytest.mark.parametrize(
    "options",
    [
        {"link": number.name},
        {"link_error": number.name},
        {"serializer": "pickle"},
        {"compression": "gzip"},
        {"queue": "other"},
        {"exchange": "other"},
        {"routing_key": "other"},
        {"retry": False},
        {"retry_policy": {"max_retries": 1}},
        {"connection": True},
        {"producer": True},
        {"chain": [number.name]},
        {"expires": -1},
        {"priority": "high"},
        {"stamped_headers": ["x"], "x": 1},
        {"invented": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_a_template_cannot_express_go_celerys_way(
    app: Celery, broker: Broker, options: dict[str, Any]
) -> None:
    ready(anything, broker)
    assert refused(anything, **options)


@pytest.mark.parametrize("signal", ["before_task_publish", "after_task_publish", "task_sent"])
def test_a_signal_with_a_receiver_goes_celerys_way(app: Celery, broker: Broker, signal: str) -> None:
    """It is looked at for each call: tools connect theirs at any time."""
    ready(anything, broker)
    assert not refused(anything)
    received: list[Any] = []

    def receive(sender: Any = None, **_: Any) -> None:
        received.append(sender)

    getattr(signals, signal).connect(receive)
    try:
        anything.delay(1)
    finally:
        getattr(signals, signal).disconnect(receive)
    assert received == [anything.name]
    assert not refused(anything)


@pytest.mark.parametrize("setting", ["task_send_sent_event", "task_always_eager"])
def test_settings_that_only_celery_serves_may_change_at_any_time(app: Celery, broker: Broker, setting: str) -> None:
    ready(anything, broker)
    setattr(app.conf, setting, True)
    assert refused(anything)
    setattr(app.conf, setting, False)
    assert not refused(anything)


def test_routers_after_ours_are_never_asked_and_before_ours_go_celerys_way(app: Celery, broker: Broker) -> None:
    app.conf.task_routes = [*app.conf.task_routes, {"*": {"queue": "elsewhere"}}]
    ready(anything, broker)
    assert not refused(anything)
    app.conf.task_routes = [{"*": {"priority": 9}}, *app.conf.task_routes]
    app.amqp.flush_routes()
    del app.amqp.router
    assert refused(anything)


def test_pickled_arguments_go_celerys_way(app: Celery, broker: Broker) -> None:
    pickled.delay(1)
    assert refused(pickled)


def test_a_task_class_of_the_users_with_its_own_apply_async_is_called(redis_url: str, broker: Broker) -> None:
    """`task_cls` is how people trace and authorise calls."""
    app = Celery("own", broker=redis_url, backend=redis_url, task_cls=f"{__name__}:CountingTask", set_as_current=False)
    flyte.init(app=app)
    try:
        before = CountingTask.calls
        for _ in range(3):
            anything.delay(1)
        assert CountingTask.calls == before + 3
    finally:
        set_dispatcher(None)
        app.close()


class CountingTask(Task):
    """Counts its calls."""

    calls = 0

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Count, and submit."""
        type(self).calls += 1
        CountingTask.calls = type(self).calls
        return super().apply_async(*args, **kwargs)


@pytest.mark.parametrize("owner, name", [(Producer, "publish"), (Task, "apply_async"), (Celery, "send_task")])
def test_what_a_monitoring_tool_has_wrapped_is_called(
    redis_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """Such tools replace methods of Celery and kombu before the first call."""
    seen = []
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        seen.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)
    app = Celery("own", broker=redis_url, backend=redis_url, set_as_current=False)
    flyte.init(app=app)
    try:
        for _ in range(3):
            anything.delay(1)
        assert len(seen) == 3
    finally:
        set_dispatcher(None)
        app.close()


def test_an_app_with_its_own_send_task_is_called(redis_url: str, broker: Broker) -> None:
    class Counting(Celery):
        calls = 0

        def send_task(self, *args: Any, **kwargs: Any) -> Any:
            Counting.calls += 1
            return super().send_task(*args, **kwargs)

    app = Counting("own", broker=redis_url, backend=redis_url, set_as_current=False)
    flyte.init(app=app)
    try:
        for _ in range(3):
            anything.delay(1)
        assert Counting.calls == 3
    finally:
        set_dispatcher(None)
        app.close()


@pytest.mark.parametrize("options", [{"global_keyprefix": "mine:"}, {"body_encoding": "utf-8"}], ids=str)
def test_brokers_with_options_of_their_own_go_celerys_way(app: Celery, broker: Broker, options: dict[str, Any]) -> None:
    app.conf.broker_transport_options = options
    anything.delay(1)
    assert refused(anything)


def test_priority_steps_and_separator_are_the_brokers(app: Celery, broker: Broker) -> None:
    app.conf.broker_transport_options = {"priority_steps": [0, 5], "sep": ":"}
    with only_templates(ready(anything, broker)):
        anything.apply_async((1,), priority=4)
        anything.apply_async((1,), priority=7)
    assert broker.lists() == [ENV, f"{ENV}:5"]


# -- Connections -----------------------------------------------------------------------------------------------------


def test_a_lost_connection_costs_no_message(app: Celery, broker: Broker) -> None:
    """It is tried again, by Celery's policy."""
    ready(anything, broker)
    broker.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    for value in range(3):
        anything.delay(value)
    assert [message["body"][0] for message in broker.take_all()] == [[0], [1], [2]]
    assert not refused(anything)


def test_a_broker_that_is_away_is_named_without_its_password(own_redis_server: RedisServer) -> None:
    """Within Celery's retry policy; when it is back, calls arrive."""
    url = own_redis_server.url(1).replace("redis://", "redis://:secret@")
    set_password(own_redis_server)
    app = Celery("away", broker=url, backend=url, set_as_current=False)
    flyte.init(app=app)
    try:
        anything.delay(1)
        anything.delay(1)
        own_redis_server.stop()
        start = time.monotonic()
        with pytest.raises(OperationalError, match=rf"{anything.name}.*redis://:\*\*@127.0.0.1") as raised:
            anything.delay(1)
        assert time.monotonic() - start < 10
        assert "secret" not in str(raised.value)
        with pytest.raises(OperationalError):
            list(flyte.map(number, range(3)))
        own_redis_server.start()
        set_password(own_redis_server)
        anything.delay(2)
    finally:
        set_dispatcher(None)
        app.close()


def test_who_is_interrupted_while_the_broker_is_away_learns_that(own_redis_server: RedisServer) -> None:
    """A wait that ends early revokes its call, which kombu would try for ever."""
    url = own_redis_server.url(1)
    app = Celery("away", broker=url, backend=url, set_as_current=False)
    app.set_current()
    flyte.init(app=app)
    replies = app.backend.replies

    def interrupt() -> None:
        wait_until(lambda: replies.open_waits() > 0)
        own_redis_server.stop()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            dispatcher_of(app).call(number, (1,), {})
        interrupting.join()
        own_redis_server.start()
        wait_until(lambda: all(thread.name != "flyte-celery-revoke" for thread in threading.enumerate()))
    finally:
        set_dispatcher(None)
        app.close()


def set_password(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url()) as client:
        client.config_set("requirepass", "secret")


def test_arguments_that_no_serializer_writes_name_the_task(app: Celery) -> None:
    with pytest.raises(Exception, match=pickled.name):
        pickled.apply_async((threading.Lock(),))


def test_threads_share_the_connection(app: Celery, broker: Broker) -> None:
    ready(anything, broker)
    before = connections(broker)

    def publish(thread: int) -> None:
        for value in range(50):
            anything.delay(thread, value)

    with only_templates(anything._celery_task()):
        threads = [threading.Thread(target=publish, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sent = [tuple(message["body"][0]) for message in broker.take_all()]
    assert sorted(sent) == [(thread, value) for thread in range(8) for value in range(50)]
    for thread in range(8):
        assert [value for owner, value in sent if owner == thread] == list(range(50)), "each in its own order"
    assert connections(broker) == before


def connections(broker: Broker) -> int:
    clients: Any = broker.client.client_list(_type="normal")
    return len(clients)


def test_who_is_interrupted_while_writing_for_others_is_so_alone(app: Celery, broker: Broker) -> None:
    """A soft time limit, or Ctrl-C, is for the thread that it is raised in."""
    task = ready(anything, broker)
    line = task.publisher._line
    mine, others = (task.publisher.prepare(task, (value,), {}, {}, Caller.here(app)) for value in (1, 2))
    waiting = _Push([others])
    line._waiting.append(waiting)

    def interrupt() -> None:
        wait_until(lambda: broker.client.info("clients")["blocked_clients"], description="the write")  # type: ignore[index]
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    broker.client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    interrupting.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            line.push([mine])
    finally:
        broker.client.execute_command("CLIENT", "UNPAUSE")
        interrupting.join()
    assert waiting.written and isinstance(waiting.error, redis.ConnectionError)


def test_a_forked_child_has_a_connection_and_an_origin_of_its_own(app: Celery, broker: Broker) -> None:
    ready(anything, broker)
    anything.delay("parent")
    child = os.fork()
    if child == 0:
        try:
            anything.delay("child")
            anything.delay("child")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    anything.delay("parent")
    origins: dict[str, set[str]] = {}
    for message in broker.take_all():
        origins.setdefault(message["body"][0][0], set()).add(message["headers"]["origin"].partition("@")[0])
    assert origins == {"parent": {f"gen{os.getpid()}"}, "child": {f"gen{child}"}}


# -- Batches ---------------------------------------------------------------------------------------------------------


@contextmanager
def flight(
    app: Celery, inputs: Any, concurrency: int = mapping.WINDOW, task: Any = number
) -> Iterator[mapping._Flight]:
    """A map whose results nobody computes."""
    flight = mapping._Flight(dispatcher_of(app), mapping.Mapped(task, (inputs,), None), concurrency, lambda _: None)
    try:
        yield flight
    finally:
        for cell in flight.waiting:
            if cell.ending is not None:
                cell.ending.cancel()


def fill(flight: mapping._Flight) -> None:
    while flight.take():
        flight.send()


def test_a_map_publishes_its_window_in_few_writes_and_in_order(app: Celery, broker: Broker) -> None:
    ready(number, broker)
    before = lpush_calls(broker)
    with flight(app, range(10**9)) as mapped:
        fill(mapped)
        assert lpush_calls(broker) - before == mapping.WINDOW / MOST_AT_ONCE
        assert [message["body"][0][0] for message in broker.take_all()] == list(range(mapping.WINDOW))


def lpush_calls(broker: Broker) -> int:
    stats: Any = broker.client.info("commandstats")
    return int(stats.get("cmdstat_lpush", {"calls": 0})["calls"])


def test_an_endless_input_fills_the_window_and_no_more(app: Celery, broker: Broker) -> None:
    ready(number, broker)
    with flight(app, itertools.count()) as mapped:
        fill(mapped)
        assert len(mapped.waiting) == mapping.WINDOW
        assert [message["body"][0][0] for message in broker.take_all()] == list(range(mapping.WINDOW))


def test_a_map_asks_no_more_of_its_input_than_it_may_have_in_flight(app: Celery, broker: Broker) -> None:
    ready(number, broker)
    asked = []
    with flight(app, (asked.append(value) or value for value in itertools.count()), concurrency=3) as mapped:
        fill(mapped)
        assert asked == [0, 1, 2]
        mapped.landed()
        fill(mapped)
        assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize("task", [number, cached])
def test_what_was_taken_is_published_while_the_input_makes_us_wait(app: Celery, broker: Broker, task: Any) -> None:
    """Also when it is looked up in the cache before."""
    ready(number, broker)
    seen: list[int] = []

    def inputs() -> Iterator[int]:
        yield from range(3)
        wait_until(lambda: broker.client.llen(ENV) == 3, description="the first three")
        seen.append(broker.client.llen(ENV))  # type: ignore[arg-type]
        yield 3

    with flight(app, inputs(), task=task) as mapped:
        fill(mapped)
    assert seen == [3]
    assert len(broker.take_all()) == 4


def test_an_argument_that_does_not_fit_fails_its_own_call(app: Celery, broker: Broker) -> None:
    ready(number, broker)
    with flight(app, [1, "two", 3]) as mapped:
        fill(mapped)
        assert [message["body"][0][0] for message in broker.take_all()] == [1, 3]
        ending = mapped.waiting[1].ending
        assert isinstance(ending, concurrent.futures.Future) and isinstance(ending.exception(0), TypeError)


def test_an_integer_that_cannot_be_written_fails_its_own_call(app: Celery, broker: Broker) -> None:
    ready(number, broker)
    [failure] = flyte.map(number, [10**5000])
    assert isinstance(failure, ValueError) and "Pass large integers as text" in str(failure)
    assert not broker.lists()


def test_what_stops_a_write_while_the_input_makes_us_wait_ends_the_map(app: Celery, broker: Broker) -> None:
    """The thread that writes meanwhile has taken what nobody else would write."""

    def inputs() -> Iterator[int]:
        yield 1
        wait_until(lambda: not any(thread.name == "flyte-celery-map" for thread in threading.enumerate()))

    with pytest.raises(ValueError, match="no cache version follows"):
        list(flyte.map(without_version, inputs()))


def test_large_messages_fill_a_write_by_their_size(app: Celery, broker: Broker) -> None:
    task = ready(anything, broker)
    batch = Batch(task.publisher)
    while not batch.full:
        batch.add(task, ("x" * 100_000,), {}, {})
    batch.flush()
    assert len(broker.take_all()) < 10


def test_a_batch_keeps_the_order_around_a_call_that_goes_celerys_way(app: Celery, broker: Broker) -> None:
    task = ready(anything, broker)
    batch = Batch(task.publisher)
    for value, options in enumerate([{}, {"serializer": "json"}, {}]):
        batch.add(task, (value,), {}, options)
    batch.flush()
    assert [message["body"][0] for message in broker.take_all()] == [[0], [1], [2]]


def test_coroutines_of_one_turn_share_a_write(app: Celery, broker: Broker) -> None:
    """`asyncio.gather` over children, as it happens in an async task."""
    task = ready(anything, broker)
    before = lpush_calls(broker)

    async def child(value: int) -> str:
        result, published = Turn.current(task.publisher).add(task, (value,), {}, {})
        await published
        return str(result.id)

    async def parent() -> list[str]:
        return await asyncio.gather(*(child(value) for value in range(150)))

    sent = asyncio.run(parent())
    assert lpush_calls(broker) - before == 2
    messages = broker.take_all()
    assert [message["headers"]["id"] for message in messages] == sent
    assert [message["body"][0][0] for message in messages] == list(range(150))


def test_one_that_is_cancelled_leaves_the_others_of_its_write_alone(app: Celery, broker: Broker) -> None:
    ready(number, broker)

    async def one_of_two() -> Any:
        first, second = (asyncio.ensure_future(flyte.run.aio(number, value)) for value in (1, 2))
        await asyncio.sleep(0)  # both wait for the write
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    run = asyncio.run(one_of_two())
    assert [message["headers"]["id"] for message in broker.take_all()][1:] == [run.id]


@pytest.mark.parametrize("task", [number, cached])
def test_an_event_loop_that_has_submitted_and_waited_is_freed(app: Celery, broker: Broker, task: Any) -> None:
    """A web framework may make one for each request."""
    ready(task, broker)

    async def submit_and_wait() -> weakref.ref[asyncio.AbstractEventLoop]:
        run = await flyte.run.aio(task, 1)
        with pytest.raises(TimeoutError):
            await run.wait.aio(timeout=0.05)
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(submit_and_wait())

    def is_freed() -> bool:
        gc.collect()
        return loop() is None

    wait_until(is_freed)


def test_calls_of_several_parents_share_a_write(app: Celery, broker: Broker) -> None:
    task = ready(anything, broker)
    batch = Batch(task.publisher)
    for root in ("first", "second"):
        with inside(app, {"root": root, "priority": None, "inherit": False}):
            batch.add(task, (root,), {}, {})
    batch.flush()
    assert [message["headers"]["root_id"] for message in broker.take_all()] == ["first", "second"]


# -- Results ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # it is Celery that calls it
def test_a_result_that_came_before_then_calls_back(app: Celery, broker: Broker) -> None:
    """Celery subscribes when it publishes; here a result may come before anybody asks for it."""
    ready(number, broker)
    result = number.delay(1)
    app.backend.mark_as_done(result.id, 5)
    values: list[Any] = []
    result.then(lambda done: values.append(done.result))
    assert values == [5]


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # it is Celery that calls it
def test_a_result_is_found_by_its_id_alone(app: Celery, broker: Broker) -> None:
    ready(number, broker)
    result = number.delay(1)
    threading.Timer(0.2, app.backend.mark_as_done, (result.id, 5)).start()
    assert AsyncResult(result.id, app=app).get(timeout=10) == 5
    assert result.get(timeout=10) == 5


def test_waits_are_looked_after_while_other_threads_call(app: Celery, quick_switches: None) -> None:
    """A reader looks at all replies once a second; a call adds one."""
    channel = app.backend.replies
    held = [channel.reply(b"held-%d" % number) for number in range(10_000)]
    over = threading.Event()

    def call() -> None:
        calls = itertools.count()
        while not over.is_set():
            channel.reply(b"called-%d" % next(calls))

    calling = threading.Thread(target=call)
    calling.start()
    try:
        for _ in range(50):
            channel.look_after_all()
            assert channel.open_waits() == 0
    finally:
        over.set()
        calling.join()
    assert held


def test_event_loops_are_counted_while_others_begin_to_wait(app: Celery, quick_switches: None) -> None:
    channel = app.backend.replies
    loops = [asyncio.new_event_loop() for _ in range(50)]
    try:
        for _ in range(50):
            channel.begin_anew()
            waiting = threading.Thread(target=lambda: [channel.loops.enter(loop) for loop in loops])
            waiting.start()
            while waiting.is_alive():
                channel.loops.reconnected()
                assert len(channel.loops) <= len(loops)
            waiting.join()
    finally:
        for loop in loops:
            loop.close()


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns as often as Python can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_a_run_that_nobody_waits_for_has_no_thread(redis_url: str, tmp_path: Path) -> None:
    """Also where results are kept by a backend that Celery itself has to ask."""
    app = Celery("test-publish", broker=redis_url, backend=f"file://{tmp_path}", set_as_current=False)
    app.set_current()
    flyte.init(app=app)
    try:
        number.delay(0)
        before = threading.active_count()
        run = flyte.run(number, 1)
        assert threading.active_count() == before
        assert not run.done() and run.phase == "queued"
        threading.Timer(0.1, app.backend.mark_as_done, (run.id, 5)).start()
        assert run.outputs(timeout=30).o0 == 5
        assert run.done() and run.phase == "succeeded"
        assert asyncio.run(value_of(run)) == 5
    finally:
        set_dispatcher(None)
        app.close()


async def value_of(run: Any) -> Any:
    """What a run is awaited for."""
    return await run


def test_ids_are_uuids() -> None:
    made = {random_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(str(uuid.UUID(text)) == text and uuid.UUID(text).version == 4 for text in made)
