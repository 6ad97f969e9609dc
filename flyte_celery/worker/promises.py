"""Which promises a worker cannot keep on its broker, in words for its log; `docs/howto/rabbitmq.md` says why."""

from __future__ import annotations

from .redelivery import MOST_RETURNS

#: Schemes of URLs that kombu's AMQP transports serve.
AMQP_SCHEMES = frozenset({"amqp", "amqps", "pyamqp", "librabbitmq"})


def is_amqp(url: str) -> bool:
    """Whether a broker URL names RabbitMQ, or another AMQP broker."""
    return _scheme(url) in AMQP_SCHEMES


def weaker_promises(url: str, quorum: bool, published: bool) -> str:
    """What is weaker than with claims in Redis.

    Args:
        url: The broker's, as the app was configured with it.
        quorum: Whether the environment's queue is a quorum queue.
        published: Whether environments are published there, so that callers find their queues.
    """
    endless = f"until RabbitMQ has delivered it {MOST_RETURNS + 1} times" if quorum else "without end"
    attempts = (
        "attempts are counted in this worker's memory, so a task that ends whole workers is tried again "
        f"{endless}; bounds hold for each worker, not for all of them together"
    )
    if is_amqp(url):
        broker = "RabbitMQ has"
        again = "what runs while a connection is lost is delivered again, and may run twice when another worker gets it"
    elif _scheme(url).startswith(("redis", "sentinel")):
        broker = "this Redis is served with"
        again = "what runs longer than the visibility timeout may run twice, and what a dead worker had comes back then"
    else:
        broker = "this broker has"
        again = "what runs when it delivers a message again may run twice"
    callers = "" if published else "; callers that have not imported a task must name its queue"
    return f"{broker} no leases and claims: {again}; {attempts}{callers}."


def _scheme(url: str) -> str:
    return url.split("://", 1)[0]
