"""What is found on machines of several kinds, each told by a `nvidia-smi` of its own or by the driver's files."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from flyte_celery.gpu import driver_files, smi
from flyte_celery.gpu.discover import discover
from flyte_celery.gpu.found import accelerators
from flyte_celery.gpu.inventory import Accelerator

GIB = 2**30

#: Two T4, as on a machine of AWS's g4dn.12xlarge; the fields are index, uuid, name, memory, driver and MIG mode.
T4S = """
    0, GPU-11111111-0000-0000-0000-000000000000, Tesla T4, 15360, 550.54.15, [N/A]
    1, GPU-22222222-0000-0000-0000-000000000000, Tesla T4, 15360, 550.54.15, [N/A]
"""

A100S = """
    0, GPU-aaaaaaaa-0000-0000-0000-000000000000, NVIDIA A100-SXM4-40GB, 40960, 535.104.05, Enabled
    1, GPU-bbbbbbbb-0000-0000-0000-000000000000, NVIDIA A100-SXM4-40GB, 40960, 535.104.05, Disabled
"""

A100S_LISTED = """
    GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaaaaaa-0000-0000-0000-000000000000)
      MIG 3g.20gb     Device  0: (UUID: MIG-11111111-1111-1111-1111-111111111111)
      MIG 1g.5gb+me   Device  1: (UUID: MIG-22222222-2222-2222-2222-222222222222)
    GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbbbbbb-0000-0000-0000-000000000000)
"""

UNKNOWN = """
    0, GPU-cccccccc-0000-0000-0000-000000000000, "NVIDIA GeForce RTX 4090, OC", [N/A], 550.54.15, [N/A]
"""


class Machine:
    """A machine whose `nvidia-smi` says what a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, table: str, listing: str = "", status: int = 0) -> None:
        """Put a `nvidia-smi` on its path."""
        (self.folder / "table").write_text(textwrap.dedent(table).strip() + "\n")
        (self.folder / "listing").write_text(textwrap.dedent(listing).strip() + "\n")
        script = self.folder / "nvidia-smi"
        script.write_text(
            '#!/bin/sh\nfolder=${0%/*}\ncase "$1" in\n  -L) /bin/cat "$folder/listing" ;;\n'
            f'  *) /bin/cat "$folder/table" ;;\nesac\nexit {status}\n'
        )
        script.chmod(0o755)

    def environ(self, **variables: str) -> dict[str, str]:
        """The variables of a process on it."""
        return {"PATH": str(self.folder), **variables}

    def discover(self, **variables: str) -> list[Accelerator]:
        """What is found on it."""
        return discover(self.environ(**variables), root=self.folder)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without devices."""
    return Machine(tmp_path)


def write_driver(root: Path, *devices: str, version: str = "Kernel Module  535.104.05  Sat Aug 19 2023") -> None:
    """Give a machine the driver's files: a device's text, by its place in the list."""
    folder = root / "proc" / "driver" / "nvidia"
    for number, text in enumerate(devices):
        place = folder / "gpus" / f"0000:00:{number:02x}.0"
        place.mkdir(parents=True)
        (place / "information").write_text(textwrap.dedent(text))
    (folder / "version").write_text(f"NVRM version: NVIDIA UNIX x86_64 {version}\nGCC version: gcc 12.2.0\n")


class TestNvidiaSmi:
    """The command that comes with the driver."""

    def test_devices_have_names_uuids_memory_and_driver(self, machine: Machine) -> None:
        """Under Flyte's name."""
        machine.install(T4S)
        first, second = machine.discover()
        assert first == Accelerator(
            "GPU-11111111-0000-0000-0000-000000000000", "GPU", "T4", "Tesla T4", 15 * GIB, driver="550.54.15"
        )
        assert second.id.startswith("GPU-2222")

    def test_of_a_divided_device_the_instances_are_used(self, machine: Machine) -> None:
        """The one beside it is whole."""
        machine.install(A100S, A100S_LISTED)
        found = {each.id[:8]: (each.name, each.partition) for each in machine.discover()}
        assert found == {"MIG-1111": ("A100", "3g.20gb"), "MIG-2222": ("A100", "1g.5gb"), "GPU-bbbb": ("A100", None)}

    def test_a_divided_device_without_instances_gives_nothing(self, machine: Machine) -> None:
        """CUDA cannot use it as a whole."""
        machine.install(A100S, A100S_LISTED.replace("MIG", "no"))
        assert [each.id[:8] for each in machine.discover()] == ["GPU-bbbb"]

    def test_a_product_without_a_name_is_there_as_itself(self, machine: Machine) -> None:
        """For environments that take any GPU."""
        machine.install(UNKNOWN)
        (found,) = machine.discover()
        assert (found.name, found.product, found.memory) == (None, "NVIDIA GeForce RTX 4090, OC", None)

    def test_one_that_fails_is_no_answer(self, machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
        """The driver's files are asked next."""
        machine.install("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", status=9)
        assert smi.read(str(machine.folder)) is None
        assert "ended with status 9: NVIDIA-SMI has failed" in caplog.text
        assert machine.discover() == []

    @pytest.mark.parametrize(
        ("visible", "found"),
        [("1", ["GPU-2222"]), ("0,1", ["GPU-1111", "GPU-2222"]), ("GPU-1111", ["GPU-1111"]), ("", []), ("-1", [])],
    )
    def test_an_operators_own_variable_hides_devices(self, machine: Machine, visible: str, found: list[str]) -> None:
        """As it does for CUDA."""
        machine.install(T4S)
        assert [each.id[:8] for each in machine.discover(CUDA_VISIBLE_DEVICES=visible)] == found


class TestDriverFiles:
    """A machine that has the driver, and neither its library nor its command."""

    def test_devices_have_names_and_uuids(self, machine: Machine) -> None:
        """Memory is not told."""
        write_driver(
            machine.folder,
            """
            Model: \t\t NVIDIA L4
            GPU UUID: \t GPU-33333333-0000-0000-0000-000000000000
            Device Minor: \t 0
            """,
        )
        (found,) = machine.discover()
        assert (found.name, found.id[:8], found.memory, found.driver) == ("L4", "GPU-3333", None, "535.104.05")

    def test_a_device_that_was_never_used_goes_by_its_number(self, machine: Machine) -> None:
        """Its UUID is not known yet. The open driver writes its version in another way."""
        write_driver(
            machine.folder,
            "Model: NVIDIA L4\nGPU UUID: GPU-????????-????-????-????-????????????\nDevice Minor: 0\n",
            version="Open Kernel Module for x86_64  550.54.15  Release Build",
        )
        (found,) = machine.discover()
        assert (found.id, found.driver) == ("0", "550.54.15")

    def test_a_divided_device_is_left_out(self, machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
        """Nobody could say which instances it has."""
        write_driver(machine.folder, "Model: NVIDIA A100-SXM4-40GB\nGPU UUID: GPU-4444\nDevice Minor: 0\n")
        (machine.folder / "proc/driver/nvidia/capabilities/gpu0/mig/gi7").mkdir(parents=True)
        assert accelerators(driver_files.read(machine.folder) or []) == []
        assert "divided by MIG and is left out" in caplog.text

    def test_a_machine_without_the_driver_has_no_device(self, machine: Machine) -> None:
        """Which is no error."""
        assert driver_files.read(machine.folder) is None
        assert machine.discover() == []
