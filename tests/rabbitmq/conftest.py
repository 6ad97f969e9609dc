"""Tests with RabbitMQ as the broker; `make test-rabbitmq` installs it and runs them, `make test` leaves them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rabbitmq.project import QUORUM, QUORUM_BY_NAME, RabbitProject
from tests.rabbitmq.server import RabbitServer

_FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder `system`."""
    for item in items:
        if _FOLDER in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """The RabbitMQ server of this test run; each project has a virtual host of its own."""
    server = RabbitServer(tmp_path_factory.mktemp("rabbitmq"))
    try:
        server.start()
        yield server
    finally:
        server.destroy()


@pytest.fixture
def start_rabbit(tmp_path: Path) -> Iterator[Callable[[str], RabbitServer]]:
    """Start a server for this test alone, with this configuration."""
    servers: list[RabbitServer] = []

    def start(configuration: str = "[].") -> RabbitServer:
        folder = tmp_path / f"rabbitmq-{len(servers) + 1}"
        folder.mkdir()
        servers.append(server := RabbitServer(folder, configuration))
        server.start()
        return server

    yield start
    for server in servers:
        server.destroy()


@pytest.fixture
def make_project(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., RabbitProject]]:
    """Make a project: `make_project(server, kind="classic", backend=None, **settings)`; its results are in Redis."""
    projects: list[RabbitProject] = []

    def make(server: RabbitServer, kind: str = "classic", backend: str | None = None, **settings: object):  # type: ignore[no-untyped-def]
        folder = tmp_path / f"project-{len(projects) + 1}"
        folder.mkdir()
        quorum = kind == "quorum"
        ours, theirs = ({**QUORUM, **settings}, {**QUORUM_BY_NAME, **settings}) if quorum else (settings, settings)
        projects.append(project := RabbitProject(folder, server, backend or redis_url, ours, theirs))
        return project

    yield make
    for project in projects:
        project.close()


@pytest.fixture(params=["classic", "quorum"])
def project(
    request: pytest.FixtureRequest, rabbit: RabbitServer, make_project: Callable[..., RabbitProject]
) -> RabbitProject:
    """A project without workers, once with each type of queue."""
    return make_project(rabbit, request.param)


@pytest.fixture
def classic(rabbit: RabbitServer, make_project: Callable[..., RabbitProject]) -> RabbitProject:
    """A project without workers, with classic queues."""
    return make_project(rabbit)


@pytest.fixture
def quorum(rabbit: RabbitServer, make_project: Callable[..., RabbitProject]) -> RabbitProject:
    """A project without workers, with quorum queues."""
    return make_project(rabbit, "quorum")
