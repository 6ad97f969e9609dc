"""Lets a worker die between two steps of a claim: the package has no hooks for tests, so they are put in from here.

Only a worker that was started with `CHAOS_DIE_AT=STEP:N` is changed: it kills itself the N-th time it comes there.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

#: Environment variable: the step, and after how many times.
DIE_AT = "CHAOS_DIE_AT"

#: What can be died of, in the order of a claim's life.
STEPS = {
    "moved": "a wait has ended on the server, and nobody has read the reply",
    "claimed": "a script has claimed messages, and nobody has read the reply",
    "delivered": "the worker has read what it claimed, and no replica has it",
    "stored": "the result is stored, and the worker has not noted it",
    "noted": "the worker has noted acknowledgements, and not written them",
    "acknowledged": "acknowledgements are written, and nobody has read the reply",
}


def prepare_to_die() -> None:
    """Have this worker die where its environment says; does nothing in all others."""
    if not (wanted := os.environ.get(DIE_AT)):
        return
    # A worker alone loads these modules, and only when it is told to die.
    from flyte_celery.fleet.claims import Claims
    from flyte_celery.worker.keeper import Keeper
    from flyte_celery.worker.transport import Claiming

    step, _, count = wanted.partition(":")
    last = _countdown(int(count))
    match step:
        case "moved":
            _before(Claiming, "_brpop_read", lambda channel: channel._waits and last())
        case "claimed":
            _before(Claims, "claimed", lambda _, reply: bool(reply) and reply != -1 and last())
        case "delivered":
            _before(Claiming, "_deliver_claims", lambda *_: last())
        case "stored":
            _before(Keeper, "ack", lambda *_: last())
        case "noted":
            _before(Claims, "flush", lambda claims: bool(claims._acks) and last())
        case "acknowledged":
            _after_flush(Claims, last)
        case _:
            raise ValueError(f"{DIE_AT}={wanted!r}: there is no such step; give one of {', '.join(STEPS)}.")


def _countdown(count: int) -> Callable[[], bool]:
    left = [count]

    def last() -> bool:
        left[0] -= 1
        return left[0] == 0

    return last


def _before(owner: type, name: str, now: Callable[..., bool]) -> None:
    original = getattr(owner, name)

    def wrapper(self: Any, *args: Any) -> Any:
        if now(self, *args):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args)

    setattr(owner, name, wrapper)


def _after_flush(owner: Any, last: Callable[[], bool]) -> None:
    original = owner.flush

    def flush(self: Any) -> None:
        acks = bool(self._acks)
        original(self)
        if acks and last():
            os.kill(os.getpid(), signal.SIGKILL)

    owner.flush = flush
