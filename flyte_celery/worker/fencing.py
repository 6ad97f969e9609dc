"""Whether results are kept where the leases are, so that a worker that lost its lease can record nothing any more."""

from __future__ import annotations

from typing import Any, NamedTuple

import redis
from celery.backends.base import DisabledBackend
from celery.backends.redis import RedisBackend

from .. import names
from ..fleet.claims import Claims
from ..fleet.connection import connect
from ..urls import redacted

#: What follows where they are not, and what to do.
_CONSEQUENCE = (
    "fencing is off: a worker that was given up for dead may still store results, and report failures, of tasks that "
    "others run by then. Write result_backend as the URL of the broker, database included"
)


class Fencing(NamedTuple):
    """What was found out."""

    works: bool
    warning: str = ""
    """What the worker's log is to say at its start; empty for nothing."""


def fencing(app: Any, claims: Claims) -> Fencing:
    """Find out where results are kept: the worker looks for its own lease there.

    One server may have several names, and one name may stand for several servers. Where that look-up fails, the
    addresses have to do.

    Args:
        app: The worker's app.
        claims: The worker's, which has taken its lease.
    """
    backend: Any = app.backend
    if isinstance(backend, DisabledBackend):
        return Fencing(works=False)  # there are no results
    place = redacted(backend.as_uri())
    apart = _off(f"Results are kept in {place}, apart from the leases")
    if not isinstance(backend, RedisBackend):
        return apart
    try:
        if _has_lease(_client_of(app, backend), claims):
            return Fencing(works=True)
        if _has_lease(claims.client, claims):
            return apart
        problem = "the broker has no lease of this worker"
    except (redis.RedisError, ValueError) as exc:
        problem = str(exc).rstrip(".")
    if _same_address(claims.client, backend):
        return Fencing(works=True)
    return _off(f"Results are kept in {place}, and whether the leases are there cannot be found out ({problem})")


def _off(reason: str) -> Fencing:
    return Fencing(works=False, warning=f"{reason}, so {_CONSEQUENCE}.")


def _has_lease(client: Any, claims: Claims) -> bool:
    """Whether a Redis has the lease of this life of the worker, which no other has."""
    return client.zscore(names.workers_key(), names.worker_member(claims.queue, claims.worker)) is not None


def _client_of(app: Any, backend: Any) -> Any:
    """A client of the results' Redis; not the backend's own, which waits two minutes for an answer."""
    conf = app.conf
    return connect(backend.url, conf.redis_backend_use_ssl, conf.result_backend_transport_options) or backend.client


def _same_address(client: redis.Redis, backend: Any) -> bool:
    """Whether broker and result backend are written in the same way; of Sentinels that is not said."""
    ours, theirs = client.connection_pool.connection_kwargs, backend.connparams
    return bool(ours.get("host") or ours.get("path")) and all(
        ours.get(name, default) == theirs.get(name, default)
        for name, default in (("host", None), ("port", 6379), ("path", None), ("db", 0))
    )
