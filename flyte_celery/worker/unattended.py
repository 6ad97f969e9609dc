"""Tasks that have waited too long for environments that no live worker serves: somebody else fails them.

Any worker of the project does, one of them each second, and so does `env reap`. For the time that it takes it has a
lease on such a queue and claims what is overdue, as one of the queue's own workers would, so that a task fails once, by
one process, and what that process leaves behind when it dies goes back to the queue.
"""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from collections.abc import Iterable
from typing import Any

import redis
from billiard.einfo import ExceptionInfo
from celery.utils.log import get_logger
from celery.worker.request import Request
from kombu.message import Message
from kombu.serialization import prepare_accept_content

from .. import kombu_json, names
from ..environment import environments
from ..fleet.catalogue import priority_steps
from ..fleet.claims import Claim, Claims, LeaseLostError
from ..fleet.storing import FENCE_FIELD, UNFENCED, Fence
from ..overrides import effective
from .failing import after_failure
from .fencing import fencing
from .timeouts import ends_of_waiting

logger = get_logger("flyte_celery.worker")

#: Seconds between two looks at all queues, of all workers of a project together.
LOOK_EVERY = 1.0

#: Seconds for which a queue is left alone in which there was something that this process cannot end: a task that it
#: does not know, or knows without such a limit, because its code is another version's.
LEFT_ALONE = 60.0

#: Tasks that are ended in one go: a worker has other things to do.
AT_ONCE = 20


class Unattended:
    """The overdue tasks of queues without a worker.

    Args:
        app: The Celery app, whose environments are meant.
        client: Its broker.
        hostname: Who looks, as a node name.
        lease: Seconds for which it is believed to be alive while it is at work.
        eventer: Sends Celery's events; None for none.
    """

    def __init__(self, app: Any, client: redis.Redis, hostname: str, lease: float, eventer: Any = None) -> None:
        self.eventer = eventer
        self._app = app
        self._client = client
        self._hostname = hostname
        self._lease = lease
        #: The claims on the queues that this process is at work on.
        self._claims: dict[str, Claims] = {}
        self._left_alone: dict[str, float] = {}
        #: Whether results are kept where the leases are; found out with the first lease.
        self._fenced: bool | None = None

    def queues(self, in_turn: bool = False) -> list[str]:
        """The queues with overdue tasks, as far as publishers have noted, that no live worker serves.

        Args:
            in_turn: Whether to look only if nobody of the same project has done so within `LOOK_EVERY`.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        now = time.monotonic()
        mine = [names.queue_name(name) for name in sorted(environments())]
        wanted = [queue for queue in mine if self._left_alone.get(queue, 0.0) <= now]
        if not wanted or (in_turn and not self._has_turn(mine)):
            return []
        server: Any = self._client.time()
        seconds, now_ms = server[0], server[0] * 1000 + server[1] // 1000
        pipe: Any = self._client.pipeline(transaction=False)
        for queue in wanted:
            pipe.zrangebyscore(names.ends_key(queue), "-inf", f"({seconds}", start=0, num=1)
            pipe.zrangebyscore(names.passed_on_ends_key(queue), "-inf", now_ms, start=0, num=1)
        found = pipe.execute()
        overdue = [queue for queue, *over in zip(wanted, found[::2], found[1::2], strict=True) if any(over)]
        if not overdue:
            return []
        live: Any = self._client.zrangebyscore(names.workers_key(), f"({now_ms}", "+inf")
        served = {member.decode().partition("/")[0] for member in live}
        return [queue for queue in overdue if queue not in served]

    def _has_turn(self, queues: Iterable[str]) -> bool:
        project = hashlib.sha1("/".join(queues).encode(), usedforsecurity=False).hexdigest()[:12]
        return bool(
            self._client.set(names.turn_key(f"overdue:{project}"), self._hostname, nx=True, px=int(LOOK_EVERY * 900))
        )

    def end_some(self, queue: str, first_ones: bool = True) -> tuple[int, float | None]:
        """End overdue tasks of a queue without a worker, `AT_ONCE` at most.

        Args:
            queue: The queue.
            first_ones: See `Claims.claim_overdue`.

        Returns:
            How many there were, and the seconds after which to go on; None when this was all.

        Raises:
            redis.RedisError: Redis does not answer; what was claimed and not ended goes back when the lease is over.
        """
        claims = self._claims.get(queue)
        if claims is None:
            worker = f"{self._hostname}:{uuid.uuid4().hex[:12]}"
            claims = Claims(self._client, queue, priority_steps(self._client, queue), worker, self._lease)
            claims.take_lease()
            self._claims[queue] = claims
        try:
            claims.renew_lease()
            taken, again = claims.claim_overdue(first_ones, AT_ONCE)
            if claims.needs and (over := claims.take("", AT_ONCE)):
                taken, again = taken + over, again or 0.0
            now: Any = self._client.time()  # by whose clock they are over
            unknown, renewed_at = [], time.monotonic()
            for claim in taken:
                if time.monotonic() - renewed_at > self._lease / 3:
                    renewed_at = time.monotonic()
                    claims.renew_lease()
                if not self._ended(claims, claim, now[0] + now[1] / 1e6):
                    unknown.append(claim)
            if unknown:
                claims.hand_back(unknown)
                self._left_alone[queue] = time.monotonic() + LEFT_ALONE
                again = None
            claims.flush()
        except LeaseLostError:  # what it had claimed is somebody else's
            del self._claims[queue]
            return 0, None
        except redis.RedisError:
            del self._claims[queue]
            raise
        if again is None:
            del self._claims[queue]
            claims.leave()
        return len(taken) - len(unknown), again

    def _ended(self, claims: Claims, claim: Claim, now: float) -> bool:
        """Whether a task could be ended here that has waited too long, or was revoked."""
        try:
            if self._fenced is None:
                self._fenced = fencing(self._app, claims).works
            fence = Fence(*claims.fence(claim.id) if self._fenced else UNFENCED)
            message = _message(claim.message, self._app)
            message.properties[FENCE_FIELD] = fence
            task = self._app.tasks[message.headers["task"]]
            request: Any = Request(message, app=self._app, task=task, hostname=self._hostname, eventer=self.eventer)
            if not request.revoked():
                self._fail(request, claims.queue, fence, now)
        except Exception as exc:  # the queue's own worker will meet it as well, and say it better
            logger.warning("%s: a task that has waited too long cannot be ended here: %r", claims.queue, exc)
            return False
        claims.ack(claim.id)
        return True

    def _fail(self, request: Any, queue: str, fence: Fence, now: float) -> None:
        environment, words = environments()[queue], f"{request.type}[{request.id}]"
        task = effective(environment.tasks[request.type], request.request_dict)
        error = next(error for end, error in ends_of_waiting(task, request.request_dict, words) if end <= now)
        logger.warning("%s, and no worker serves %s.", str(error).rstrip("."), queue)
        ended_with = after_failure(request, task, error, fence)
        try:
            raise ended_with
        except Exception:
            request.on_failure(ExceptionInfo())


def _message(raw: bytes, app: Any) -> Message:
    """A message as kombu's Redis transport gives it to Celery."""
    payload = kombu_json.loads(raw.decode())
    properties, body = payload["properties"], payload["body"]
    return Message(
        body=base64.b64decode(body) if properties.get("body_encoding") == "base64" else body,
        delivery_tag=properties.get("delivery_tag"),
        content_type=payload.get("content-type"),
        content_encoding=payload.get("content-encoding"),
        headers=payload["headers"],
        properties=properties,
        delivery_info=properties.get("delivery_info"),
        postencode="utf-8",
        accept=prepare_accept_content(app.conf.accept_content),
    )
