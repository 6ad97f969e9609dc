"""One reply channel per process: results of this process's calls come to it, each in one notification.

A call carries the channel's name as the message's `reply_to`. Whoever stores the final result publishes it there
besides Celery's own channel, and here it is kept for as long as somebody holds the call's result object. There is no
thread for it: whoever waits reads the connection (`readers`), and every new call reads what has come meanwhile.

What can be missed is looked up: after a lost connection all results that are still expected are read once, and a
result that nobody announces is found because a wait that lasts subscribes to Celery's own channel of that result and
then reads it once. Results of calls that were made elsewhere are waited for in that way from the start.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import redis
from celery import states
from celery.utils.log import get_logger

from .. import names
from ..fleet.patience import backoff
from .readers import LoopReaders, ThreadReaders
from .subscription import PATIENCE, Subscription, wait_readable

logger = get_logger("flyte_celery.replies")

#: Seconds after a call from which a wait for its result also listens to Celery's own channel of that result.
DOUBT = 1.0

#: Seconds after which a new call reads what has come meanwhile, if nobody else has: not each of many.
_READ_AGAIN = 0.005

#: Most results read in one command.
_MOST_AT_ONCE = 1000

#: Most calls whose result object is awaited; each is gone when the object is made, right after the call.
_MOST_CALLED = 10_000


class Wait(Protocol):
    """Somebody who waits."""

    def land(self, arrived: Any) -> None:
        """Something arrived. Called once for it, from any thread."""


class Reply:
    """What this process knows of one result. It lives as long as a result object of the call does."""

    __slots__ = ("__weakref__", "called", "key", "payload", "waits")

    def __init__(self, key: bytes) -> None:
        #: Celery's key of the result.
        self.key = key
        #: When this process made the call (monotonic); None when somebody else did.
        self.called: float | None = None
        #: The final result in Celery's own form, once it is here.
        self.payload: bytes | str | None = None
        self.waits: list[tuple[weakref.ref[Wait], Any]] = []


class ReplyChannel:
    """All replies of one app in this process.

    Args:
        app: The Celery app.
        client: A client of the Redis that keeps its results.
    """

    def __init__(self, app: Any, client: redis.Redis) -> None:
        self._app = weakref.ref(app)
        self._client = client
        self._replies: weakref.WeakValueDictionary[bytes, Reply] = weakref.WeakValueDictionary()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Start without connection, under a new name, as a forked child must: what its parent called is not its own."""
        self.name = names.replies_key(uuid.uuid4().hex)
        self._own = self.name.encode()
        # Reentrant, because a wait that the garbage collector ends may end in the middle of anything.
        self._lock = threading.RLock()
        self._opening = threading.Lock()
        self._called: dict[bytes, Reply] = {}
        self._watched: dict[bytes, Reply] = {}
        self._unread: dict[bytes, Reply] = {}
        self._caretaker: threading.Thread | None = None
        self._read_at = 0.0
        self.subscription: Subscription | None = None
        self.threads = ThreadReaders(self)
        self.loops = LoopReaders(self)
        for reply in self._all():
            reply.called = None
            reply.waits = []

    # -- Calls -------------------------------------------------------------------------------------------------------

    def expect(self, key: bytes, *, here: bool) -> None:
        """A call is about to be made, and somebody is about to hold its reply.

        With `here`, its result comes to this channel, and from now on it is not missed.

        Raises:
            redis.ResponseError: The server refuses the subscription.
        """
        now = time.monotonic()
        if here and (now - self._read_at >= _READ_AGAIN or not self.connected):
            self._open()
        with self._lock:
            reply = self.reply(key)
            reply.called, reply.payload = now if here else None, None
            self._called[key] = reply
            while len(self._called) > _MOST_CALLED:
                del self._called[next(iter(self._called))]

    def expect_no_more(self, key: bytes) -> None:
        """The call was not made after all."""
        with self._lock:
            self._called.pop(key, None)

    def reply(self, key: bytes) -> Reply:
        """The reply of a result; the same object for as long as somebody holds it."""
        with self._lock:
            reply = self._called.pop(key, None) or self._replies.get(key)
            if reply is None:
                reply = self._replies[key] = Reply(key)
            return reply

    def _all(self) -> list[Reply]:
        with self._lock:  # while they are gone through no other thread may add one
            return list(self._replies.values())

    def knows(self, key: bytes) -> bool:
        """Whether somebody holds, or is about to hold, the reply of a result."""
        return key in self._replies

    def find(self, key: bytes) -> bytes | str | None:
        """The final result if it is here, or has come by now."""
        reply = self._replies.get(key)
        if reply is None:
            return None
        if reply.payload is None:
            self.read()
        return reply.payload

    def known(self, key: bytes, payload: bytes | str) -> None:
        """A final result was found in another way than by waiting for it."""
        self._deliver(key, payload)

    def forget(self, reply: Reply) -> None:
        """The result is deleted."""
        with self._lock:
            reply.called = reply.payload = None

    # -- Waits -------------------------------------------------------------------------------------------------------

    def attach(self, reply: Reply, wait: Wait, arrived: Any) -> None:
        """Have `wait.land(arrived)` called when the reply is here; a wait that nobody holds is forgotten.

        Somebody has to read meanwhile, see `readers`.
        """
        with self._lock:
            here = reply.payload is not None
            if not here:
                reply.waits.append((weakref.ref(wait), arrived))
        if here:
            wait.land(arrived)

    def look_after(self, replies: Iterable[Reply]) -> None:
        """Make sure that replies which are waited for now come some day."""
        now = time.monotonic()
        with self._lock:
            doubtful = [
                reply
                for reply in replies
                if reply.waits
                and reply.key not in self._watched
                and (reply.called is None or now - reply.called >= DOUBT)
            ]
            for reply in doubtful:
                self._watched[reply.key] = self._unread[reply.key] = reply
        if doubtful or not self.connected:
            self._care()

    def look_after_all(self) -> None:
        """`look_after` whatever is waited for; every reader does it once in `DOUBT` seconds."""
        self.look_after(self._all())

    def detach(self, reply: Reply, wait: Wait) -> None:
        """Wait no longer."""
        with self._lock:
            reply.waits = [each for each in reply.waits if each[0]() not in (None, wait)]
            if not reply.waits:
                self._ignore(reply)

    def _ignore(self, reply: Reply) -> None:
        if self._watched.pop(reply.key, None) is not None:
            self._unread.pop(reply.key, None)
            if self.subscription is not None:
                self.subscription.unsubscribe(reply.key)

    def open_waits(self) -> int:
        """How many waits there are, and what is kept for them; 0 when nobody waits."""
        waits = sum(len(reply.waits) for reply in self._all())
        return waits + len(self._watched) + len(self._unread) + len(self.threads) + len(self.loops)

    # -- The connection ----------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self.subscription is not None and self.subscription.alive

    def read(self) -> None:
        """Take what has arrived and tell who waits for it; never blocks."""
        self._read_at = time.monotonic()
        subscription = self.subscription
        if subscription is None or not subscription.alive:
            return
        try:
            self._take(subscription.read())
        except redis.RedisError as exc:
            logger.warning("The connection for results was lost (%s); what it missed is read from Redis", str(exc))
            if self._in_demand():
                self._care()

    def _take(self, published: Iterable[tuple[bytes, bytes]]) -> None:
        for channel, data in published:
            if channel == self._own:
                for key, payload in announced(data):
                    if key in self._replies:
                        self._deliver(key, payload)
            elif self._is_final(data):
                self._deliver(channel, data)

    def _deliver(self, key: bytes, payload: bytes | str) -> None:
        with self._lock:
            reply = self._replies.get(key)
            if reply is None or reply.payload is not None:
                return
            reply.payload = payload
            waits, reply.waits = reply.waits, []
            self._ignore(reply)
        for reference, arrived in waits:
            wait = reference()
            try:
                if wait is not None:
                    wait.land(arrived)
            except Exception:  # of a callback that a user gave to `then`: others wait, too
                logger.exception("A callback of the result %s failed", key.decode())

    def _is_final(self, payload: bytes | str) -> bool:
        app = self._app()
        try:
            return app is None or app.backend.decode(payload)["status"] in states.READY_STATES
        except Exception:  # whoever waits for it meets the same and raises it
            return True

    def _in_demand(self) -> bool:
        return any(reply.waits for reply in self._all())

    def _open(self) -> None:
        self.read()
        if self.connected or self._caretaker is not None:
            return
        try:
            self._connect()
        except (redis.ConnectionError, redis.TimeoutError, OSError) as exc:
            logger.warning("Results cannot be heard of: %s", str(exc))  # they are looked up when somebody waits

    def _connect(self) -> None:
        """Open the connection unless there is one.

        Raises:
            redis.RedisError: It cannot be opened.
            OSError: The same.
        """
        with self._opening:
            if self.connected:
                return
            subscription = Subscription(self._client.connection_pool)
            with self._lock:
                channels = [self._own, *self._watched]
            self._confirm(subscription, subscription.subscribe(channels))
            with self._lock:
                self.subscription = subscription
                for key, reply in list(self._replies.items()):
                    if reply.payload is None and (reply.called is not None or reply.waits):
                        self._unread[key] = reply
                if self._unread:
                    self._care()
        self.threads.reconnected()
        self.loops.reconnected()

    def _confirm(self, subscription: Subscription, asked: int) -> None:
        """Wait until the server has confirmed so many subscriptions: what is read then is not followed by a gap."""
        deadline = time.monotonic() + PATIENCE
        while not subscription.confirmed(asked):
            if time.monotonic() > deadline:
                raise redis.TimeoutError("Redis does not confirm a subscription.")
            if not subscription.alive:
                raise redis.ConnectionError("The connection for results was lost.")
            wait_readable([subscription], 0.01)  # not for long: another reader may have taken the news meanwhile
            self._take(subscription.read())

    def _care(self) -> None:
        """Have a thread open the connection and look results up; it ends when that is done."""
        with self._lock:
            if self._caretaker is None:
                self._caretaker = threading.Thread(target=self._take_care, name="flyte-celery-replies", daemon=True)
                self._caretaker.start()

    def _take_care(self) -> None:
        delays = backoff()
        while True:
            try:
                self._connect()
                self._look_up()
                delays = backoff()
            except Exception as exc:  # whatever it is: others wait, and it may pass
                logger.warning("Results wait for Redis: %s", str(exc))
                time.sleep(next(delays))
            with self._lock:
                if (self.connected and not self._unread) or not self._in_demand():
                    self._unread.clear()
                    self._caretaker = None
                    return

    def _look_up(self) -> None:
        """Read what may have been missed."""
        while self._unread:
            with self._lock:
                keys = list(self._unread)[:_MOST_AT_ONCE]
                batch = {key: self._unread.pop(key) for key in keys}
                subscription = self.subscription
                assert subscription is not None
                asked = subscription.subscribe([key for key in keys if key in self._watched])
            try:
                self._confirm(subscription, asked)
                payloads: Any = self._client.mget(keys)
            except BaseException:
                with self._lock:
                    self._unread = {**batch, **self._unread}
                raise
            for key, payload in zip(keys, payloads, strict=True):
                if payload and self._is_final(payload):
                    self._deliver(key, payload)


def announcement(key: bytes, payload: bytes) -> bytes:
    """What is published on a reply channel, as the script `store` does: lengths, key and result."""
    return b"%d:%d:%b%b" % (len(key), len(payload), key, payload)


def announced(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and results in one message of a reply channel: some announcements, one after the other."""
    end = 0
    while end < len(data):
        first = data.index(b":", end)
        second = data.index(b":", first + 1)
        start = second + 1 + int(data[end:first])
        end = start + int(data[first + 1 : second])
        yield data[second + 1 : start], data[start:end]


_channels: weakref.WeakKeyDictionary[Any, ReplyChannel] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def channel_of(app: Any, client: redis.Redis) -> ReplyChannel:
    """The reply channel of an app in this process; `client` is used when there is none yet."""
    channel = _channels.get(app)
    if channel is None:
        with _making:
            channel = _channels.get(app) or ReplyChannel(app, client)
            _channels[app] = channel
    return channel


def _begin_anew_in_child() -> None:
    global _making
    _making = threading.Lock()
    for channel in list(_channels.values()):
        channel.begin_anew()


os.register_at_fork(after_in_child=_begin_anew_in_child)
