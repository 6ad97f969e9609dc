"""The pool of replicas behind a Celery worker: takes tasks from Celery's consumer, gives them to warm processes.

It lives on the worker's event loop (kombu's hub) and never blocks it. `supervisor` starts and ends processes, the
autoscaler says how many there should be, this module says which task goes to which replica: the oldest one with a
free slot, so that surplus replicas fall idle and can go.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.exceptions import Ignore, Reject
from celery.utils.log import get_logger

from ..errors import RuntimeSystemError
from ..fleet.storing import FENCE_FIELD, UNFENCED, Fence
from ..overrides import effective, replica_options
from ..supervisor.lifecycle import State, StopReason, Tick
from . import breaches
from .beside import ONE_CORE, Beside, CannotGive
from .bounds import share
from .devices import ReplicaDevices, failure_text
from .elsewhere import Elsewhere
from .failing import fail_or_retry
from .groups import Group, starts_of
from .job import Job, frame, guarded
from .keeper import OVERDUE_INTERVAL
from .limits import TimeLimits
from .losses import after_loss, after_uncounted_loss, given_up, last_chance, most_attempts, returned_too_often
from .outcome import report
from .provisions import CannotProvide
from .redelivery import MOST_RETURNS, Attempts, Redelivery, returns
from .replicas import Replica, Replicas
from .run_scope import RunScope, run_of
from .scaling import Scaling
from .serving import Serving
from .starving import Starving
from .stopping import Stopping
from .timeouts import Timeouts
from .untold import Untold
from .wakeup import SignalWakeup

logger = get_logger("flyte_celery.worker")

#: Seconds between two looks for workers whose lease is over; their tasks are back within the lease and two seconds.
REAP_INTERVAL = 1.0

#: Objects that may be made, and not freed, before the garbage collector looks for circles among them. Python's own
#: 700 are a few tasks' requests, which are in no circle and cost a quarter of the worker's time.
_GARBAGE_THRESHOLD = 20_000


def _calm_garbage_collector() -> None:
    """The modules of the application and of Celery stay; what comes and goes is looked at less often."""
    gc.freeze()
    gc.set_threshold(_GARBAGE_THRESHOLD, *gc.get_threshold()[1:])


class ReplicaPool(BasePool):
    """Celery's pool interface over warm replicas of one environment."""

    #: What to serve; each worker gets a subclass with its own (see `serving.prepare`).
    serving: ClassVar[Serving]
    #: Celery's semaphore would hold tasks back that this pool has to see to know the demand.
    uses_semaphore = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.jobs: dict[int, Job] = {}
        self._attempts = Attempts()
        self._redelivery = Redelivery()
        self._numbers = itertools.count(1)
        self.group = self._own_group()
        self.replicas = Replicas(self.serving, self)
        self.stopping = Stopping(self, self.serving.grace)
        self.run_scope = RunScope(self.replicas, self.serving.roots)
        self.scaling = Scaling(self.serving, self.group, self.replicas, self.run_scope, self)
        self.beside = Beside(self.serving, self.group, self.replicas, self.scaling)
        self.elsewhere = Elsewhere(self.serving, self.beside, self.replicas, self._withdraw)
        self.starving = Starving(self.serving, self.group, self._withdraw)
        self._untold = Untold(self._redis_answers)
        self._limits = TimeLimits(self.replicas, self.serving.settings.cancel_patience)
        self._timeouts = Timeouts(self.replicas, self._limits, self._withdraw)
        #: Called when demand may have changed; the autoscaler sets it.
        self.on_change: Callable[[], None] = lambda: None
        #: Called once per interval; the autoscaler sets it.
        self.on_tick: Callable[[], None] = lambda: None
        self._tasks = self.serving.environment.tasks
        self._async_names = {task.name for task in self._tasks.values() if task.is_async}
        self._wakeup = SignalWakeup()
        self._considering = False
        #: Running average of task durations in seconds, None before the first.
        self.mean_duration: float | None = None

    def _own_group(self) -> Group:
        serving = self.serving
        return Group(
            name=serving.name,
            limits=serving.limits,
            starts=starts_of(serving.settings),
            max_tasks=serving.max_tasks,
            confinement=serving.confinement,
            share=share(serving.environment.resources, 0.0 if serving.environment.reusable else ONE_CORE),
            devices=None if serving.devices is None else ReplicaDevices(serving.devices, serving.plan.hostname),
        )

    # -- Celery's side -----------------------------------------------------------------------------------------------

    def on_start(self) -> None:
        """Start the launcher: it imports the application while the worker connects to its broker."""
        self.replicas.launch()
        _calm_garbage_collector()

    def register_with_event_loop(self, loop: Any) -> None:
        """Watch every socket; Celery calls this again whenever it has replaced its connection and its poller."""
        self.replicas.hub = loop
        self.watch_again()
        if (keeper := self.serving.keeper) is not None:
            keeper.hub = loop
            keeper.on_lease_lost = self.renew
            keeper.on_proof = self.replicas.keep_until
            self.replicas.keep_until(keeper.safe_until)  # proven before anybody listened
            keeper.count_suspended = lambda: self.set_aside
            keeper.on_needs = self.elsewhere.look
            keeper.on_delivered = self.dispatch
            # Celery has forgotten what it had scheduled or limited before it lost its connection; what is here stays.
            keeper.hand_back_now()
        elif self.serving.redelivers:
            self._expect_everything_again()
        self.start_timers(loop)
        self.on_change()

    def start_timers(self, hub: Any) -> list[Any]:
        """Begin what happens again and again; Celery cancels it with each connection. Returns kombu's entries."""
        timers = [hub.call_repeatedly(self.serving.settings.autoscale_interval, self.tick)]
        if (keeper := self.serving.keeper) is not None:
            hub.call_soon(self.renew)  # the last renewal may be longer ago than a lease allows
            renewal = self.serving.settings.lease_renewal
            timers += [
                hub.call_repeatedly(renewal, self.renew),
                hub.call_repeatedly(min(REAP_INTERVAL, renewal), keeper.reap),
                hub.call_repeatedly(OVERDUE_INTERVAL, keeper.look_for_overdue),
            ]
        return timers

    def watch_again(self) -> None:
        """Watch every socket after Celery has emptied its event loop: it does when a connection is lost."""
        if (hub := self.replicas.hub) is not None:
            self.replicas.watch(hub)
            self._wakeup.watch(hub)

    def on_apply(  # pyright: ignore[reportIncompatibleMethodOverride]  # Celery's base class does nothing here
        self,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        accept_callback: Callable[[int, float], Any],
        callback: Callable[[Any], Any],
        error_callback: Callable[[ExceptionInfo], Any],
        timeout_callback: Callable[[bool, float], Any],
        soft_timeout: float | None = None,
        timeout: float | None = None,
        correlation_id: str = "",
        **_: Any,
    ) -> Job:
        """Take a task. `target` is Celery's tracer, which the replica calls itself."""
        number = next(self._numbers)
        keeper = self.serving.keeper
        claim = None if keeper is None else int(args[2]["properties"]["delivery_tag"])
        task = None if (known := self._tasks.get(args[0])) is None else effective(known, args[2])
        fence = self.guard(args[2]["properties"], args[0])
        group, need = self.group, None
        refusal: Exception | None = self.starving.error_of(correlation_id)
        try:
            group = self.beside.group_for(task, replica_options(args[2]))
        except CannotProvide as exc:
            refusal = RuntimeSystemError("SecretMissing", str(exc))
        except CannotGive as exc:
            refusal, need = refusal or self.elsewhere.refusal(exc), exc.need
        job = Job(
            group=group,
            number=number,
            task_name=args[0],
            task_id=correlation_id,
            frame=frame(number, args, fence),
            on_accepted=guarded(accept_callback),
            on_done=guarded(callback),
            on_error=guarded(error_callback, lambda: self._unrecorded(claim)),
            on_timeout=guarded(timeout_callback, discarded=lambda: self._unrecorded(claim)),
            soft_limit=soft_timeout,
            hard_limit=timeout,
            on_loop=args[0] in self._async_names,
            terminator=self._limits.terminate,
            tell=self._untold.tell,
            arrived_at=time.monotonic(),
            claim=claim,
            fence=fence,
            retries=args[2].get("retries") or 0,
            task=task,
            need=need,
        )
        if group.by_run:
            job.run = run_of(args[2], correlation_id)
        if (running := self._redelivery.claim(job, args[2])) is not None:
            self._go_on(running, job)
            return running
        if self._admitted(job, args[2]):
            if refusal is not None:
                job.fail(refusal)
                return job
            self.jobs[number] = job
            if not self.elsewhere.passes_on(job, args[2]):
                job.group.waiting.add(job)
            if keeper is None or not keeper.delivering:
                self.dispatch()
        return job

    def _admitted(self, job: Job, request: Mapping[str, Any]) -> bool:
        """Whether a task may wait for a replica; one that may not has its outcome when this returns."""
        keeper = self.serving.keeper
        claim = None if keeper is None or job.claim is None else keeper.taken(job.claim)
        if keeper is not None and claim is None:  # it was scheduled for later in a life that has lost its lease
            job.fail(Ignore())
            return False
        if self.stopping.begun:  # its time has come while running tasks are waited for
            self.hand_back(job)
            return False
        if job.need is None and self._hopeless(job.group):
            self._fail(job)
            return False
        most = most_attempts(self.serving.environment, job)
        if keeper is None:
            if returns(request) >= MOST_RETURNS:
                job.fail(returned_too_often(job, MOST_RETURNS))
                return False
            job.alone = last_chance(self._attempts.lost(job), most)
        elif claim is not None and claim.attempts:
            job.alone = last_chance(claim.attempts, most)
            if (failure := given_up(job, most, keeper)) is not None:
                job.fail(failure)
                return False
        return self._timeouts.came(job, request)

    def guard(self, properties: dict[str, Any], task_name: str) -> tuple[str, str]:
        """Guard what this process records of a task, see `fleet.storing`.

        Args:
            properties: Those of the task's message, which its request has.
            task_name: The task's name.

        Returns:
            What the end of the task is guarded with.
        """
        keeper = self.serving.keeper
        if keeper is None or not self.serving.fenced:
            return UNFENCED
        member, number = keeper.claims.fence(int(properties["delivery_tag"]))
        # Celery's own tasks (`celery.starmap`) and others that are routed here are acknowledged when they begin.
        fence = Fence(member, number if task_name in self.serving.environment.tasks else "")
        properties[FENCE_FIELD] = fence
        return fence.pair

    def _expect_everything_again(self) -> None:
        """There is a new connection, if not the first: what waits comes again with it, and so does what runs."""
        for job in self._clear_waiting():
            job.stop_timers()
            del self.jobs[job.number]
        self._redelivery.expect(self.jobs.values())

    @property
    def groups(self) -> list[Group]:
        """The environment's own replicas, and what there is beside them."""
        return [self.group, *self.beside]

    def _clear_waiting(self) -> list[Job]:
        return [job for group in self.groups for job in group.waiting.clear()]

    @property
    def waiting(self) -> int:
        """Tasks that no replica has."""
        return sum(len(group.waiting) for group in self.groups)

    def _go_on(self, running: Job, again: Job) -> None:
        """The message of a task that runs here, or has ended here, was delivered again."""
        running.answer_to(again)
        if running.outcome is not None:
            report(running, running.outcome, ending=self.stopping.ending)
        elif running.accepted_at is not None and (replica := self._limits.owner(running)) is not None:
            running.on_accepted(replica.pid, running.accepted_at)

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Nothing: a replica runs many tasks, so none is ended by its process id.

        Celery's `Request.terminate` calls this and then `Job.terminate`, which ends the one task.
        """

    def on_close(self) -> None:
        """The worker stops: take nothing more, and give back at once what no replica has begun."""
        self.stopping.begin()

    def on_stop(self) -> None:
        """Let running tasks finish for the grace period, then hand back what is left and end every replica."""
        self.stopping.finish()

    def on_terminate(self) -> None:
        """The worker stops at once."""
        self.stopping.at_once()

    def grow(self, n: int = 1) -> None:
        """Celery's `pool_grow` acts on the autoscaler's bounds instead, see `control`."""
        raise NotImplementedError("Scale the environment instead: `celery control autoscale MAX MIN`.")

    shrink = grow

    @property
    def num_processes(self) -> int:
        """Replicas that run or start."""
        return self.replicas.live()

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "implementation": f"{ReplicaPool.__module__}:{ReplicaPool.__name__}",
            "max-concurrency": self.serving.capacity,
            "processes": [replica.pid for replica in self.replicas if replica.pid],
            "environment": self.serving.name,
        }

    # -- Dispatch ----------------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Give waiting tasks to replicas with free slots, then tell the autoscaler."""
        self.replicas.resume()
        for group in self.groups:
            self._dispatch(group)
        self._consider_beside()
        self.on_change()

    def _dispatch(self, group: Group) -> None:
        while (next_up := group.waiting.next(self.replicas, group)) is not None:
            job, replica = next_up
            if job.withdrawn():
                job.stop_timers()
                del self.jobs[job.number]
                continue
            if group.by_run:
                self.run_scope.bind(replica, job)
            if job.claim is not None and self.serving.keeper is not None:
                self.serving.keeper.sent(job.claim, job.task_id)
            self.replicas.give(replica, job)

    def _consider_beside(self) -> None:
        """Once per turn of the event loop, if there is anything beside the environment's own replicas."""
        hub = self.replicas.hub
        if hub is not None and not self._considering and any(True for _ in self.beside):
            self._considering = True
            hub.call_soon(self._consider_now)

    def _consider_now(self) -> None:
        self._considering = False
        self.beside.consider()

    def accepted(self, replica: Replica, number: int, at: float) -> None:
        """A replica has begun a task."""
        job = self.jobs.get(number)
        if job is None:
            return
        job.accepted_at = at
        if job.claim is not None and self.serving.keeper is not None:
            self.serving.keeper.begun(job.claim)
        job.on_accepted(replica.pid, at)
        self._limits.begin(job)
        self._timeouts.begun(job)

    def done(self, replica: Replica, number: int, outcome: tuple[Any, ...]) -> None:
        """A replica has ended a task and stored its result."""
        job = self.jobs.pop(number, None)
        self.replicas.release(replica, number)
        if job is not None:
            if replica.lease is not None and not job.waited and (error := failure_text(outcome)):
                self.replicas.blame_device(replica, error)
            job.stop_timers()
            if job.accepted_at is not None:
                self._learn(time.monotonic() - job.accepted_at)
            self._attempts.ended(job)
            self._redelivery.ended(job, outcome)
            if job.group.by_run:
                self.run_scope.ended(job, outcome)
            report(job, outcome, ending=self.stopping.ending)
            if job.group.need is not None:
                self.elsewhere.take_soon()

    def settled(self) -> None:
        """All is read that a replica had to say."""
        self.dispatch()

    def _learn(self, seconds: float) -> None:
        mean = self.mean_duration
        self.mean_duration = seconds if mean is None else mean + (seconds - mean) / 16

    # -- What goes wrong ---------------------------------------------------------------------------------------------

    def lost(self, replica: Replica, cause: str) -> None:
        """A replica has ended with tasks: those that it had not begun run elsewhere, the others were lost."""
        unstarted = [job for job in reversed(replica.jobs.values()) if job.accepted_at is None]
        begun = [job for job in replica.jobs.values() if job.accepted_at is not None]
        suspects = breaches.suspects(replica)
        again = breaches.not_at_fault(replica) if not self.stopping.ending else []
        replica.jobs.clear()
        replica.suspended.clear()
        replica.resuming.clear()
        for job in unstarted:
            job.replica = None
            job.group.waiting.put_back([job])
        for job in begun:
            if job in again:
                self._start_over(job, alone=job in suspects)
                continue
            del self.jobs[job.number]
            job.stop_timers()
            self._redelivery.forget(job)
            if job.terminated or self.stopping.ending:
                continue
            if replica.breach is not None:
                fail_or_retry(job, breaches.failure(job, replica.breach, self.serving.plan.hostname))
            elif replica.child.reason is StopReason.TERMINATED:
                self._run_again(job, cause)
            else:
                self._lost_while_running(job, cause)
        if self.stopping.begun:
            self.hand_back(*unstarted, *again)

    def _start_over(self, job: Job, *, alone: bool) -> None:
        """A task whose replica has used more than it may, not by the task's fault, or nobody knows."""
        job.stop_timers()
        job.replica = job.accepted_at = None
        if job.claim is not None and self.serving.keeper is not None:
            self.serving.keeper.forgive(job.claim)
        if alone:
            job.group = self.beside.alone(job.group)
        job.group.waiting.put_back([job])

    def _lost_while_running(self, job: Job, cause: str) -> None:
        """Give the task back to the queue, to be run again; a task that was lost too often fails instead."""
        keeper, most = self.serving.keeper, most_attempts(self.serving.environment, job)
        if keeper is not None:
            job.fail(lambda: after_loss(job, cause, most, keeper))
            return
        attempts = self._attempts.count_lost(job)
        if attempts >= most:
            self._attempts.ended(job)
        job.fail(after_uncounted_loss(job, cause, attempts, most, self.serving.plan.hostname))

    def _run_again(self, job: Job, cause: str) -> None:
        """Give the task back to the queue; that its neighbour's replica had to end is no attempt of its own."""
        if job.claim is not None and self.serving.keeper is not None:
            self.serving.keeper.forgive(job.claim)
        job.fail(Reject(cause, requeue=True))

    def _withdraw(self, job: Job) -> None:
        """A task waits no longer."""
        self.jobs.pop(job.number, None)
        if job in job.group.waiting:
            job.group.waiting.remove(job)

    def _redis_answers(self) -> bool:
        keeper = self.serving.keeper
        return keeper is None or keeper.answers()

    def _unrecorded(self, claim: int | None) -> None:
        """A task's failure could not be stored: unless it is done it runs again, or its caller would wait for ever."""
        if claim is not None and self.serving.keeper is not None:
            self.serving.keeper.hand_back([claim])

    def slots_changed(self) -> None:
        """A task gives its slot away while it waits for its children, or asks for one."""
        self.run_scope.keep_parents(self.groups)
        self.dispatch()

    @property
    def suspended(self) -> int:
        """Tasks that wait for their children."""
        return sum(len(replica.suspended) for replica in self.replicas)

    @property
    def set_aside(self) -> int:
        """Claims in whose place others may be claimed: parents that wait, and what cannot have a replica."""
        blocked = sum(self.run_scope.set_aside(group) for group in self.groups if group.by_run)
        return self.suspended + self.beside.claimed + blocked

    def starts_changed(self) -> None:
        """A replica became ready or failed to: the environment may be failed now."""
        for group in self.groups:
            if self._hopeless(group):
                for job in group.waiting.clear():
                    self._fail(job)
        self.elsewhere.take_soon()
        self.dispatch()

    def _hopeless(self, group: Group) -> bool:
        """Whether a task that comes now is failed at once; the first one after a back-off waits for the attempt."""
        if not group.starts.failed or self.replicas.count(State.READY, group=group):
            return False
        return bool(self.replicas.count(State.STARTING, group=group)) or time.monotonic() < group.starts.not_before

    def _fail(self, job: Job) -> None:
        self.jobs.pop(job.number, None)
        starts = job.group.starts
        beside = "" if job.group is self.group else f" for calls with the override {job.group.name}"
        job.fail(
            RuntimeSystemError(
                "EnvironmentFailed",
                f"The environment {self.serving.name!r} cannot start replicas{beside} ({starts.failures} attempts "
                f"failed): {starts.error}. Its worker keeps trying; the full traceback is in the worker's log.",
            )
        )

    def hand_back(self, *jobs: Job) -> None:
        """Put tasks that have not ended, or not begun, back into the queue, in their order: they are run elsewhere."""
        if self.serving.keeper is not None:  # all at once: what Celery rejects goes back one by one
            self.serving.keeper.hand_back([job.claim for job in jobs if job.claim is not None and not job.terminated])
        for job in jobs:
            self.jobs.pop(job.number, None)
            if job in job.group.waiting:
                job.group.waiting.remove(job)
            if not job.terminated:
                job.terminated = True
                job.fail(Reject("it is run elsewhere", requeue=True))

    # -- Once per interval -------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Once per interval: notice what did not happen in time."""
        for replica in list(self.replicas):
            self.replicas.step(replica, Tick())
            self.retire_if_due(replica)
        self.run_scope.let_go(self.groups)
        self._consider_beside()
        self.replicas.watch_devices()
        self.on_tick()

    def renew(self) -> None:
        """Renew the worker's lease; end what runs here when it was lost."""
        keeper = self.serving.keeper
        assert keeper is not None
        if not keeper.renew():
            self.abandon()
        self._untold.tell_all()

    def abandon(self) -> None:
        """The lease was lost: whatever runs here runs elsewhere too, or soon will; end it without a word."""
        for job in list(self.jobs.values()):
            job.terminated = True
            job.stop_timers()
            del self.jobs[job.number]
        self._clear_waiting()
        for replica in self.replicas.in_state(State.READY, State.DRAINING):
            if replica.jobs:
                replica.jobs.clear()  # when it is gone, nothing of it is to be run again here
                self.replicas.kill(replica, StopReason.LEASE_LOST)

    # -- Recycling ---------------------------------------------------------------------------------------------------

    def used(self, replica: Replica) -> None:
        """What a replica uses has changed."""
        self.retire_if_due(replica)

    def retire_if_due(self, replica: Replica) -> None:
        """Have a replica replaced that has lived long enough: it works on until another one is ready."""
        if self.stopping.begun:
            return
        if self.replicas.retire_if_due(replica):
            self.on_change()
            self._consider_beside()
