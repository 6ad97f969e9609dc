"""What only a real device can show: that it is found, that replicas get it, that torch works on it and fails well."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from flyte_celery.gpu import driver_files, nvml, smi
from flyte_celery.gpu.found import Found
from flyte_celery.gpu.inventory import Accelerator
from tests.helpers.projects import Project
from tests.helpers.workers import run_python

#: Two replicas on one device, in shares. The name is the device's own, as Flyte has shares of few models only.
APP = """
    import os
    import flyte_celery as flyte

    app = flyte.init()
    env = flyte.TaskEnvironment(
        "model",
        resources=flyte.Resources(gpu=flyte.Device(1, "GPU", "{name} shared")),
        reusable=flyte.ReusePolicy(replicas=2, idle_ttl=3600),
    )
    model = None
    loaded = 0

    @env.on_startup
    def load() -> None:
        global model, loaded
        import torch
        torch.manual_seed(7)
        model = torch.nn.Linear(64, 4).to("cuda")
        loaded += 1

    @env.task
    def seen() -> list[str]:
        import torch
        return [os.environ["CUDA_VISIBLE_DEVICES"], str(torch.cuda.device_count()), str(loaded)]

    @env.task
    def infer(batch: list[list[float]]) -> list[int]:
        import torch
        with torch.inference_mode():
            return model(torch.tensor(batch, device="cuda")).argmax(1).tolist()

    @env.task
    def too_much() -> int:
        import torch
        return torch.empty(1 << 46, dtype=torch.uint8, device="cuda").numel()
"""


def facts(devices: list[Found] | None) -> list[tuple[str, str]]:
    """What all sources tell."""
    return [(each.uuid, each.product) for each in devices or []]


def test_every_source_finds_what_nvidia_smi_lists() -> None:
    """NVML may be missing; then the command is what is used."""
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=uuid,name", "--format=csv,noheader"], capture_output=True, text=True
    )
    expected = [tuple(line.split(", ")) for line in listed.stdout.splitlines()]
    assert facts(smi.read()) == expected
    if (by_library := nvml.read()) is not None:
        assert facts(by_library) == expected
        for one, other in zip(by_library, smi.read() or [], strict=True):
            assert (one.driver, one.mig, len(one.instances)) == (other.driver, other.mig, len(other.instances))
    if (by_files := driver_files.read()) is not None:
        assert sorted(facts(by_files)) == sorted(expected)


def test_nothing_is_broken(device: Accelerator) -> None:
    """The watch for errors can be set up, and says nothing."""
    assert nvml.Errors([device.id]).poll() == {}


@pytest.fixture
def model(device: Accelerator, host: Project) -> Project:
    """Two replicas with a model on one device."""
    pytest.importorskip("torch")
    name = device.name
    if name is None:
        pytest.skip(f"Flyte has no name for {device.product}.")
    host.write(APP.replace("{name}", name))
    host.start("model", env={"FLYTE_CELERY_DEVICES": f"{name}:1x2", "CUDA_VISIBLE_DEVICES": device.id})
    host.wait_for_replicas("model", 2, timeout=180)
    return host


def test_two_replicas_share_one_device_and_each_loads_its_model_once(model: Project, device: Accelerator) -> None:
    """They see it, and no other."""
    assert [each["devices"] for each in model.replicas("model")] == [[f"{device.name} {device.id}#{n}"] for n in (0, 1)]
    for _ in range(10):
        assert model.call("model.seen") == [device.id, "1", "1"]


def test_batches_are_inferred_through_map(model: Project, tmp_path: Path) -> None:
    """The same batch has the same answer in every replica, as the models have the same seed."""
    code = """
        import flyte_celery as flyte
        from proj import infer
        batch = [[float(row == column) for column in range(64)] for row in range(32)]
        answers = list(flyte.map(infer, [batch] * 50))
        assert len(answers) == 50 and len(answers[0]) == 32 and all(each == answers[0] for each in answers), answers
        print("same")
    """
    assert run_python(tmp_path, code, {**os.environ, **model.variables}, timeout=120).strip() == "same"


def test_too_little_memory_on_the_device_is_an_error_of_the_task(model: Project) -> None:
    """The replica lives on, and its device is not broken."""
    pids = model.pids("model")
    failure = model.send("model.too_much").get(timeout=60, propagate=False)
    assert "out of memory" in str(failure)
    assert model.call("model.seen")
    assert model.pids("model") == pids
    assert model.status("model")["broken"] == {}
