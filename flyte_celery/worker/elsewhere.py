"""Calls that this host cannot give what they need, or not now: passed on to workers that can, and taken from them.

A call whose override asks for a device waits here only while there is a place for it here. Else it waits in Redis
(`fleet.needs`), where each worker of the environment looks once per second, and when a place of its own becomes free,
and takes as many as it has places for. So a call never waits behind a host that is full while another one is free, and
what no host has is waited for by no process at all.

Where the broker keeps no claims there is no such place: what this host can never give fails at once, and what it cannot
give now waits here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from celery.exceptions import Reject
from celery.utils.log import get_logger
from celery.utils.time import maybe_iso8601, maybe_make_aware

from ..errors import RuntimeSystemError
from ..fleet.needs import Unmet, in_words_of, offering, resources_of, unmet
from ..gpu.host import lacking
from ..names import TIMES_HEADER
from ..resources import Resources
from .beside import Beside, CannotGive
from .job import Job
from .keeper import Keeper
from .replicas import Replicas
from .serving import Serving

logger = get_logger("flyte_celery.worker")


class Elsewhere:
    """What one worker passes on, and takes.

    Args:
        serving: What the worker serves.
        beside: The replicas for calls with overrides.
        replicas: All replicas; they know the event loop.
        withdraw: Takes a task that waits for a replica from the pool.
    """

    def __init__(self, serving: Serving, beside: Beside, replicas: Replicas, withdraw: Callable[[Job], None]) -> None:
        self._serving = serving
        self._beside = beside
        self._replicas = replicas
        self._withdraw = withdraw
        #: Tasks to be passed on in this turn of the event loop, with what they need.
        self._passing: dict[Job, str] = {}
        #: What tasks need that were passed on, as far as this worker knows.
        self._known: list[str] = []
        #: Of these, what this worker itself has passed on, and what nobody offered when it last looked.
        self._own: set[str] = set()
        self._unoffered: set[str] = set()
        self._asks_at = 0.0
        self._taking = False
        #: When something of a need was last taken, in monotonic seconds: needs for the same devices take turns.
        self._taken_at: dict[str, float] = {}

    @property
    def _keeper(self) -> Keeper | None:
        return self._serving.keeper

    def refusal(self, lacks: CannotGive) -> RuntimeSystemError | None:
        """The failure of a call that nobody can be asked to run; None where it is passed on."""
        if self._keeper is not None:
            return None
        return RuntimeSystemError(
            "ResourcesUnavailable",
            f"This host ({self._serving.host.name}) cannot run a call with these resources: it needs {lacks}. On this "
            f"broker a worker cannot pass it on: run the workers of {self._serving.name!r} on hosts that have that, or "
            "use Redis as the broker.",
        )

    # -- Passing on --------------------------------------------------------------------------------------------------

    def passes_on(self, job: Job, request: Mapping[str, Any]) -> bool:
        """Whether a task that has come is not to wait here.

        Args:
            job: The task. It stays the pool's until it has been passed on.
            request: Celery's request of its message.
        """
        if self._keeper is None or job.claim is None:
            return False
        if job.need is None and job.group.devices is None:
            return False
        job.over_at = _end_of(request)
        need = job.need if job.need is not None else self._without_place(job)
        if need is not None:
            self._pass(job, need)
        return need is not None

    def _without_place(self, job: Job) -> str | None:
        """What a task needs for which there is no place here now; None where there is one."""
        need = job.group.need
        resources = None if need is None else resources_of(need)
        if need is None or resources is None or self._beside.room_for(need, resources) > 0:
            return None
        return need

    def _pass(self, job: Job, need: str) -> None:
        if not self._passing:
            hub = self._replicas.hub
            assert hub is not None, "tasks come by the event loop"
            hub.call_later(0, self._pass_on)
        self._passing[job] = need

    def _pass_on(self) -> None:
        passing, self._passing = self._passing, {}
        keeper, held = self._keeper, [job for job in passing if self._is_here(job)]
        if keeper is None or not held:
            return
        keeper.pass_on([(job.claim or 0, passing[job], job.over_at) for job in held])
        for job in held:
            self._withdraw(job)
            job.fail(Reject("it needs what is not here", requeue=True))  # the claim is gone: nothing is put back
        new = {passing[job] for job in held}
        self._known = sorted(new.union(self._known))
        if not new <= self._own:
            self._own |= new
            self._asks_at = 0.0

    def _is_here(self, job: Job) -> bool:
        """Whether a task still waits here: it was neither ended meanwhile, nor begun, nor handed back."""
        keeper = self._keeper
        if keeper is None or job.claim not in keeper.claims.held or job.replica is not None:
            return False
        if job.terminated or job.exceeded is not None:
            return False
        if job.withdrawn():
            job.stop_timers()
            self._withdraw(job)
            return False
        return True

    # -- Taking ------------------------------------------------------------------------------------------------------

    def look(self, needs: list[str]) -> None:
        """Once per second: take what there is a place for, pass on what waits in vain, say what nobody offers.

        Args:
            needs: What tasks need that were passed on.
        """
        self._pass_on()  # a connection that is lost takes what the event loop was asked for with it
        self._known = list(needs)
        self._taken_at = {need: at for need, at in self._taken_at.items() if need in needs}
        self._own.intersection_update(needs)
        self._unoffered.intersection_update(needs)
        if self._keeper is None or self._keeper.rests:
            return
        for group in self._beside.in_vain():
            for job in group.waiting:
                if group.need is not None and job.claim is not None and job not in self._passing:
                    self._pass(job, group.need)
        self._take()
        self._say_what_nobody_offers()

    def take_soon(self) -> None:
        """A place may have become free: take what needs it at the end of this turn of the event loop."""
        hub = self._replicas.hub
        if self._known and not self._taking and hub is not None:
            self._taking = True
            hub.call_later(0, self._take)

    def _take(self) -> None:
        self._taking = False
        if (keeper := self._keeper) is None or keeper.rests:
            return
        for need in sorted(self._known, key=lambda need: self._taken_at.get(need, 0.0)):
            resources = self._servable(need)
            room = 0 if resources is None else self._beside.room_for(need, resources)
            if room <= 0:
                continue
            if keeper.take(need, room):
                self._taken_at[need] = time.monotonic()
            elif need in self._known:
                self._known.remove(need)  # until the next look

    def _servable(self, need: str) -> Resources | None:
        """The resources that a need asks for, if this host has them."""
        resources = resources_of(need)
        return None if resources is None or lacking(resources, self._serving.host) else resources

    # -- Saying ------------------------------------------------------------------------------------------------------

    def _say_what_nobody_offers(self) -> None:
        """Warn once of each need that this worker has passed on and no live worker of the environment offers."""
        own = [need for need in self._own if self._servable(need) is None]
        if not own or time.monotonic() < self._asks_at or self._keeper is None:
            return
        offers = self._keeper.offers()
        if offers is None:
            return
        self._asks_at = time.monotonic() + self._serving.settings.lease_renewal
        name = self._serving.name
        for need in own:
            if offering(need, name, offers):
                self._unoffered.discard(need)
            elif need not in self._unoffered:
                self._unoffered.add(need)
                logger.warning(
                    "%s: tasks need %s, no worker of %r offers that: they wait until one joins.",
                    name,
                    in_words_of(need),
                    name,
                )

    def unmet(self) -> list[Unmet]:
        """What was passed on and waits, for `env status`."""
        keeper = self._keeper
        counts = None if keeper is None else keeper.passed_on()
        offers = None if keeper is None or not counts else keeper.offers()
        if not counts or offers is None:
            return []
        return unmet(counts, self._serving.name, offers, self._obstacle)

    def _obstacle(self, need: str) -> str:
        """Why this host, which has what is needed, has no place for it now; empty where it has not, or has one."""
        resources = self._servable(need)
        devices = self._beside.devices_for(resources)
        if devices is None or devices.free():
            return ""
        return devices.obstacle or ""


def _end_of(request: Mapping[str, Any]) -> float | None:
    """When a task is over that has not begun, in seconds since the epoch; None where it may wait for ever."""
    ends: list[float] = []
    match request.get(TIMES_HEADER):
        case {"until": int() | float() as until}:
            ends.append(float(until))
    if expires := request.get("expires"):
        try:
            when: Any = maybe_iso8601(expires)
            ends.append(float(maybe_make_aware(when).timestamp()))
        except (ValueError, TypeError, AttributeError, OverflowError):
            pass  # Celery has complained of it
    return min(ends, default=None)
