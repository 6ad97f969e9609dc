"""One task over many inputs, with failures as values."""

from __future__ import annotations

from functools import partial

import flyte_celery as flyte

app = flyte.init()

env = flyte.TaskEnvironment(
    name="squares",
    reusable=flyte.ReusePolicy(replicas=(1, 2), concurrency=10, idle_ttl=300),
)


@env.task
async def power(exponent: int, base: int) -> int:
    """Raise to a power; 13 brings bad luck."""
    if base == 13:
        raise ValueError("13 is not served")
    return base**exponent


if __name__ == "__main__":
    square = partial(power, 2)
    for result in flyte.map(square, range(10, 15), concurrency=4):
        if isinstance(result, flyte.errors.RuntimeUserError):
            print(f"failed: {result.code}: {result}")
        else:
            print(result)
    try:
        list(flyte.map(square, [13], return_exceptions=False))
    except ValueError as error:
        print(f"raised: {error}")
