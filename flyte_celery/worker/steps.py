"""Bootsteps of an environment's worker; the app names them as strings, so that only workers load this module."""

from __future__ import annotations

from typing import Any

import redis
from celery import bootsteps
from celery.utils.log import get_logger

from ..autoscaler.decide import Observed
from ..autoscaler.driver import Autoscaler, Explained
from ..autoscaler.shared import SharedAutoscaler
from ..clock import SystemClock
from ..fleet.catalogue import Catalogue
from ..fleet.connection import connect_to_broker
from ..gpu.inventory import described, listed
from ..names import PRIORITY_STEPS, queue_name
from ..urls import redacted
from . import control
from .away import stay_alive
from .keeper import Keeper
from .offering import Offering
from .place import succeed
from .pool import ReplicaPool
from .serving import Serving
from .unattended import LOOK_EVERY, Unattended

logger = get_logger("flyte_celery.worker")

#: Most messages that a worker claims beyond what can run at once, however short its tasks are.
MOST_LOOKAHEAD = 1000

#: Celery's default of `broker_connection_max_retries`.
CELERYS_ATTEMPTS = 100

#: Seconds between two publications of the environment in the catalogue.
PUBLISH_INTERVAL = 24 * 3600.0


#: Seconds that a task waits in a worker whose replicas all belong to other runs before another worker may have it.
STRAY_PATIENCE = 1.0


class AutoscalerStep(bootsteps.StartStopStep):
    """Runs the autoscaler in workers that serve an environment, and stays out of all others."""

    label = "Environment"
    conditional = True
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self.enabled = isinstance(worker.pool_cls, type) and issubclass(worker.pool_cls, ReplicaPool)
        self._considering = False
        self._qos: Any = None
        self._prefetch = 0

    def create(self, parent: Any) -> None:
        """Put the autoscaler where Celery's own would be, so that its control commands find it."""
        worker = self._worker = parent
        pool: ReplicaPool = worker.pool
        worker.autoscaler = self._autoscaler = self._made(pool)
        pool.on_change = self._soon
        pool.on_tick = self._tick
        control.register()

    def _made(self, pool: ReplicaPool) -> Autoscaler:
        keeper, limits = pool.serving.keeper, pool.serving.limits
        if keeper is None or keeper.seats is None:
            return Autoscaler(pool.scaling, limits, self._look, SystemClock(), self._decided)
        keeper.most_claims = 0  # until it is known what there is
        return SharedAutoscaler(pool.scaling, limits, keeper.seats, keeper, SystemClock(), self._decided, self._heard)

    def start(self, parent: Any) -> None:
        """Say what is served from where, and tell the fleet's other processes that this environment exists."""
        serving: Serving = parent.pool.serving
        broker = redacted(serving.broker_url)
        logger.info("%s: serves the queue %r of %s", serving.name, queue_name(serving.name), broker)
        if serving.weaker is not None:
            logger.warning("%s: %s", serving.name, serving.weaker)
        for warning in serving.warnings:
            logger.warning("%s: %s", serving.name, warning)
        if serving.devices is not None:
            there = listed(serving.devices.accelerators)
            logger.info("%s: each replica gets %s of %s", serving.name, described(serving.devices.wanted), there)
        client = connect_to_broker(parent.app)
        self._catalogue = Catalogue(client)
        self._publish(serving)
        self._offering = Offering(client, parent.pool, parent.hostname)
        self._offering.publish()
        if client is not None:
            self._unattended = Unattended(parent.app, client, parent.hostname, serving.settings.lease)
        if serving.keeper is not None and serving.keeper.seats is not None:
            succeed(serving.keeper.seats, parent.pool.replicas.launcher_pid)

    def stop(self, parent: Any) -> None:
        """Offer nothing any more."""
        self._offering.withdraw()

    def register_with_event_loop(self, parent: Any, hub: Any) -> None:
        """Publish again from time to time; Celery calls this for each connection, whose loss clears all timers."""
        serving: Serving = parent.pool.serving
        hub.call_repeatedly(PUBLISH_INTERVAL, self._publish, serving)
        hub.call_repeatedly(serving.settings.lease_renewal, self._offering.publish)
        if serving.keeper is not None:
            hub.call_repeatedly(LOOK_EVERY, self._look_at_unattended, serving.keeper, hub)

    def _look_at_unattended(self, keeper: Keeper, hub: Any) -> None:
        """End what has waited too long for environments that no live worker serves."""
        if keeper.away:
            return
        try:
            for queue in self._unattended.queues(in_turn=True):
                self._end_unattended(queue, hub)
        except redis.RedisError as exc:
            keeper.refused(exc)
            logger.warning("What has waited too long elsewhere cannot be looked for: %s", exc)

    def _end_unattended(self, queue: str, hub: Any, first_ones: bool = True) -> None:
        self._unattended.eventer = getattr(getattr(self._worker, "consumer", None), "event_dispatcher", None)
        try:
            _, again = self._unattended.end_some(queue, first_ones)
        except redis.RedisError as exc:
            logger.warning("%s: what has waited too long cannot be ended now: %s", queue, exc)
            return
        if again is not None:
            hub.call_later(again, self._end_unattended, queue, hub, not again)

    def _publish(self, serving: Serving) -> None:
        options = self._worker.app.conf.broker_transport_options or {}
        description = {
            "queue": queue_name(serving.name),
            "tasks": sorted(serving.environment.tasks),
            "priority_steps": list(options.get("priority_steps") or PRIORITY_STEPS),
        }
        self._catalogue.publish(serving.name, description)

    def info(self, obj: Any) -> Any:
        """What `celery inspect stats` shows."""
        return {"autoscaler": obj.autoscaler.info()}

    def _soon(self) -> None:
        """Consider once per turn of the event loop, however many tasks arrive in it."""
        if not self._considering and self._worker.hub is not None:
            self._considering = True
            self._worker.hub.call_soon(self._consider)

    def _consider(self) -> None:
        self._considering = False
        self._autoscaler.consider()
        self._make_way()
        self._adjust_prefetch()

    def _tick(self) -> None:
        """Once per interval."""
        self._offering.keep_up()
        pool: ReplicaPool = self._worker.pool
        keeper = pool.serving.keeper
        if isinstance(self._autoscaler, SharedAutoscaler):
            self._autoscaler.look()
            self._make_way()
            self._send_on(self._autoscaler)
            self._take_beside(self._autoscaler)
            if (view := self._autoscaler.view) is not None:
                pool.starving.look(view.all_live)
            self._adjust_prefetch()
        else:
            if keeper is not None:
                keeper.rests = keeper.is_held_back()
                keeper.most_claims = 0 if keeper.rests else None
            pool.starving.look(pool.scaling.live)
            self._soon()

    def _make_way(self) -> None:
        """Where replicas belong to runs and there may be no more of them, let some go for runs that have none."""
        autoscaler, pool = self._autoscaler, self._worker.pool
        if not pool.group.by_run:
            return
        pool.group.limits = autoscaler.limits  # an operator may have changed them
        if not isinstance(autoscaler, SharedAutoscaler):
            exist = pool.replicas.seated(pool.group)
        elif autoscaler.view is not None and autoscaler.view.serves:
            exist = autoscaler.view.all_seats
        else:
            return
        pool.scaling.make_way(pool.group, exist >= autoscaler.limits.highest, autoscaler.tell)

    def _send_on(self, autoscaler: SharedAutoscaler) -> None:
        """Where replicas belong to runs and none here can be had for a task, let other workers have it."""
        view, pool = autoscaler.view, self._worker.pool
        if view is not None and view.workers > 1:
            pool.hand_back(*pool.run_scope.strays(pool.group, STRAY_PATIENCE))

    def _take_beside(self, autoscaler: SharedAutoscaler) -> None:
        """Where others have the seats, so that nothing is claimed here, take calls that need none."""
        view, pool = autoscaler.view, self._worker.pool
        keeper = pool.serving.keeper
        if view is None or not view.beside or keeper.rests or keeper.most_claims != 0 or pool.stopping.begun:
            return
        if (spare := pool.beside.spare) > 0:
            keeper.take_beside(spare)

    def _heard(self) -> None:
        """Claim what the seats of this worker can run."""
        autoscaler, pool = self._autoscaler, self._worker.pool
        assert isinstance(autoscaler, SharedAutoscaler)
        view, slots = autoscaler.view, autoscaler.limits.concurrency
        if view is None:
            return  # without Redis there is nothing to claim
        pool.serving.keeper.rests = view.paused or not view.serves
        if view.paused or not view.serves or autoscaler.refused:
            most: int | None = 0
        elif view.workers == 1:
            most = None
        elif autoscaler.share:
            most = autoscaler.share * slots + self._lookahead()
        else:
            # Whoever is first wakes the environment up, unless a new definition's replica has the last seat.
            taken = view.proving and view.all_seats >= autoscaler.limits.highest
            most = 0 if view.all_live or taken else slots
        pool.serving.keeper.most_claims = most

    def _look(self) -> Observed | None:
        # Every message that can run is claimed at once, so what the pool holds is the whole demand up to capacity,
        # and beyond capacity demand changes nothing.
        pool: ReplicaPool = self._worker.pool
        return pool.scaling.observed()

    def _adjust_prefetch(self) -> None:
        """Claim what can run, and a little more, so that short tasks never wait for the broker and long ones do not."""
        consumer = getattr(self._worker, "consumer", None)
        qos = getattr(consumer, "qos", None)
        if qos is None or _prefetch_is_static(consumer):
            return
        if qos is not self._qos:  # a new connection begins with Celery's own count again
            self._qos, self._prefetch = qos, qos.value
        limits = self._autoscaler.limits
        pool: ReplicaPool = self._worker.pool
        # With claims the transport itself lets others in for those that wait for their children.
        suspended = pool.set_aside if pool.serving.keeper is None else 0
        # While this host has no place for more replicas, what others could run is left to them; but for one replica's
        # work, whose demand makes the autoscaler ask again.
        most = min(limits.highest, pool.serving.room)
        replicas = most if pool.scaling.obstacle is None else min(most, pool.scaling.live + 1)
        wanted = max(1, replicas * limits.concurrency) + self._lookahead() + suspended
        # Small corrections are not worth a command to the consumer.
        if suspended or abs(wanted - self._prefetch) * 8 > self._prefetch:
            change, self._prefetch = wanted - self._prefetch, wanted
            (qos.increment_eventually if change > 0 else qos.decrement_eventually)(abs(change))

    def _lookahead(self) -> int:
        pool: ReplicaPool = self._worker.pool
        if pool.mean_duration is None:
            return 0
        per_slot = pool.serving.settings.lookahead / max(pool.mean_duration, 1e-6)
        return min(MOST_LOOKAHEAD, int(per_slot * pool.scaling.live))

    def _decided(self, explained: Explained) -> None:
        worker = self._worker
        name = worker.pool.serving.name
        logger.info("%s: %s", name, explained.text)
        dispatcher = getattr(getattr(worker, "consumer", None), "event_dispatcher", None)
        if dispatcher is not None and dispatcher.enabled:
            dispatcher.send(
                "environment-scaled",
                environment=name,
                target=explained.target,
                reason=str(explained.reason),
                text=explained.text,
            )


def _prefetch_is_static(consumer: Any) -> bool:
    """Whether the broker keeps to the prefetch count that consuming began with, which is the worker's capacity.

    RabbitMQ changes it under way only where one count holds for a whole channel: neither for quorum queues, nor from
    its version 4 on.
    """
    connection = consumer.connection
    return connection is None or (connection.transport.driver_type == "amqp" and not consumer.qos_global)


class ReconnectionStep(bootsteps.StartStopStep):
    """Keeps an environment's worker at work between a lost connection and the next one."""

    label = "Environment's reconnection"
    conditional = True

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        # Who limits Celery's attempts wants the worker to end when they are used up.
        attempts = parent.app.conf.broker_connection_max_retries
        self.enabled = isinstance(parent.pool, ReplicaPool) and attempts in (None, 0, CELERYS_ATTEMPTS)

    def start(self, parent: Any) -> None:
        """Nothing: Celery connects."""

    def stop(self, parent: Any) -> None:
        """Celery restarts its consumer after a lost connection, whose place is empty then, or stops the worker."""
        keeper = parent.pool.serving.keeper
        if parent.connection is None and keeper is not None:
            stay_alive(parent.pool, keeper)
