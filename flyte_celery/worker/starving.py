"""Fails calls that would wait for ever for devices which the tasks that wait for them have, see `fleet.starving`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import redis
from celery.utils.log import get_logger
from celery.worker import state as worker_state

from ..environment import TaskEnvironment
from ..errors import StarvationError
from ..fleet.messages import headers_of
from ..fleet.needs import in_words_of, resources_of
from ..fleet.starving import Call, never_ending, starved_by
from ..fleet.waits import LEASE
from ..gpu.host import Host, in_words, lacking, missing
from ..names import CHAIN_HEADER
from ..overrides import replica_options
from ..resources import Resources
from .groups import Group
from .job import Job
from .serving import Serving

logger = get_logger("flyte_celery.worker")

#: Seconds between two looks.
LOOK_EVERY = 1.0

#: Seconds after which another worker looks at what was passed on, when the one that did has ended.
TURN = 3.0

#: Calls that are looked at, the first ones of each kind: as many as a noted wait may be for, see `replica.circles`.
LOOKED_AT = 100


class Starving:
    """What one worker sees of such calls of its environment.

    Args:
        serving: What the worker serves.
        group: The environment's own replicas.
        withdraw: Takes a task that waits for a replica from the pool.
    """

    def __init__(self, serving: Serving, group: Group, withdraw: Callable[[Job], None]) -> None:
        self._serving = serving
        self._group = group
        self._withdraw = withdraw
        self._looked_at = 0.0
        #: Since when calls are known to wait for ever, in monotonic seconds.
        self._since: dict[str, float] = {}
        #: What calls fail with that are to be claimed for it.
        self._errors: dict[str, StarvationError] = {}

    def error_of(self, task_id: str) -> StarvationError | None:
        """What a task fails with that has come; None for one that may wait."""
        return self._errors.pop(task_id, None)

    def look(self, live: int) -> None:
        """Look for such calls, and fail those that have stood for a while.

        Args:
            live: Replicas of the environment, of all workers, that take tasks, or will.
        """
        keeper, now = self._serving.keeper, time.monotonic()
        if keeper is None or keeper.away or not self._serving.fenced or now - self._looked_at < LOOK_EVERY:
            return
        self._looked_at = now
        needs = keeper.claims.needs
        here = {job.task_id: job for job in self._stuck_here(live)}
        if not needs and not here:
            self._since, self._errors = {}, {}
            return
        try:
            offers = keeper.offers() or []
            if not any(offer.get("waits") for offer in offers):  # nobody keeps a device while it waits
                self._since, self._errors = {}, {}
                return
            if needs and not keeper.keeps_turn("starving", TURN):
                needs = []
            calls = {call.task_id: call for call in [*self._queued(here), *self._passed_on(needs)]}
            found = self._never_ending(calls, offers)
            self._since = {task_id: self._since.get(task_id, now) for task_id in found}
            standing = [task_id for task_id, since in self._since.items() if now - since > LEASE]
            self._errors = {task_id: self._error(calls[task_id], found[task_id]) for task_id in standing}
            for job in [here[task_id] for task_id in standing if task_id in here]:
                self._withdraw(job)
                job.fail(self._errors.pop(job.task_id))
            if passed_on := [task_id for task_id in self._errors if calls[task_id].need is not None]:
                keeper.needs.end(passed_on)
                keeper.take("", len(passed_on))
        except redis.RedisError as exc:
            logger.warning("Calls that wait for ever cannot be looked for: %s", exc)

    def _stuck_here(self, live: int) -> Iterator[Job]:
        """Tasks that no replica of the environment can be had for, as far as devices go."""
        group = self._group
        if group.devices is None or not group.waiting or group.devices.free() or (live and not group.ephemeral):
            return
        for count, job in enumerate(group.waiting):
            if count == LOOKED_AT:
                return
            if job.claim is not None and not job.terminated and job.exceeded is None:
                yield job

    def _queued(self, here: Mapping[str, Job]) -> Iterator[Call]:
        """What waits for a replica of the environment, here or in the queue; what is not here fails when it comes."""
        keeper, environment = self._serving.keeper, self._serving.environment
        if keeper is None or not here:
            return
        requests = [worker_state.requests.get(task_id) for task_id in here]
        queued = [headers_of(message) for message in keeper.claims.first_in_queue(LOOKED_AT)]
        for headers in [*(request.request_dict for request in requests if request is not None), *queued]:
            if replica_options(headers) is None and (chain := _chain(headers)):
                yield Call(str(headers.get("id")), chain, environment.name, partial(_has_all, environment))

    def _passed_on(self, needs: list[str]) -> Iterator[Call]:
        keeper = self._serving.keeper
        if keeper is None:
            return
        for need in needs:
            resources = resources_of(need)
            for headers in map(headers_of, keeper.needs.first(need, LOOKED_AT)):
                if resources is not None and (chain := _chain(headers)):
                    yield Call(str(headers.get("id")), chain, self._serving.name, partial(_has, resources), need)

    def _never_ending(self, calls: dict[str, Call], offers: list[dict[str, Any]]) -> dict[str, list[str]]:
        """The calls that wait for ever, each with the ancestors that have the devices."""
        keeper = self._serving.keeper
        if keeper is None:
            return {}
        holders = {task_id: by for task_id, call in calls.items() if (by := starved_by(call, offers))}
        asked = sorted({ancestor for task_id in holders for ancestor in calls[task_id].ancestors})
        awaited = keeper.waits.awaited(asked) if asked else {}
        certain = never_ending({task_id: calls[task_id] for task_id in holders}, holders, awaited)
        return {task_id: holders[task_id] for task_id in sorted(certain)}

    def _error(self, call: Call, holders: list[str]) -> StarvationError:
        resources = self._serving.environment.resources
        words = in_words_of(call.need) if call.need is not None else in_words(resources or Resources())
        keep = [each for each, task_id in zip(call.chain, call.ancestors, strict=True) if task_id in holders]
        return StarvationError(
            f"{' > '.join(call.chain)} > {call.task_id} would wait for ever: the last one needs {words}, and no worker "
            f"of {call.environment!r} has that but for what the replica of {' and of '.join(keep)} keeps, which waits "
            "for it. Give the task that waits no device, or the fleet another one."
        )


def _chain(headers: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(map(str, headers.get(CHAIN_HEADER) or ()))


def _has_all(environment: TaskEnvironment, host: Host) -> bool:
    return not missing(environment, host)


def _has(resources: Resources, host: Host) -> bool:
    return not lacking(resources, host)
