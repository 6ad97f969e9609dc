"""Functions that every replica of an environment runs once: `@env.on_startup` and `@env.on_shutdown`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .registry import place_of_function


@dataclass(frozen=True, slots=True)
class Hook:
    """A function that every replica of an environment runs once."""

    func: Callable[[], Any]
    """Without parameters; sync or async."""

    timeout: timedelta | None = None
    """How long it may take. None: as long as the worker allows (its setting `startup_timeout`)."""


def with_hook(hooks: tuple[Hook, ...], func: Callable[[], Any], timeout: timedelta | None) -> tuple[Hook, ...]:
    """The hooks and one more, in place of an earlier definition of it: a notebook cell may be run again.

    Raises:
        TypeError: If the function cannot be called without arguments, or is a generator.
    """
    name = getattr(func, "__qualname__", repr(func))
    if not callable(func) or inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise TypeError(f"The hook {name} is no function that runs to its end: use one without `yield`.")
    try:
        inspect.signature(func).bind()
    except TypeError as exc:
        raise TypeError(
            f"The hook {name} is called without arguments, but takes some ({exc}): give defaults."
        ) from None
    place = place_of_function(func)
    others = (hook for hook in hooks if not place_of_function(hook.func).is_scope_of(place))
    return (*others, Hook(func, timeout))


def limit_of(timeout: object) -> timedelta | None:
    """What `timeout=` of a hook means: seconds or a `timedelta`; None for the worker's own limit.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is not above 0, or not finite.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float | timedelta):
        raise TypeError(f"The timeout of a hook must be seconds or a timedelta, got {timeout!r}: pass 300, say.")
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if not 0 < seconds < math.inf:
        raise ValueError(
            f"The timeout of a hook must be above 0 and finite, got {timeout!r}: use None for the default."
        )
    return timedelta(seconds=seconds)
