"""System tests run real workers on a real Redis server; each has a project folder and workers of its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

from tests.helpers.projects import Project
from tests.helpers.redis_server import RedisServer
from tests.helpers.workers import Worker, write_module

_FOLDER = Path(__file__).parent

#: Set on a test whose body failed, so that its fixtures show what the workers said.
_FAILED = pytest.StashKey[bool]()


class StartWorker(Protocol):
    """What the fixture `start_worker` gives."""

    def __call__(
        self,
        *arguments: str,
        app: str = "proj",
        command: str = "worker",
        env: Mapping[str, str] | None = None,
        ready: bool = True,
    ) -> Worker:
        """Start `celery -A app worker --loglevel INFO *arguments` in the project's folder.

        Args:
            arguments: What follows on the command line, as in `"-Q", "env"`.
            app: The module of the project that holds the Celery app.
            command: Celery's command, as in `"env worker"`.
            env: Environment variables besides those of the test run.
            ready: Whether to wait until it consumes; say no for a worker that is expected to end.
        """
        ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder `system`."""
    for item in items:
        if _FOLDER in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note whether the test failed before its fixtures are torn down."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Path]:
    """Write a module into the test's project folder: `project(source, name="proj")`."""

    def write(source: str, name: str = "proj") -> Path:
        return write_module(tmp_path, source, name)

    return write


@pytest.fixture
def start_worker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StartWorker]:
    """Start workers that end with the test; when it failed, the ends of their logs are printed."""
    workers: list[Worker] = []

    def start(
        *arguments: str,
        app: str = "proj",
        command: str = "worker",
        env: Mapping[str, str] | None = None,
        ready: bool = True,
    ) -> Worker:
        # Celery says at INFO that it is ready; a level among the arguments comes later and wins.
        line = ["-A", app, *command.split(), "--loglevel", "INFO", *arguments]
        worker = Worker(tmp_path, line, env, name=f"worker-{len(workers) + 1}")
        workers.append(worker)
        if ready:
            worker.wait_ready()
        return worker

    yield start
    for worker in workers:
        worker.destroy()
        if request.node.stash.get(_FAILED, False):
            print(worker.log_tail())


@pytest.fixture
def alone(redis_url: str, tmp_path: Path) -> Iterator[Project]:
    """An empty project for one test alone."""
    project = Project(tmp_path, redis_url)
    yield project
    project.close()


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, _redis_databases: Iterator[int]
) -> Iterator[Project]:
    """One project for all tests of a module, to start workers that serve more than one test."""
    project = Project(tmp_path_factory.mktemp("project"), redis_server.url(next(_redis_databases)))
    yield project
    project.close()
