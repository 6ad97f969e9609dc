"""One project for all of these tests: its workers run once, and this process imports it as an application would."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.helpers.projects import Project
from tests.helpers.redis_server import RedisServer

_MODULE = "tests.system.semantics.tasks"


@pytest.fixture(scope="package")
def project(
    redis_server: RedisServer, _redis_databases: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """The project, with a worker for each environment and a plain worker without any queue option."""
    project = Project(tmp_path_factory.mktemp("semantics"), redis_server.url(next(_redis_databases)))
    try:
        for environment in ("aio", "snc"):
            project.start(environment, app=_MODULE, ready=False)
        project.start("--concurrency", "1", app=_MODULE, command="worker", ready=False)
        for worker in project.workers:
            worker.wait_ready()
        yield project
    finally:
        project.close()


@pytest.fixture(scope="package")
def tasks(project: Project) -> Iterator[ModuleType]:
    """The project's module, imported here."""
    with pytest.MonkeyPatch.context() as patch:  # for the import alone: other tests are none of its business
        for name, value in project.variables.items():
            patch.setenv(name, value)
        module = importlib.import_module(_MODULE)
    yield module
    module.app.close()
    del sys.modules[_MODULE]


@pytest.fixture(autouse=True)
def _variables(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test's own notes go to the project's database."""
    for name, value in project.variables.items():
        monkeypatch.setenv(name, value)
