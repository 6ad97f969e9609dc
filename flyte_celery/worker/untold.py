"""What Celery is to hear of tasks that could not end by themselves, and hears when Redis answers.

Celery records such an end from the worker's main process, and waits for Redis with each task in turn, for minutes. The
event loop would stand still meanwhile, and with it the limits of all other tasks, the lease, and SIGTERM.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Untold:
    """Calls what waits for Redis: at once where that answers, else later, in the same order.

    Args:
        answers: Whether Redis does.
    """

    def __init__(self, answers: Callable[[], bool]) -> None:
        self._answers = answers
        self._waiting: deque[Callable[[], None]] = deque()

    def tell(self, what: Callable[[], None]) -> None:
        """Tell Celery something, now or later."""
        if self._waiting or not self._answers():
            self._waiting.append(what)
        else:
            what()

    def tell_all(self) -> None:
        """Redis may answer again: tell what has waited for that."""
        while self._waiting and self._answers():
            self._waiting.popleft()()
