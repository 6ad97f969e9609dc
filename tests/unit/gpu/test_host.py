"""What a host offers, and what it lacks for an environment."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path
from typing import Any

import pytest

import flyte_celery as flyte
from flyte_celery.gpu import machine
from flyte_celery.gpu.health import device_failure
from flyte_celery.gpu.host import Host, missing, missing_everywhere, this_host
from flyte_celery.gpu.labels import parse_labels

_numbers = itertools.count()


def environment(**options: Any) -> flyte.TaskEnvironment:
    """An environment with a name of its own."""
    return flyte.TaskEnvironment(f"host-test-{next(_numbers)}", **options)


def host(root: Path, devices: str = "none", labels: str = "cores=8,memory=16Gi") -> Host:
    """A host with nothing of the machine that runs this."""
    return this_host({"PATH": ""}, devices, labels, root)


class TestLabels:
    """What is found and what is given."""

    def test_those_that_are_found(self, tmp_path: Path) -> None:
        """Name, cores and memory; of devices model, count, memory, driver and MIG profiles."""
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/meminfo").write_text("MemFree: 1 kB\nMemTotal:       16384 kB\n")
        found = this_host({"PATH": ""}, "A100/1g.5gb:2,L4:1", None, tmp_path).labels
        assert found["host"] == socket.gethostname()
        assert found["memory"] == "16Mi"
        assert float(found["cores"]) > 0
        assert {name: value for name, value in found.items() if name.startswith(("gpu", "mig"))} == {
            "gpu": "A100+L4", "gpu_count": "3", "mig": "1g.5gb",
        }  # fmt: skip

    def test_a_containers_limits_count(self, tmp_path: Path) -> None:
        """Its own control group's, or one above it."""
        own = tmp_path / "sys/fs/cgroup/system.slice/worker.service"
        own.mkdir(parents=True)
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/worker.service\n")
        (tmp_path / "proc/meminfo").write_text("MemTotal:       16384 kB\n")
        (own / "cpu.max").write_text("max 100000\n")
        (own.parent / "cpu.max").write_text("50000 100000\n")
        (own / "memory.max").write_text("1048576\n")
        assert machine.cores(tmp_path) == 0.5
        assert machine.memory(tmp_path) == 2**20

    def test_given_ones_replace_them(self, tmp_path: Path) -> None:
        """So an operator has the last word."""
        labels = host(tmp_path, labels="host=a,zone=b,cores=64").labels
        assert (labels["host"], labels["zone"], labels["cores"]) == ("a", "b", "64")

    def test_they_survive_publication(self, tmp_path: Path) -> None:
        """With what matters of the devices."""
        here = host(tmp_path, "T4:1x2,A100/1g.5gb:1")
        assert Host.from_dict(here.as_dict()) == here

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("zone", "labels='zone': 'zone' is no label. Write NAME=VALUE"),
            ("zone=a,,tier=b", "'' is no label"),
            ("zone=a b", "'zone=a b' is no label"),
            ("zone=a,zone=b", "'zone' is given twice. Join its values by +"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, text: str, message: str) -> None:
        """With the item and what to write."""
        with pytest.raises(ValueError) as refused:
            parse_labels(text)
        assert message in str(refused.value)

    @pytest.mark.parametrize("label", ["cores=many", "memory=much"])
    def test_quantities_are_checked(self, tmp_path: Path, label: str) -> None:
        """They are compared with what environments ask for."""
        with pytest.raises(ValueError, match=f"labels='{label}': {label.partition('=')[0]}='"):
            host(tmp_path, labels=label)


class TestRequirements:
    """What is missing for one replica."""

    @pytest.mark.parametrize(
        ("options", "lacks"),
        [
            ({}, []),
            ({"resources": flyte.Resources(cpu=8, memory="16Gi")}, []),
            ({"resources": flyte.Resources(cpu=(1, 64), memory=("1Gi", "64Gi"))}, []),
            ({"resources": flyte.Resources(cpu=9)}, ["9 cores (the host has 8; the label cores=N says otherwise)"]),
            (
                {"resources": flyte.Resources(memory="17Gi")},
                ["17Gi of memory (the host has 16Gi; the label memory=N says otherwise)"],
            ),
            ({"resources": flyte.Resources(gpu="L4:2")}, []),
            ({"resources": flyte.Resources(gpu="L4:3")}, ["3 x L4 (the host has L4:2)"]),
            ({"labels": {"zone": "a"}}, []),
            ({"labels": {"tier": "web"}}, []),
            ({"labels": {"zone": "b"}}, ["the label zone=b (the host has zone=a)"]),
            ({"labels": {"gpu": "L4", "rack": "7"}}, ["the label rack=7 (the host has no rack)"]),
        ],
    )
    def test_each_is_named(self, tmp_path: Path, options: dict[str, Any], lacks: list[str]) -> None:
        """With what the host has in its place."""
        here = host(tmp_path, "L4:2", "cores=8,memory=16Gi,zone=a,tier=batch+web")
        assert [str(need) for need in missing(environment(**options), here)] == lacks

    def test_why_no_host_will_do(self, tmp_path: Path) -> None:
        """What none of them has, or that no one has everything."""
        plain, gpu = host(tmp_path), host(tmp_path, "L4:1")
        needy = environment(resources=flyte.Resources(gpu="L4:1"), labels={"zone": "a"})
        west = host(tmp_path, labels="cores=8,zone=a")
        assert missing_everywhere(environment(resources=flyte.Resources(gpu="L4:1")), [plain]) == (
            "needs 1 x L4, no worker offers one"
        )
        assert missing_everywhere(needy, [plain]) == ("needs 1 x L4 and the label zone=a, no worker offers any of that")
        assert missing_everywhere(needy, [gpu, west]) == (
            "needs 1 x L4 and the label zone=a, no worker offers all of that"
        )
        assert missing_everywhere(needy, [plain, gpu]) == "needs the label zone=a, no worker offers one"
        assert missing_everywhere(needy, []) == "needs 1 x L4 and the label zone=a, no worker offers any of that"
        assert missing_everywhere(environment(), []) is None
        assert missing_everywhere(environment(resources=flyte.Resources(gpu="L4:1")), [plain, gpu]) is None

    def test_labels_of_an_environment_are_text(self) -> None:
        """They are inherited by clones."""
        with pytest.raises(TypeError, match=r"labels must map names to values, got \['a'\]"):
            environment(labels=["a"])
        with pytest.raises(TypeError, match="labels must map names to values"):
            environment(labels={"cores": 4})
        assert environment(labels={"zone": "a"}).clone_with(f"host-test-{next(_numbers)}").labels == {"zone": "a"}


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", True),
        ("RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment", True),
        ("RuntimeError: No CUDA GPUs are available", True),
        ("cupy_backends.cuda.api.driver.CUDADriverError: CUDA_ERROR_NO_DEVICE: no device", True),
        ("XlaRuntimeError: INTERNAL: Failed to launch: CUDA_ERROR_ECC_UNCORRECTABLE: uncorrectable ECC error", True),
        ("RuntimeError: AcceleratorError: CUDA error: uncorrectable ECC error (it cannot be pickled)", True),
        ("flyte_celery.errors.GPUFaultSystemError: what a hook has found out by itself", True),
        ("ValueError: the caption for '... GPU is lost ...' is too short", False),
        ("RuntimeError: upstream answered 500: CUDA-capable device(s) is/are busy or unavailable", False),
        ("RuntimeError: no answer to 'RuntimeError: No CUDA GPUs are available'", False),
        ("KeyError: 'GPUFaultSystemError: uncorrectable ECC error'", False),
        ("flyte_celery.errors.GPUFaultUserError: an illegal access", False),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("RuntimeError: CUDA error: device-side assert triggered", False),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", False),
        ("ValueError: 3", False),
    ],
)
def test_which_errors_mean_a_broken_device(error: str, broken: bool) -> None:
    """A program's own fault does not."""
    assert (device_failure(error) is not None) == broken
