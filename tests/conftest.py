"""What every test gets: a private Redis server on request, and a check that it leaves no process behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from flyte_celery import registry
from tests.helpers import processes
from tests.helpers.redis_server import DATABASES, RedisServer
from tests.helpers.waiting import wait_until

__all__ = ["wait_until"]

#: Every process that a test starts inherits it, so that it is known as this run's when its parent is gone.
_MARK = "FLYTE_CELERY_TEST_RUN"

#: Processes that the standard library starts once and keeps until the interpreter ends.
_KEPT_BY_PYTHON = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")

#: A folder whose tests share one project.
_SHARED_BY_FOLDER = "tests/system/semantics/"

# Examples are not timed: on a loaded machine any single one may be slow. The timeout of the test still holds.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


def pytest_configure() -> None:
    """Mark this run before anything starts a process."""
    os.environ[_MARK] = str(os.getpid())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together what shares an expensive fixture, when several processes run the tests: a file, or one folder."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _SHARED_BY_FOLDER if nodeid.startswith(_SHARED_BY_FOLDER) else nodeid.partition("::")[0]

    return ByFile(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a device on a machine without one."""
    if item.get_closest_marker("gpu") and not Path("/dev/nvidiactl").exists():
        pytest.skip("This machine has no NVIDIA device.")


@pytest.fixture(autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Fail a test that leaves a process running, and end that process.

    Processes of fixtures with a wider scope exist before the test: they are its environment, not its leak, and so
    are the children that they start meanwhile.
    """
    before = processes.everything()
    yield

    def left() -> dict[int, str]:
        return {pid: processes.command_line(pid) for pid in _started_since(before) if not _kept_by_python(pid)}

    try:
        wait_until(lambda: not left(), timeout=2.0)
    except AssertionError:
        leaked = left()
        for pid in leaked:
            processes.kill(pid)
        if leaked:
            pytest.fail(f"The test left processes running, which were killed: {leaked}", pytrace=False)


def _started_since(before: set[int]) -> set[int]:
    """The living processes of this run that did not exist `before`."""
    # Most tests start none, and then this is all: reading every process of the machine would double their time.
    if not (new := processes.everything() - before):
        return new
    run = os.getpid()
    family = processes.descendants(run)
    children = {child for older in before.intersection(family) for child in processes.descendants(older)}
    return new.intersection((*family, *processes.carrying(_MARK, str(run)))) - children


def _kept_by_python(pid: int) -> bool:
    command = processes.command_line(pid)
    return any(name in command for name in _KEPT_BY_PYTHON)


@pytest.fixture(autouse=True)
def definitions_end_with_their_test() -> Iterator[None]:
    """Forget which definitions a test has replaced: its environments are not in conflict with those of other tests."""
    before = list(registry._replaced)
    yield
    registry._replaced[:] = before


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The Redis server of this test run. Use `redis_url`, which is a database for one test alone."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _redis_databases() -> Iterator[int]:
    return iter(range(1, DATABASES))


@pytest.fixture
def redis_url(redis_server: RedisServer, _redis_databases: Iterator[int]) -> str:
    """URL of an empty Redis database that no other test uses."""
    return redis_server.url(next(_redis_databases))


@pytest.fixture
def own_redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running Redis server for this test alone, which may stop and start it."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()
