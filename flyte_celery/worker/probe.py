"""Finds out from a thread whether Redis is back, so that the event loop waits for no answer that does not come."""

from __future__ import annotations

import threading

import redis


class Probe:
    """One question at a time.

    Args:
        client: With time-outs.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._asking: threading.Thread | None = None
        self._error: redis.RedisError | None = None

    def ask(self) -> None:
        """Begin to ask, unless it is being asked, or there is an answer that nobody has heard."""
        if self._asking is None:
            self._error = None
            self._asking = threading.Thread(target=self._ask, name="redis-probe", daemon=True)
            self._asking.start()

    def answers(self) -> bool:
        """Whether Redis has answered; False while it still may. Asks where nobody has.

        Raises:
            redis.RedisError: It has refused, or not answered in time. The next call asks again.
        """
        self.ask()
        if self._asking is None or self._asking.is_alive():
            return False
        self._asking = None
        if (error := self._error) is not None:
            # Raising replaces an error's context by what is being handled here; a cause stays.
            raise error from (error.__cause__ or error.__context__)
        return True

    def _ask(self) -> None:
        try:
            self._client.ping()
        except redis.RedisError as exc:
            self._error = exc
