"""A replica: one warm process that runs tasks until it is told to stop.

It is a fork of the launcher (`preload`), or for device environments a fresh interpreter (`python -m` this module).
Its one event loop lives as long as the process, so whatever a task or a start-up hook opens on it stays valid. Where
the environment has sync tasks the loop has a thread of its own and sync bodies get the main thread; otherwise the
loop runs on the main thread.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

from celery import signals
from celery.app.trace import build_tracer, setup_worker_optimizations
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger

from .. import context, overrun, redaction
from ..environment import Hook, TaskEnvironment, environments
from ..errors import TaskTimeoutError, raised
from ..supervisor.confinement import enter
from ..supervisor.wire import Line
from ..suspension import set_suspender
from . import bridge, wire
from .circles import CircleWatch
from .execute import LoopJob, MainThread, SyncJob, install_soft_timeout_signal, keep_secrets
from .loading import load
from .outbox import Outbox
from .plan import ReplicaPlan
from .suspended import Suspended

logger = get_logger("flyte_celery.replica")

#: Exit code of a replica whose start-up failed; it has told the worker why.
EXIT_START_FAILED = 3


def run(sock: socket.socket, plan: ReplicaPlan, app: Any, number: int) -> int:
    """The whole life of a replica's process.

    Returns:
        The exit code.
    """
    # Celery's log format shows it: which replica says something.
    multiprocessing.current_process().name = f"{plan.environment}-{number}"
    _initialise(plan, app)
    environment = environments()[plan.environment]
    replica = Replica(sock, plan, app, number, environment)
    if all(task.is_async for task in environment.tasks.values()):
        return _run(replica)
    replica.main_thread = main_thread = MainThread()
    codes: list[int] = []

    def serve() -> None:
        try:
            codes.append(_run(replica))
        finally:
            main_thread.close()

    loop_thread = threading.Thread(target=serve, name="flyte-celery-loop", daemon=True)
    loop_thread.start()
    main_thread.run_until_closed()
    loop_thread.join()
    return codes[0] if codes else 1


def leave(code: int) -> NoReturn:
    """End this process without the exit handlers that it inherited from the launcher."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(replica: Replica) -> int:
    with asyncio.Runner(loop_factory=bridge.Loop) as runner:
        return runner.run(replica.serve())


def _initialise(plan: ReplicaPlan, app: Any) -> None:
    """What Celery's own pool does in each of its processes, so that signals, logging and tracing are the same."""
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    install_soft_timeout_signal()
    app.loader.init_worker_process()
    log = plan.logging
    app.log.already_setup = False
    app.log.setup(log.level, log.file, log.redirect_stdouts, log.redirect_level, log.colorize, hostname=plan.hostname)
    setup_worker_optimizations(app, plan.hostname)
    context.set_coroutine_runner(bridge.wait)
    for task in environments()[plan.environment].tasks.values():
        _build_tracer(plan, app, task.name)
    signals.worker_process_init.send(sender=plan.hostname)


def _build_tracer(plan: ReplicaPlan, app: Any, name: str) -> None:
    task = app.tasks[name]
    keep_secrets(task)
    task.__trace__ = build_tracer(name, task, app.loader, plan.hostname, app=app)


class Replica:
    """The replica's end of its conversation with the worker, on the event loop."""

    def __init__(
        self, sock: socket.socket, plan: ReplicaPlan, app: Any, number: int, environment: TaskEnvironment
    ) -> None:
        self.line = Line(sock)
        self.plan = plan
        self.app = app
        self.number = number
        self.environment = environment
        self.main_thread: MainThread | None = None
        self.jobs: dict[int, LoopJob | SyncJob] = {}
        self._suspended = Suspended(self._tell, plan.max_suspended)
        self._suspended.on_wait = CircleWatch(self._suspended, app.backend).begin
        set_suspender(self._suspended)
        #: The task that the main thread has.
        self._on_main: int | None = None
        self._async_names = {task.name for task in environment.tasks.values() if task.is_async}
        self._outbox: Outbox
        self._loop: asyncio.AbstractEventLoop
        self._stopped: asyncio.Future[None]

    async def serve(self) -> int:
        """Start up, run tasks until told to stop, shut down."""
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self.line, self._loop)
        self._stopped = self._loop.create_future()
        self._loop.add_reader(self.line.fileno(), self._on_readable)
        started = time.monotonic()
        try:
            for hook in self.environment.startup_hooks:
                await self._run_hook(hook, self.plan.startup_timeout)
        except BaseException as exc:
            logger.error("%s: replica %d: start-up failed", self.plan.environment, self.number, exc_info=True)
            self._outbox.send((wire.START_FAILED, _describe_failure(exc)))
            self._outbox.finish()
            return EXIT_START_FAILED
        self._outbox.send((wire.READY, time.monotonic() - started))
        await self._stopped
        for hook in self.environment.shutdown_hooks:
            try:
                await self._run_hook(hook, None)
            except Exception:
                logger.error("%s: replica %d: shutdown hook failed", self.plan.environment, self.number, exc_info=True)
        signals.worker_process_shutdown.send(sender=self.plan.hostname, pid=os.getpid(), exitcode=0)
        return 0

    async def _run_hook(self, hook: Hook, patience: float | None) -> None:
        seconds = patience if hook.timeout is None else hook.timeout.total_seconds()
        try:
            async with asyncio.timeout(seconds):
                if asyncio.iscoroutinefunction(hook.func):
                    await hook.func()
                elif self.main_thread is not None:
                    await self.main_thread.call(hook.func)
                else:
                    await asyncio.to_thread(hook.func)
        except TimeoutError as exc:
            name = getattr(hook.func, "__qualname__", repr(hook.func))
            raise TimeoutError(
                f"the hook {name!r} did not finish within {seconds:g} s; give it more with @env.on_startup(timeout=...)"
            ) from exc

    def _on_readable(self) -> None:
        messages, closed = self.line.receive()
        begun: list[LoopJob] = []
        for message in messages:
            match message:
                case (wire.RUN, number, *args):
                    self._begin(number, tuple(args), begun)
                case (wire.CANCEL, number, soft):
                    job = self.jobs.get(number)
                    if job is not None and (soft is not None or not self._suspended.cancel(number)):
                        job.cancel(soft)
                case (wire.EXCEEDED, number, code, message):
                    if (job := self.jobs.get(number)) is not None:
                        self._exceeded(number, job, code, message)
                case (wire.GO, number):
                    self._suspended.granted(number)
                case (wire.STOP,):
                    self._stopped.set_result(None)
        # Before a body can run: one that takes the process with it must be known to have begun.
        self._outbox.flush()
        for loop_job in begun:
            loop_job.start(self._loop)
        if closed:
            # The worker is gone, and with it the right to go on with its tasks.
            os._exit(1)

    def _exceeded(self, number: int, job: LoopJob | SyncJob, code: str, message: str) -> None:
        error = raised("user", code, message)
        assert isinstance(error, TaskTimeoutError)
        in_body = overrun.note(job.task_id, error)
        if in_body and not self._suspended.cancel(number, SoftTimeLimitExceeded):
            job.interrupt()

    def _begin(self, number: int, args: tuple[Any, ...], begun: list[LoopJob]) -> None:
        """A task has come. One of the event loop is added to `begun`, to be started when the worker knows of it."""
        self._suspended.begun(args[1], number)
        if args[0] in self._async_names:
            loop_job = self.jobs[number] = LoopJob(number, args, self._tell)
            loop_job.accept()
            begun.append(loop_job)
            return
        if self.app.tasks[args[0]].__trace__ is None:  # not of this environment: Celery's own, or routed here
            _build_tracer(self.plan, self.app, args[0])
        job = self.jobs[number] = SyncJob(number, args, self._tell)
        if self.main_thread is not None and self._on_main is None:
            self._on_main = number
            self.main_thread.submit(job.run)
        else:
            # The task on the main thread waits for its children, and nothing of its thread may be touched: database
            # connections, an open transaction. Or the main thread is the loop's, and a plain task was routed here.
            threading.Thread(target=job.run, name=f"flyte-celery-task-{number}", daemon=True).start()

    def _tell(self, message: tuple[Any, ...]) -> None:
        if message[0] == wire.DONE:
            if (job := self.jobs.pop(message[1], None)) is not None:
                overrun.forget(job.task_id)
            self._suspended.ended(message[1])
            if self._on_main == message[1]:
                self._on_main = None
        self._outbox.send(message)


def _describe_failure(exc: BaseException) -> str:
    return redaction.current().text("".join(traceback.format_exception_only(exc)).strip())


def _main() -> None:
    """Entry of a fresh interpreter: the plan comes on standard input, the worker's socket is inherited.

    So are the locks on its devices, which stay with this process and its forks, and go to no other program.
    """
    for file in sys.argv[2:]:
        os.set_inheritable(int(file), False)
    plan, number, begin = pickle.loads(sys.stdin.buffer.read())
    enter(*begin)
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        leave(run(sock, plan, load(plan.application, plan.secrets), number))
    except BaseException as exc:
        print(redaction.current().text(traceback.format_exc()), file=sys.stderr)
        line = Line(sock)
        sock.setblocking(True)
        line.send((wire.START_FAILED, _describe_failure(exc)))
        leave(EXIT_START_FAILED)


if __name__ == "__main__":
    _main()
