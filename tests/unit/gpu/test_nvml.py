"""NVML as `nvidia-ml-py` speaks to it, with a stand-in for the driver's library."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.workers import run_python

SCRIPT = """
    import dataclasses, json
    from flyte_celery.gpu import nvml
    from flyte_celery.gpu.discover import discover

    found = [dataclasses.asdict(each) for each in discover({"PATH": ""})]
    errors = nvml.Errors(["MIG-small", "MIG-large", "GPU-whole", "GPU-unknown"])
    print(json.dumps({"found": found, "errors": [errors.poll() for _ in range(3)]}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the stand-in tells of three devices, and of their errors."""
    compiler = shutil.which("cc")
    if compiler is None or importlib.util.find_spec("pynvml") is None:
        pytest.skip("There is no C compiler, or no nvidia-ml-py.")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", source], check=True)
    answer: dict[str, Any] = json.loads(run_python(folder, SCRIPT, {"LD_LIBRARY_PATH": str(folder)}))
    return answer


def test_devices_and_instances_are_found(told: dict[str, Any]) -> None:
    """One that does not answer is left out."""
    assert [(each["id"], each["name"], each["partition"], each["driver"]) for each in told["found"]] == [
        ("MIG-small", "A100", "1g.5gb", "550.54.15"),
        ("MIG-large", "A100", "3g.20gb", "550.54.15"),
        ("GPU-whole", "A100", None, "550.54.15"),
    ]
    assert told["found"][2]["memory"] == 40 * 2**30


def test_errors_break_a_device_and_its_instances(told: dict[str, Any]) -> None:
    """A program's own do not; a device that is lost is found by asking each."""
    assert told["errors"] == [
        {"MIG-small": "XID 79", "MIG-large": "XID 79"},
        {"GPU-whole": "the driver has lost it"},
        {},
    ]
