"""Which environments the fleet has: workers publish what they serve, so that any process can route tasks to them.

`app.send_task("predict.classify")` in a process that has never imported the code goes to the queue `predict` because
a worker has published that environment. An entry outlives its last worker for `KEPT` seconds, so tasks can be sent
while nothing runs.
"""

from __future__ import annotations

import json
import time
from typing import Any

import redis
from celery.utils.log import get_logger

from ..names import PRIORITY_STEPS, environment_key

logger = get_logger("flyte_celery.fleet")

#: Seconds that an entry lives after it was last published.
KEPT = 30 * 24 * 3600

#: Seconds that a reader believes an answer.
REMEMBERED = 30.0


class Catalogue:
    """The published environments.

    Args:
        client: Where they are kept; None for brokers without Redis, where nothing is published and nothing known.
    """

    def __init__(self, client: redis.Redis | None) -> None:
        self._client = client
        self._answers: dict[str, tuple[float, bool]] = {}

    def publish(self, environment: str, description: dict[str, Any]) -> None:
        """Make an environment known, or known for longer. A Redis that does not answer is logged, not raised."""
        if self._client is None:
            return
        try:
            self._client.set(environment_key(environment), json.dumps(description), ex=KEPT)
        except redis.RedisError as exc:
            logger.warning("%s: cannot be published in the catalogue of environments: %s", environment, exc)

    def knows(self, environment: str) -> bool:
        """Whether some worker has published it. A Redis that does not answer knows nothing."""
        now = time.monotonic()
        asked, answer = self._answers.get(environment, (float("-inf"), False))
        if self._client is None or now - asked < REMEMBERED:
            return answer
        try:
            answer = bool(self._client.exists(environment_key(environment)))
        except redis.RedisError as exc:
            logger.warning("The catalogue of environments cannot be read: %s", exc)
            return False
        self._answers[environment] = now, answer
        return answer


def priority_steps(client: redis.Redis, environment: str) -> tuple[int, ...]:
    """kombu's priority steps as the workers of an environment have them, kombu's defaults for an unknown one."""
    description: bytes | None = client.get(environment_key(environment))  # type: ignore[assignment]
    steps = json.loads(description).get("priority_steps") if description else None
    return tuple(steps) if steps else PRIORITY_STEPS
