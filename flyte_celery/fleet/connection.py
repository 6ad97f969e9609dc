"""A Redis client for the fleet's own keys, on the server that is the app's broker."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import UnixDomainSocketConnection
from redis.exceptions import BusyLoadingError
from redis.retry import Retry
from redis.sentinel import Sentinel

from ..embedded import client_url

#: Seconds that a command on the fleet's keys may take before the caller goes on without it.
TIMEOUT = 2.0

#: The oldest Redis with every command that claims need (BLMOVE, LMOVE, RPOP with a count).
OLDEST_VERSION = (6, 2)

_TIMEOUTS = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}


def is_too_old(client: redis.Redis) -> bool:
    """Whether the server lacks commands that claims need; one that does not tell its version is believed to be new."""
    try:
        info: Any = client.info("server")
        version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    except (redis.RedisError, LookupError, ValueError):
        return False
    return version < OLDEST_VERSION


def is_cluster(client: redis.Redis) -> bool:
    """Whether the server belongs to a Redis Cluster; one that does not tell is believed to be on its own."""
    try:
        info: Any = client.info("cluster")
    except redis.RedisError:
        return False
    return bool(info.get("cluster_enabled"))


def does_not_run(client: redis.Redis, exc: BaseException) -> bool:
    """Whether an error of a command says that the server does not run, or is loading, rather than be out of reach.

    Only what the error itself was made of counts: what was being handled when it came up is further down its chain, and
    may be an older refusal.
    """
    origin = exc.__cause__ or exc.__context__
    if isinstance(origin, FileNotFoundError):  # a server that ends takes its socket away; with TLS it is a certificate
        return issubclass(client.connection_pool.connection_class, UnixDomainSocketConnection)
    return isinstance(exc, BusyLoadingError) or isinstance(origin, ConnectionRefusedError | BusyLoadingError)


def connect_to_broker(app: Any) -> redis.Redis | None:
    """A client of the Redis that is an app's broker, see `connect`."""
    conf = app.conf
    return connect(conf.broker_read_url or conf.broker_url, conf.broker_use_ssl, conf.broker_transport_options)


def connect(
    url: str | None, use_ssl: Mapping[str, Any] | bool | None = None, options: Mapping[str, Any] | None = None
) -> redis.Redis | None:
    """A client of a broker's Redis, which connects at its first command.

    Args:
        url: As Celery writes it; of several failover URLs the first counts, of several Sentinels all.
        use_ssl: Celery's `broker_use_ssl`.
        options: Celery's `broker_transport_options`; `master_name` and `sentinel_kwargs` are needed for Sentinel.

    Returns:
        None when the broker is no Redis (RabbitMQ), or is behind Sentinels that are told no `master_name`.
    """
    first = client_url((url or "").split(";", 1)[0])
    scheme = first.split("://", 1)[0]
    secure = _ssl_arguments(use_ssl)
    if scheme == "sentinel":
        return _master(url or "", secure, options or {})
    if scheme not in ("redis", "rediss", "unix"):
        return None
    if use_ssl and scheme == "redis":
        first = first.replace("redis://", "rediss://", 1)
    return redis.Redis.from_url(first, **secure, **_TIMEOUTS)


def _ssl_arguments(use_ssl: Mapping[str, Any] | bool | None) -> dict[str, Any]:
    # kombu takes Python's constants of the ssl module, redis-py their names, too.
    return dict(use_ssl) if isinstance(use_ssl, Mapping) else {"ssl_cert_reqs": ssl.CERT_REQUIRED} if use_ssl else {}


def _master(urls: str, secure: dict[str, Any], options: Mapping[str, Any]) -> redis.Redis | None:
    name = options.get("master_name")
    if name is None:
        return None
    parts = [urlsplit(url) for url in urls.split(";")]
    sentinels = [(part.hostname or "localhost", part.port or 26379) for part in parts]
    arguments: dict[str, Any] = {**_TIMEOUTS, **secure, "ssl": bool(secure)}
    for part in parts[:1]:
        arguments["db"] = int(part.path.strip("/") or 0)
        arguments["username"] = unquote(part.username) if part.username else None
        arguments["password"] = unquote(part.password) if part.password else None
    # By itself a client asks a Sentinel that does not answer four times, with seconds in between.
    kwargs = {**_TIMEOUTS, "retry": Retry(NoBackoff(), 0), **(options.get("sentinel_kwargs") or {})}
    found: Any = Sentinel(sentinels, sentinel_kwargs=kwargs, **arguments)  # type: ignore[no-untyped-call]
    client: redis.Redis = found.master_for(name)
    return client
