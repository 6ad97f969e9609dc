"""Celery's Redis result backends with a reply channel: see `replies` for how results come to it.

The format and the place of results are Celery's own. Here is what Celery asks of a backend for the results of
environment tasks: publish failures that Celery itself stores, and wait. Everything else, and every plain task, is left
to Celery's own backend, subscriptions of its own included.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator
from functools import cached_property
from typing import Any, NoReturn

import redis
from celery import states
from celery.app.task import Context
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import GroupResult, ResultSet
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError
from kombu.utils.encoding import bytes_to_str, ensure_bytes

from .. import kombu_json, suspension
from ..context import current_run
from ..fleet.revoked import TellsReasons
from ..fleet.scripts import script
from ..fleet.storing import UNFENCED, Fence, NextAttempt, NotOwnedError, Store, arguments, followed, nothing, store
from ..names import is_replies_key
from ..shortening import cut
from .failures import Failures
from .message import random_id
from .readers import ThreadWait, left
from .replies import Reply, ReplyChannel, announcement, channel_of
from .waits import check_blocking, check_circle

logger = get_logger("flyte_celery.results")

#: Field of a running task's request: how its result goes into the cache, a `fleet.cached.Keep`.
KEEP_FIELD = "flyte_celery_keep"

#: Field of a running task's request: whether its result came from the cache.
CACHED_FIELD = "flyte_celery_cached"

#: States with which an attempt is over.
_ENDS = states.READY_STATES | {states.RETRY}

#: Seconds between two calls of a waiter's `on_interval`.
_INTERVAL = 1.0


class _Replies(Failures):
    """Mixed into Celery's backends for Redis."""

    app: Any
    client: Any
    expires: Any
    failure_expires: Any
    get_key_for_task: Any
    content_type: Any
    accept: Any
    decode_result: Any
    encode: Any
    ensure: Any

    @cached_property
    def replies(self) -> ReplyChannel:
        """The reply channel of this backend's app in this process."""
        return channel_of(self.app, self.client)

    def _key(self, task_id: Any) -> bytes:
        """Where a task's result is, as `get_key_for_task` puts it together in many steps."""
        key: bytes = self._key_prefix + ensure_bytes(task_id)
        return key

    @cached_property
    def _key_prefix(self) -> bytes:
        probe = "0"
        key: bytes = ensure_bytes(self.get_key_for_task(probe))
        return key.removesuffix(probe.encode())

    def decode(self, payload: Any) -> Any:
        """A result as Celery reads it, by a decoder that is there already where it is kombu's JSON."""
        accepted = self.accept is None or kombu_json.CONTENT_TYPE in self.accept
        plain = payload and payload[:1] in (b"{", "{")  # and not compressed
        if plain and accepted and self.content_type == kombu_json.CONTENT_TYPE and kombu_json.was_kombus():
            with contextlib.suppress(ValueError):  # Celery says what is wrong with it
                return kombu_json.loads(payload)
        return super().decode(payload)  # type: ignore[misc]

    # -- Storing -----------------------------------------------------------------------------------------------------

    def _get_result_meta(
        self, result: Any, state: Any, traceback: Any, request: Any, *more: Any, **options: Any
    ) -> Any:
        traceback = cut(traceback) if isinstance(traceback, str) else traceback
        meta = super()._get_result_meta(result, state, traceback, request, *more, **options)  # type: ignore[misc]
        if state == states.SUCCESS and getattr(request, CACHED_FIELD, False):
            meta["cached"] = True
        return meta

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        fence = Fence.of(request)
        backend: Any = super()
        if fence is not None and fence.guards:
            # As with Celery, nothing takes the place of a success.
            if state != states.SUCCESS and backend._get_task_meta_for(task_id)["status"] == states.SUCCESS:
                self._check_owned(task_id, request)
            else:
                self._store_fenced(task_id, result, state, traceback, request)
            return result
        stored = backend._store_result(task_id, result, state, traceback, request=request, **kwargs)
        reply_to = getattr(request, "reply_to", None)
        keep = getattr(request, KEEP_FIELD, None) if state == states.SUCCESS else None
        if keep is not None or (state in states.READY_STATES and is_replies_key(reply_to)):
            key = self._key(task_id)
            # What is there now: Celery does not overwrite a success.
            if (payload := backend.get(key)) is None:
                return stored
            if keep is not None:
                write = store(key.decode(), payload, int(self.expires or 0), "", UNFENCED, finished=False)
                backend.ensure(script("store").run, (self.client, *arguments([keep.added_to(write)])))
            if is_replies_key(reply_to):
                backend.ensure(self.client.publish, (reply_to, announcement(key, ensure_bytes(payload))))
        return stored

    def mark_as_failure(
        self,
        task_id: str,
        exc: Any,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        *more: Any,
        **options: Any,
    ) -> None:
        """Record a failure, and tell error callbacks, chords and chains of it.

        Raises:
            NotOwnedError: The task is not this worker's any more; nothing was recorded, and nobody told.
        """
        if not store_result:
            self._check_owned(task_id, request)
        backend: Any = super()
        backend.mark_as_failure(task_id, exc, traceback, request, store_result, *more, **options)

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Any = None, store_result: bool = True, *more: Any, **options: Any
    ) -> None:
        """Record that a task was revoked, or has expired; not where that is others' to say."""
        backend: Any = super()
        try:
            if not store_result:
                self._check_owned(task_id, request)
            backend.mark_as_revoked(task_id, reason, request, store_result, *more, **options)
        except NotOwnedError:
            pass  # Celery asks for it in places where an exception would end its worker

    def _check_owned(self, task_id: str, request: Any) -> None:
        """Make sure that a task is this worker's, where nothing is stored that would tell."""
        fence = Fence.of(request)
        if fence is not None and fence.guards:
            key = bytes_to_str(self.get_key_for_task(task_id))
            if not self._write(nothing(key, fence.pair)):
                _discard(task_id)

    def _store_fenced(self, task_id: str, result: Any, state: str, traceback: Any, request: Any) -> None:
        """Store a state of a running task, with all that belongs to it in the same step.

        Raises:
            NotOwnedError: The attempt is over, and is not this worker's any more.
        """
        fence = Fence.of(request)
        # After a success nothing follows but a chord's callback; after a failure errbacks do, and Celery calls them
        # when the failure is stored.
        finished = state == states.SUCCESS and not getattr(request, "chord", None)
        pair = UNFENCED if fence is None else fence.pair
        write = self.write_of(task_id, result, state, traceback, request, pair, finished=finished)
        if (following := following_of(task_id, state, fence)) is not None:
            write = followed(write, following)
        elif state == states.SUCCESS and (keep := getattr(request, KEEP_FIELD, None)) is not None:
            write = keep.added_to(write)
        if self._write(write):
            return
        if state in _ENDS:
            _discard(task_id)
        logger.warning("The state of %s is not stored: its worker does not own the task any more.", task_id)

    def _call_task_errbacks(self, request: Any, exc: Any, traceback: Any) -> None:
        """Call each errback by itself, when the failure is stored: what is wrong with one is no concern of the others.

        Were it raised, the failure would count as not recorded, and the task would run again, and fail again.

        Raises:
            kombu.exceptions.OperationalError: The broker cannot be reached, so that an errback is not submitted.
        """
        backend: Any = super()
        for errback in request.errbacks:
            try:
                backend._call_task_errbacks(Context(vars(request), errbacks=[errback]), exc, traceback)
            except (OperationalError, redis.RedisError):
                raise
            except Exception as problem:
                name = getattr(errback, "task", errback)
                logger.exception("%s failed, and its errback %s cannot be called: %s", request.id, name, problem)

    def write_of(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any,
        request: Any,
        fence: tuple[str, str],
        *,
        finished: bool,
    ) -> Store:
        """What the script `store` is called with for a result; the last two arguments are those of `store`."""
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = bytes_to_str(task_id)
        expires = self.failure_expires if state == states.FAILURE else self.expires
        reply_to = getattr(request, "reply_to", None) or ""
        if state not in states.READY_STATES or not is_replies_key(reply_to):
            reply_to = ""
        key = bytes_to_str(self.get_key_for_task(task_id))
        return store(key, self.encode(meta), int(expires or 0), reply_to, fence, finished=finished)

    def end_attempt(self, fence: Fence) -> None:
        """End an attempt whose result is ignored by submitting the next one, if there is one.

        Raises:
            NotOwnedError: The attempt is not this worker's any more; nothing was submitted.
        """
        if (following := fence.take_next()) is None:
            return
        key = bytes_to_str(self.get_key_for_task(following.task_id))
        if not self._write(followed(store(key, "", 0, "", fence.pair, finished=True), following)):
            _discard(following.task_id)

    def _write(self, write: Store) -> int:
        """Run the script `store`; says whether the attempt still was this worker's."""
        [stored] = self.ensure(script("store").run, (self.client, *arguments([write])))
        return int(stored)

    # -- Calling -----------------------------------------------------------------------------------------------------

    def reply(self, task_id: str) -> Reply:
        """What this process knows of a result."""
        return self.replies.reply(self._key(task_id))

    def expect(self, task_id: str, *, here: bool) -> str:
        """A task is about to be called.

        Args:
            task_id: Its id.
            here: Whether its result is to come to this process's reply channel.

        Returns:
            The channel's name, which belongs into the message as `reply_to`.

        Raises:
            redis.ResponseError: The server refuses the subscription.
        """
        self.replies.expect(self._key(task_id), here=here)
        return self.replies.name

    def expect_no_more(self, task_id: str) -> None:
        """The call was not made after all."""
        self.replies.expect_no_more(self._key(task_id))

    def on_task_call(self, producer: Any, task_id: str) -> Any:
        """Celery publishes a call: it would subscribe to the result, which nobody reads inside a task."""
        if current_run.get() is None and not self.replies.knows(self._key(task_id)):
            super().on_task_call(producer, task_id)  # type: ignore[misc]

    # -- Waiting -----------------------------------------------------------------------------------------------------

    def get_task_meta(self, task_id: str, cache: bool = True) -> Any:
        """What is known of a task now."""
        payload = self.replies.find(self._key(task_id)) if cache else None
        if payload is not None:
            return self.decode_result(payload)
        return super().get_task_meta(task_id, cache)  # type: ignore[misc]

    def add_pending_result(self, result: Any, weak: bool | None = None, start_drainer: bool = True) -> Any:
        """A wait may begin: Celery would subscribe to the result."""
        is_get = weak is None  # `AsyncResult.then` says either
        if not _is_ours(result) and not (is_get and _is_waited_for_here(result)):
            super().add_pending_result(result, bool(weak), start_drainer)  # type: ignore[misc]
        return result

    def remove_pending_result(self, result: Any) -> Any:
        """A result object is done with."""
        if not _is_ours(result):
            super().remove_pending_result(result)  # type: ignore[misc]
        return result

    def wait_for_pending(
        self,
        result: Any,
        callback: Any = None,
        propagate: bool = True,
        timeout: float | None = None,
        on_interval: Any = None,
        on_message: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Wait for a result; raises as `AsyncResult.get`."""
        if on_message is not None:  # it wants to hear of states before the last, too
            self._leave_to_celery([result])
        if not _is_waited_for_here(result):
            return super().wait_for_pending(  # type: ignore[misc]
                result,
                callback=callback,
                propagate=propagate,
                timeout=timeout,
                on_interval=on_interval,
                on_message=on_message,
                **kwargs,
            )
        for _ in self._arriving([result], timeout, on_interval):
            pass
        return result.maybe_throw(callback=callback, propagate=propagate)

    def iter_native(
        self,
        result: Any,
        no_ack: bool = True,
        timeout: float | None = None,
        on_interval: Any = None,
        on_message: Any = None,
        **kwargs: Any,
    ) -> Generator[tuple[str, Any], Any, None]:
        """The results of a group as they come; see `ResultSet.iter_native`."""
        nodes: list[Any] = result.results
        # In one way for all of them: Celery's own does not tell of results that come on another one.
        if on_message is None and any(isinstance(node, GroupResult) or _is_waited_for_here(node) for node in nodes):
            yield from ((str(node.id), node.children) for node in nodes if isinstance(node, GroupResult))
            single = [node for node in nodes if not isinstance(node, GroupResult)]
            yield from ((node.id, node._cache) for node in self._arriving(single, timeout, on_interval))
            return
        self._leave_to_celery(_leaves(result))
        yield from super().iter_native(  # type: ignore[misc]
            result, no_ack=no_ack, timeout=timeout, on_interval=on_interval, on_message=on_message, **kwargs
        )

    def _leave_to_celery(self, results: Iterable[Any]) -> None:
        for each in results:
            if _is_waited_for_here(each):
                each.left_to_celery = True
                self.add_pending_result(each)

    def _arriving(self, results: list[Any], timeout: float | None, on_interval: Any) -> Iterator[Any]:
        """Results as they come, each with its meta in its cache; a task that waits for them holds no slot."""
        for each in results:
            check_blocking(f"get() of {each.id}")
            check_circle(each.id)
        wait = ThreadWait(self.replies)
        deadline = None if timeout is None else time.monotonic() + timeout
        missing = {id(each): (each, getattr(each, "reply", None) or self.reply(each.id)) for each in results}
        awaited = None if timeout is not None else lambda: [each.id for each, _ in list(missing.values())]
        try:
            for each, reply in missing.values():
                self.replies.attach(reply, wait, each)
            self.replies.look_after([reply for _, reply in missing.values()])
            while missing:
                if not wait.arrived:
                    with suspension.waiting(lambda: wait.land(None), awaited):
                        each = _next(wait, deadline, on_interval)
                else:
                    each = wait.arrived.popleft()
                if each is None:
                    raise _late([each for each, _ in missing.values()], timeout)
                _, reply = missing.pop(id(each))
                if each._cache is None:
                    each._maybe_set_cache(self.decode_result(reply.payload))
                yield each
        finally:
            for _, reply in missing.values():
                self.replies.detach(reply, wait)


def _discard(task_id: str) -> NoReturn:
    """Record nothing of an attempt that is others' by now."""
    discarded = NotOwnedError(task_id)
    logger.warning("%s", discarded)
    raise discarded


def following_of(task_id: str, state: str, fence: Fence | None) -> NextAttempt | None:
    """The attempt that is to be submitted together with a state of a task: its last one, or that it is retried."""
    if fence is None or fence.next_attempt is None or fence.next_attempt.task_id != task_id:
        return None
    return fence.take_next() if state in _ENDS else None


def _next(wait: ThreadWait, deadline: float | None, on_interval: Any) -> Any:
    """The result that arrives next; None when the time is over."""
    while True:
        remaining = left(deadline)
        with contextlib.suppress(TimeoutError):
            return wait.get(_INTERVAL if remaining is None else min(remaining, _INTERVAL))
        if deadline is not None and time.monotonic() >= deadline:
            return None
        if on_interval is not None:
            on_interval()


def _is_ours(result: Any) -> bool:
    """Whether it is an environment task's result that the reply channel waits for."""
    return getattr(result, "reply", None) is not None and not result.left_to_celery


def _is_waited_for_here(result: Any) -> bool:
    """Whether the reply channel waits for it: inside a task for a plain task's result, too, else the slot is kept."""
    left_to_celery = getattr(result, "left_to_celery", False)
    return _is_ours(result) or (current_run.get() is not None and not left_to_celery)


def _leaves(result: Any) -> Iterator[Any]:
    for node in result.results:
        if isinstance(node, ResultSet):
            yield from _leaves(node)
        else:
            yield node


def _late(results: list[Any], timeout: float | None) -> CeleryTimeoutError:
    what = f"of {results[0].id}" if len(results) == 1 else f"of {len(results)} tasks, {results[0].id} among them,"
    return CeleryTimeoutError(
        f"No result {what} within {timeout:g} s: it waits or runs still, the id is unknown, or the result has expired "
        "(result_expires)."
    )


class RepliesBackend(TellsReasons, _Replies, RedisBackend):
    """Results on a Redis server."""


class SentinelRepliesBackend(TellsReasons, _Replies, SentinelBackend):
    """Results on a Redis server that is found by Sentinels."""


_REPLACED = {
    **dict.fromkeys(("redis", "rediss", "redis+socket"), f"{__name__}:{RepliesBackend.__name__}"),
    "sentinel": f"{__name__}:{SentinelRepliesBackend.__name__}",
}


def install(loader: Any) -> None:
    """Put these in place of Celery's own for the app of a loader; a backend that the app has replaced itself stays."""
    loader.override_backends = {**_REPLACED, **loader.override_backends}


def address(task: Any, options: dict[str, Any], *, sends: bool = False) -> None:
    """Have the result of a call come to this process: sets `task_id` and `reply_to` in the options of `apply_async`.

    A `reply_to` of somebody else stays: the call belongs to a workflow that was started elsewhere, or is retried.

    Args:
        task: The registered Celery task.
        options: Those of the call.
        sends: Whether it is known that a message will be sent; otherwise `task_always_eager` is looked up, which takes
            its time.
    """
    app, backend = task.app, task.backend
    ignored = options.get("ignore_result", task.ignore_result)
    if ignored or not isinstance(backend, _Replies) or (not sends and app.conf.task_always_eager):
        return
    task_id = options["task_id"] = options.get("task_id") or random_id()
    given = options.get("reply_to")
    here = not given or given == app.thread_oid  # what Celery gives to every signature
    name = backend.expect(task_id, here=here)
    if here:
        options["reply_to"] = name
