"""Tests on a real NVIDIA device: `make test-gpu`, by hand. Elsewhere they are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flyte_celery.gpu.discover import discover
from flyte_celery.gpu.inventory import Accelerator
from tests.helpers.projects import Project

_FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder `gpu`."""
    for item in items:
        if _FOLDER in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> Accelerator:
    """A whole device of this machine."""
    whole = [each for each in discover(os.environ) if each.partition is None]
    if not whole:
        pytest.skip("This machine has no NVIDIA device that is not divided.")
    return whole[0]


@pytest.fixture
def host(tmp_path: Path, redis_url: str) -> Iterator[Project]:
    """A project that has this machine's devices to itself."""
    project = Project(tmp_path, redis_url)
    yield project
    project.close()
