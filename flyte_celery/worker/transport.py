"""kombu's Redis transport for an environment's worker: claims in batches, acknowledges in batches, loses nothing.

It replaces how messages of the environment's queue are taken and finished; connections, remote control, events and
publishing are kombu's own. Celery finds it by the alias `flyte-redis` in the worker's `broker_transport` alone:
publishers need nothing special.

Taking: one script moves as many messages as fit into the worker's claims. When the queue was empty, a `BLMOVE` goes
before it, which waits for the next message on the server, a second at most, so that messages of other priorities are
seen too. Once a second, and whenever the queue's next future work is due, another script goes between the two, which
moves what is due into the queue; the wait ends in time for it. What is claimed before its time is parked there.
"""

from __future__ import annotations

import contextlib
from queue import Empty
from time import monotonic, time
from typing import Any, ClassVar, NoReturn, cast

from celery.utils.log import get_logger
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis
from kombu.utils.encoding import bytes_to_str
from redis.exceptions import NoScriptError, ResponseError

from .. import kombu_json
from ..fleet import later
from ..fleet.claims import Claim, Claims, LeaseLostError
from ..fleet.messages import attempts_of
from ..fleet.patience import passes
from ..fleet.scripts import script
from .eta import due_at
from .keeper import Keeper

logger = get_logger("flyte_celery.worker")

#: Name of this transport in kombu.
ALIAS = "flyte-redis"

#: Seconds that an idle worker waits for a message of the default priority before it looks at the others. They are to be
#: served within a second, and Redis ends waits a tenth of a second late at worst: it looks for them ten times a second.
IDLE_WAIT = 0.8

#: The same where future work is due at once. A `BLMOVE` without any wait would be one without any end, and Redis 6.2
#: takes 0.001 for none: it cuts off what its floating point has left of the millisecond.
SHORTEST_WAIT = 0.01

#: Seconds before Redis is asked again that refused to give tasks. The event loop turns more often than that.
PAUSE = 0.5

#: Most messages that one script claims: a bound on how long it keeps the server busy.
MOST_AT_ONCE = 500

#: The same for a Redis behind Sentinels.
SENTINEL_ALIAS = "flyte-sentinel"

TRANSPORT_ALIASES[ALIAS] = f"{__name__}:Transport"
TRANSPORT_ALIASES[SENTINEL_ALIAS] = f"{__name__}:SentinelTransport"


class ClaimQoS(kombu_redis.QoS):
    """kombu's book of unacknowledged messages, kept by the worker's claims instead: they outlive connections."""

    channel: Claiming

    def can_consume(self) -> bool:
        """Whether to listen to Redis: when a message would fit, and for a reply to what was asked when one would have.

        What that reply has claimed would be nobody's otherwise, when the room has gone meanwhile. Remote control, which
        has a channel of its own, is always heard.
        """
        return not self.channel.active_queues or self.channel.awaits_reply or self.room > 0

    @property
    def room(self) -> int:
        """How many messages would fit, as far as one script should claim."""
        most = self.prefetch_count or MOST_AT_ONCE
        keeper = self.channel.keeper
        if keeper.most_claims is not None:
            most = min(most, keeper.most_claims)
        return min(MOST_AT_ONCE, most - len(keeper.claims.held) + keeper.count_suspended())

    def append(self, message: Any, delivery_tag: str) -> None:
        """A message was delivered: the claims have it already."""

    def ack(self, delivery_tag: str) -> None:
        """A message is finished; written with all others of this turn of the event loop."""
        self.channel.keeper.ack(int(delivery_tag))

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """A message goes back to the head of its queue, or is given up."""
        if requeue:
            self.channel.keeper.hand_back([int(delivery_tag)])
        else:
            self.channel.keeper.ack(int(delivery_tag))

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Nothing: a closed connection ends no claim. The worker hands its claims back when it stops."""
        self._on_collect.cancel()

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: leases say which claims are dead, not a time-out of messages."""


class ClaimedMessage(virtual.Message):
    """A message whose JSON is read by a decoder that is there already."""

    _decoded_cache: Any

    def decode(self) -> Any:
        """The body, as kombu reads it."""
        body = self.body if self.content_type == kombu_json.CONTENT_TYPE else None
        accepted = self.accept is None or self.content_type in self.accept
        if body and accepted and self._decoded_cache is None and kombu_json.was_kombus():
            with contextlib.suppress(ValueError):  # kombu says what is wrong with it
                self._decoded_cache = kombu_json.loads(body)
        return super().decode()  # type: ignore[no-untyped-call]


class Claiming(kombu_redis.Channel):
    """A channel that consumes the environment's queue through the worker's claims."""

    QoS = ClaimQoS
    Message = ClaimedMessage

    #: The keeper of this worker process, set before its first connection is made.
    keeper: ClassVar[Keeper]

    # Attributes of kombu's that have no types.
    _in_poll: Any
    _brpop_sent_at: Any

    #: The claims for which the reply that is awaited was asked.
    _asked: Claims | None = None
    #: Whether that reply begins with the one to a wait.
    _waits = False
    #: When Redis is asked again after a refusal, in monotonic seconds.
    _refused_until = 0.0
    #: Whether the last claim found the queue empty, so that the next one waits.
    _was_empty = False
    #: Whether that reply tells of future work as well.
    _looks = False
    #: When future work was last looked at, and when the next of it is due, in monotonic seconds.
    _looked_at = 0.0
    _next_due = 0.0

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Begin to consume; from now on the keeper can hand over what it claims itself."""
        consume: Any = super().basic_consume
        tag = consume(queue, *args, **kwargs)
        if queue == self.keeper.claims.queue:
            self.keeper.deliver = self._deliver_claims
        return tag

    def close(self) -> None:
        """Close the channel. kombu reads a reply that is awaited; while Redis is away it is let go, and reclaimed."""
        if self._in_poll and self.keeper.away:
            self._in_poll.disconnect()
            self._in_poll = None
        super().close()  # type: ignore[no-untyped-call]

    def queue_delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        """Delete a queue. While Redis is away those of a channel that is closed stay, as when its process is killed."""
        if not (self._closing and self.keeper.away):
            super().queue_delete(queue, *args, **kwargs)  # type: ignore[no-untyped-call]

    @property
    def awaits_reply(self) -> bool:
        """Whether Redis was asked for messages and has not answered, or was not heard yet."""
        return bool(self._in_poll)

    def _brpop_start(self, timeout: float | None = None) -> None:
        if not self.active_queues or monotonic() < self._refused_until:
            return
        claims = self._asked = self.keeper.claims
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = now = monotonic()
        self._waits = self._was_empty
        look_at = min(self._next_due, self._looked_at + IDLE_WAIT)
        self._looks = now >= look_at
        # The claim goes with the wait: the server runs it when the wait ends, whether or not anybody listens by then.
        commands = []
        if self._waits:
            until = self._next_due if self._looks else look_at
            commands.append(claims.wait_command(max(SHORTEST_WAIT, min(IDLE_WAIT, until - now))))
        if self._looks:
            commands.append(self.keeper.later.due_command())
        commands.append(claims.claim_command(cast(ClaimQoS, self.qos).room - self._waits))
        connection.send_packed_command(connection.pack_commands(commands))

    def _brpop_read(self, **options: Any) -> Any:
        try:
            refused = self._reply("BLMOVE") if self._waits else None
            until_next = self._reply("EVALSHA") if self._looks else None
            reply = self._reply("EVALSHA")
        finally:
            self._in_poll = None
        if isinstance(reply, NoScriptError) or isinstance(until_next, NoScriptError):
            for name in ("due", "claim"):  # the server was restarted since it was given the scripts
                self.client.script_load(script(name).text)
        if isinstance(reply, NoScriptError):
            self._was_empty = False
            raise Empty
        if isinstance(reply, ResponseError):
            self._pause(reply)
        if isinstance(until_next, int):
            self._looked_at = monotonic()
            seconds = later.until_next(until_next)
            self._next_due = float("inf") if seconds is None else self._looked_at + seconds
        elif isinstance(until_next, ResponseError) and not isinstance(until_next, NoScriptError):
            self._looked_at, self._next_due = monotonic(), float("inf")
            logger.error("%s: what is due cannot be moved into the queue: %s", self.keeper.claims.queue, until_next)
        if self._asked is not self.keeper.claims:  # the lease was lost meanwhile, and with it what this reply tells of
            raise Empty
        try:
            taken = self.keeper.claims.claimed(reply)
        except LeaseLostError:
            self.keeper.lease_lost()
            raise Empty from None
        self._was_empty = not taken
        if not taken:
            if isinstance(refused, ResponseError):
                self._pause(refused)
            raise Empty
        self._deliver_claims(taken)
        return True

    def _reply(self, command: str) -> Any:
        """The next reply, also when it is an error: another one comes behind it."""
        try:
            return self.client.parse_response(self.client.connection, command)
        except ResponseError as exc:
            return exc
        except self.connection_errors:
            self.client.connection.disconnect()
            raise

    def _pause(self, refusal: ResponseError) -> NoReturn:
        """Redis refuses for now, for instance because its memory is full; Celery would end the worker over it."""
        if not passes(refusal):
            raise refusal
        logger.warning("%s: Redis refuses to give tasks: %s", self.keeper.claims.queue, refusal)
        self._refused_until = monotonic() + PAUSE
        raise Empty

    def _deliver_claims(self, taken: list[Claim]) -> None:
        messages: dict[int, dict[str, Any]] = {}
        early: list[tuple[Claim, float]] = []
        now = time()
        for claim in taken:
            try:
                message = messages[claim.id] = self._message_of(claim)
            except (ValueError, TypeError, LookupError, AttributeError):
                # kombu's own transport ends the worker over this, after it has taken it from the queue.
                logger.error("%s: what is no message is discarded: %.200r", self.keeper.claims.queue, claim.message)
                self.keeper.ack(claim.id)
                continue
            due = due_at(message)
            if due is not None and due > now:
                early.append((claim, due))
        if early:
            parked = {claim.id for claim, _ in early}.difference(self.keeper.park(early))
            self._next_due = min(self._next_due, monotonic() + min(due for _, due in early) - now)
            for number in parked:
                del messages[number]
        unwanted = []
        with self.keeper.delivery():
            for number, message in messages.items():
                # Cancelled, or paused or left without seats, while the server waited or the reply was on its way.
                cancelled = self.closed or self.keeper.claims.queue not in self.active_queues
                if cancelled or (self.keeper.most_claims == 0 and not self.keeper.claims.held[number].placed):
                    unwanted.append(number)
                else:
                    self.connection._deliver(message, self.keeper.claims.queue)
        if unwanted:
            self.keeper.hand_back(unwanted)

    def _message_of(self, claim: Claim) -> dict[str, Any]:
        message: dict[str, Any] = kombu_json.loads(bytes_to_str(claim.message))
        properties = message["properties"]
        claim.attempts, claim.lost_to = attempts_of(properties)
        # Everything above acknowledges by delivery tag. The claim's id is unique in this worker; tags of foreign
        # publishers need not be.
        properties["delivery_tag"] = str(claim.id)
        return message


class Transport(kombu_redis.Transport):
    """kombu's Redis transport with claims."""

    Channel = Claiming

    #: What is published is kombu's own; `client.shortcut` asks.
    publishes_as_kombus = True


class SentinelChannel(Claiming, kombu_redis.SentinelChannel):
    """The same behind Sentinels."""


class SentinelTransport(kombu_redis.SentinelTransport):
    """kombu's Sentinel transport with claims."""

    Channel = SentinelChannel
