"""What the commands about the fleet's keys share."""

from __future__ import annotations

from typing import Any

import click
import redis

from ..client.install import dispatcher_of
from ..errors import InitializationError
from ..fleet.connection import connect_to_broker
from ..urls import redacted


def fleet_client(app: Any) -> redis.Redis:
    """A client of the Redis where the fleet keeps its claims, which answers.

    Raises:
        click.ClickException: The app has no environments, its broker is no Redis, or does not answer.
    """
    check_running(app)
    try:
        client = connect_to_broker(app)
        if client is None:
            raise click.ClickException(
                f"The broker {redacted(str(app.conf.broker_url))} is no Redis: it keeps no claims and no dead letters."
            )
        client.ping()
    except redis.RedisError as exc:
        broker, reason = redacted(str(app.conf.broker_url)), str(exc).rstrip(".")
        raise click.ClickException(
            f"The broker {broker} does not answer ({reason}): start it or correct its URL."
        ) from None
    return client


def check_running(app: Any) -> None:
    """Make sure that the app has environments, and that its bundled Redis runs when that is the broker.

    Raises:
        click.ClickException: What is missing, and what to do.
    """
    try:
        dispatcher = dispatcher_of(app)
    except InitializationError as exc:
        raise click.ClickException(str(exc)) from None
    if not dispatcher.has_broker:
        raise click.ClickException(
            "Nothing runs here: the bundled Redis of this directory is not started. Try `env up`."
        )
