"""What importing the package costs, and what it must not load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.workers import run_python

#: What a process pays for only when it defines its first task (pydantic), calls `init` (Celery), or never.
HEAVY = (
    "asyncio",
    "pydantic",
    "celery",
    "kombu",
    "redis",
    "greenlet",
    "flower",
    "tornado",
    "sklearn",
    "numpy",
    "pandas",
)


def loaded_by(code: str, folder: Path) -> set[str]:
    """The modules that a fresh interpreter has loaded after running `code`."""
    return set(run_python(folder, f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')").split())


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return loaded_by("import flyte_celery", tmp_path_factory.mktemp("empty"))


@pytest.mark.parametrize("package", HEAVY)
def test_importing_the_package_loads_no(package: str, loaded: set[str]) -> None:
    assert package not in loaded


@pytest.mark.parametrize("part", ["client", "worker", "replica", "autoscaler", "supervisor", "cli"])
def test_importing_the_package_loads_no_part_that_runs(part: str, loaded: set[str]) -> None:
    assert f"flyte_celery.{part}" not in loaded


def test_installing_the_extension_loads_no_worker_code(tmp_path: Path) -> None:
    """A web process that calls `init` never pays for our side of the worker, the replicas or Flower."""
    loaded = loaded_by("import flyte_celery as flyte\nflyte.init(broker='memory://')", tmp_path)
    parts = {f"flyte_celery.{part}" for part in ("worker", "replica", "autoscaler", "cli")}
    assert not loaded & {"flower", *parts}
