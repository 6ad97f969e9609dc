"""Tells the fleet what a worker's host offers, and which of its devices its replicas have."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import redis
from celery.utils.log import get_logger

from ..fleet.offers import publish, withdraw
from .groups import broken_devices, devices_of
from .pool import ReplicaPool

logger = get_logger("flyte_celery.worker")


#: Tasks that wait with a device of which is told.
MOST_WAITS = 100


class Offering:
    """Publishes what `env status` of any process shows.

    Args:
        client: None where the broker is no Redis: nothing is published.
        pool: The worker's replicas.
        hostname: The worker's node name.
    """

    def __init__(self, client: redis.Redis | None, pool: ReplicaPool, hostname: str) -> None:
        self._client = client
        self._pool = pool
        self._hostname = hostname
        #: What was published last.
        self._said: dict[str, Any] = {}

    def keep_up(self) -> None:
        """Publish when replicas have got devices or given them back."""
        if devices_of(self._pool.groups) and self._offer() != self._said:
            self.publish()

    def publish(self) -> None:
        """Publish, or renew. A Redis that does not answer is logged, not raised."""
        pool = self._pool
        keeper = pool.serving.keeper
        for replica in pool.replicas:
            if replica.group.devices is not None:
                replica.group.devices.keep([replica.lease])
        # What is said of devices that others have meanwhile would be wrong; the next tick knows better.
        if self._client is None or (keeper is not None and (keeper.away or keeper.in_doubt)):
            return
        try:
            self._said = self._offer()
            publish(self._client, self._hostname, self._said, pool.serving.settings.lease)
        except redis.RedisError as exc:
            logger.warning("%s: what this host offers cannot be published: %s", pool.serving.name, exc)

    def _offer(self) -> dict[str, Any]:
        pool = self._pool
        return {
            "worker": self._hostname,
            "environment": pool.serving.name,
            **pool.serving.host.as_dict(),
            "held": {replica.number: replica.lease.labels for replica in pool.replicas if replica.lease is not None},
            "broken": broken_devices(pool.groups),
            "waits": dict(itertools.islice(_waits(pool), MOST_WAITS)),
        }

    def withdraw(self) -> None:
        """The worker stops."""
        keeper = self._pool.serving.keeper
        if self._client is None or (keeper is not None and keeper.away):
            return  # it runs out by itself
        try:
            withdraw(self._client, self._hostname)
        except redis.RedisError as exc:
            logger.debug("%s: the offer of this host runs out by itself: %s", self._pool.serving.name, exc)


def _waits(pool: ReplicaPool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tasks that wait for their children and keep devices, by their ids, for `fleet.starving`."""
    for replica in pool.replicas:
        if replica.lease is None:
            continue
        wait = {
            "devices": [f"{each.device_class} {each.id}" for each in replica.lease.accelerators],
            "serves": None if replica.group.ephemeral else replica.group.need,
        }
        for number in replica.suspended:
            if (job := replica.jobs.get(number)) is not None:
                yield job.task_id, wait
