"""A small project with its own Redis database and its workers, watched from outside as an operator would."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from weakref import WeakSet

import pytest
from celery import Celery
from celery.result import AsyncResult

from tests.helpers.waiting import wait_until
from tests.helpers.workers import Worker, run_module, write_module

T = TypeVar("T")

#: Seconds for what takes fractions of a second, with room for a machine that does something else.
PATIENCE = 40.0


class Project:
    """A folder with modules, a Redis database, and the workers that a test has started on them.

    Its client knows the tasks by their names alone: it has imported nothing of the project.

    Args:
        folder: The project's directory.
        url: The Redis database that is its broker and its result backend.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.celery_app = Celery("client", broker=url, backend=url)
        self.workers: list[Worker] = []
        self._results: WeakSet[AsyncResult] = WeakSet()

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of every process of the project."""
        # A project is a host of its own: no other test has its devices.
        return {"FLYTE_CELERY_BROKER_URL": self.url, "FLYTE_CELERY_DEVICE_LOCKS": str(self.folder / "device-locks")}

    def write(self, source: str, name: str = "proj") -> Path:
        """Write a module; see `workers.write_module`."""
        return write_module(self.folder, source, name)

    @contextmanager
    def imported(self, name: str = "proj") -> Iterator[ModuleType]:
        """A module of the project, imported here as an application does, until the end of the block."""
        with pytest.MonkeyPatch.context() as patch:  # for the import alone: other tests are none of its business
            for variable, value in self.variables.items():
                patch.setenv(variable, value)
            alias = f"{self.folder.name}_{name}"
            spec = importlib.util.spec_from_file_location(alias, self.folder / f"{name}.py")
            assert spec is not None and spec.loader is not None
            module = sys.modules[alias] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        try:
            yield module
        finally:
            del sys.modules[alias]
            module.app.close()

    # -- Workers -----------------------------------------------------------------------------------------------------

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        ready: bool = True,
        app: str = "proj",
        command: str = "env worker",
    ) -> Worker:
        """Start `celery -A app env worker *arguments`, which begin with the environment's name, or another command."""
        line = ["-A", app, *command.split(), *arguments, "--loglevel", "INFO"]
        worker = Worker(self.folder, line, {**self.variables, **(env or {})}, name=f"worker-{len(self.workers) + 1}")
        self.workers.append(worker)
        if ready:
            worker.wait_ready()
        return worker

    def celery(
        self, *arguments: str, env: Mapping[str, str] | None = None, app: str = "proj", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `celery -A app *arguments` to its end."""
        variables = {**self.variables, **(env or {})}
        return run_module(self.folder, "celery", "-A", app, *arguments, env=variables, timeout=timeout)

    def close(self) -> None:
        """Kill every worker and let go of every connection."""
        for worker in self.workers:
            worker.destroy()
        for result in self._results:
            result.backend = None  # else its destructor talks to a Redis server that may be gone by then
        self.celery_app.close()

    # -- Tasks -------------------------------------------------------------------------------------------------------

    def send(self, task: str, *args: Any, **options: Any) -> AsyncResult:
        """Submit a task by its name, to the queue of its environment."""
        result = self.celery_app.send_task(task, args, queue=task.partition(".")[0], **options)
        self._results.add(result)
        return result

    def call(self, task: str, *args: Any) -> Any:
        """Submit a task by its name and wait for its value."""
        return self.send(task, *args).get(timeout=PATIENCE)

    def send_raw(self, queue: str, message: bytes | str | dict[str, Any]) -> None:
        """Put something into a queue that no client would send."""
        data = json.dumps(message) if isinstance(message, dict) else message
        with self.celery_app.connection_for_write() as connection:
            connection.default_channel.client.lpush(queue, data)

    def depth(self, queue: str) -> int:
        """Messages in a queue, without those that a worker has claimed."""
        with self.celery_app.connection_for_read() as connection:
            return int(connection.default_channel.client.llen(queue))

    # -- Status ------------------------------------------------------------------------------------------------------

    def ask(self, command: str, environment: str, **arguments: Any) -> Any:
        """Ask the one worker of an environment by remote control, until it answers."""

        def answer() -> list[Any]:
            replies = self.celery_app.control.broadcast(
                command, arguments=arguments, reply=True, timeout=2.0, limit=1, pattern=f"{environment}@*",
                matcher="glob",
            )  # fmt: skip
            return [value for reply in replies or () for value in reply.values()]

        return wait_until(answer, PATIENCE, f"an answer of {environment} to {command}")[0]

    def status(self, environment: str) -> dict[str, Any]:
        """What the environment's worker says about itself."""
        found: dict[str, Any] = self.ask("env_status", environment)
        return found

    def replicas(self, environment: str, *states: str) -> list[dict[str, Any]]:
        """The environment's replicas, oldest first, of all states or some."""
        return [each for each in self.status(environment)["replicas"] if not states or each["state"] in states]

    def pids(self, environment: str) -> list[int]:
        """Process ids of the replicas that take tasks, oldest first."""
        return [each["pid"] for each in self.replicas(environment, "ready")]

    def wait_for_replicas(self, environment: str, number: int, timeout: float = PATIENCE) -> list[int]:
        """Wait until exactly so many replicas exist, all of them ready; return their process ids, oldest first."""

        found: list[dict[str, Any]] = []

        def settled() -> bool:
            found[:] = self.replicas(environment)
            return len(found) == number and all(each["state"] == "ready" for each in found)

        self.wait(settled, timeout, f"{number} ready replicas of {environment}")
        return [each["pid"] for each in found]

    def wait(self, predicate: Callable[[], T], timeout: float = PATIENCE, description: str = "the condition") -> T:
        """`wait_until`, with the end of every worker's log in the message."""
        try:
            return wait_until(predicate, timeout, description)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *(worker.log_tail(30) for worker in self.workers)])) from None
