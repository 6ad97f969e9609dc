"""Declared inventories, which requests they meet, and what a replica is told of its devices."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from flyte_celery.devices import AMD_GPU, GPU, HABANA_GAUDI, TPU, Device, Neuron
from flyte_celery.gpu.declare import declared
from flyte_celery.gpu.inventory import Accelerator, described, fitting, listed, most_replicas
from flyte_celery.gpu.visibility import variables

FOUND = [
    Accelerator("GPU-1", "GPU", "T4", "Tesla T4", 15 * 2**30, driver="550"),
    Accelerator("GPU-2", "GPU", "T4", "Tesla T4", 15 * 2**30, driver="550"),
    Accelerator("GPU-3", "GPU", None, "NVIDIA GeForce RTX 4090"),
]


def ids(text: str) -> list[str]:
    """What an inventory has, as `NAME/PARTITION ID xSHARES`."""
    return [f"{each.label} x{each.shares}" for each in declared(text, FOUND)]


class TestDeclarations:
    """`--devices`."""

    def test_devices_are_numbered_in_their_class(self) -> None:
        """As vendors' variables count them."""
        assert ids("L4:2, A100/1g.5gb:2 ,MI300X:1") == [
            "L4 0 x1", "L4 1 x1", "A100/1g.5gb 2 x1", "A100/1g.5gb 3 x1", "MI300X 0 x1",
        ]  # fmt: skip

    def test_shares_are_a_factor(self) -> None:
        """One T4 that four replicas have at once."""
        assert ids("A10:1x4") == ["A10 0 x4"]

    def test_devices_that_were_found_keep_their_uuids(self) -> None:
        """So a declaration shares what is really there."""
        assert ids("T4:1x3,T4:1") == ["T4 GPU-1 x3", "T4 GPU-2 x1"]
        assert declared("T4:1x3", FOUND)[0].driver == "550"

    def test_more_than_were_found_are_numbers_all(self) -> None:
        """CUDA does not take both in one list."""
        assert ids("T4:3") == ["T4 0 x1", "T4 1 x1", "T4 2 x1"]

    def test_product_names_and_any_case_are_understood(self) -> None:
        """And nothing at all."""
        assert ids("tesla t4:1,AMD Instinct MI300X:1") == ["T4 GPU-1 x1", "MI300X 0 x1"]
        assert ids("none") == []

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("L4", "devices='L4': 'L4' is no item of an inventory. Write NAME:COUNT as in L4:2"),
            ("L4:two", "'L4:two' is no item"),
            ("L4:2,", "'' is no item"),
            ("L4:2x", "'L4:2x' is no item"),
            ("L5:1", "'L5' is no device that Flyte has a name for. Use one such as L4"),
            ("T4 shared:1", "Declare the device and its shares: T4:1x4 is one T4 for four"),
            ("L4:0", "'L4:0' counts to zero. Give at least 1"),
            ("L4:1x0", "counts to zero"),
            ("A100/9g.9gb:1", "'9g.9gb' is no partition of A100. Use one of 1g.5gb, 2g.10gb"),
            ("A100/1g.5gb:1x2", "shares a partition. Declare shares for whole devices only."),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, text: str, message: str) -> None:
        """With the item and what to write."""
        with pytest.raises(ValueError) as refused:
            declared(text)
        assert message in str(refused.value)


@pytest.mark.parametrize(
    ("wanted", "inventory", "replicas"),
    [
        (GPU("L4", 1), "L4:2", 2),
        (GPU("L4", 2), "L4:5", 2),
        (GPU("L4", 2), "L4:1", 0),
        (GPU("L4", 1), "T4:2", 0),
        (GPU("L4", 1), "L4:2x4", 0),  # nobody else may be on it
        (GPU("T4 shared", 1), "T4:2x4", 8),
        (GPU("T4 shared", 1), "T4:2", 0),
        (GPU("L40S shared", 1), "L40s:1x2", 2),
        (Device(2, "GPU", "T4 shared"), "T4:2x4", 4),
        (Device(2, "GPU", "T4 shared"), "T4:1x4", 0),  # of two devices
        (Device(2, "GPU", "T4 shared"), "T4:1x4,T4:1x2", 2),
        (Device(1, "GPU", "H200 shared"), "H200:1x2", 2),
        (Device(1, "GPU"), "L4:1,T4:1,T4:1x4,A100/1g.5gb:7", 2),
        (GPU("A100", 1, "1g.5gb"), "A100/1g.5gb:7,A100:1", 7),
        (GPU("A100", 1), "A100/1g.5gb:7", 0),
        (Device(1, "AMD_GPU"), "MI300X:2,L4:1", 2),
        (TPU("V5E"), "V5E:4", 4),
        (TPU("V5E", "2x2"), "V5E/2x2:1", 1),
    ],
)
def test_how_many_replicas_a_host_has_devices_for(wanted: Device, inventory: str, replicas: int) -> None:
    """Each replica has devices of its own."""
    assert most_replicas(wanted, declared(inventory)) == replicas


def test_a_product_without_a_name_of_flytes_can_be_asked_for_as_it_is() -> None:
    """`Device` checks no names."""
    assert [each.id for each in fitting(Device(1, "GPU", "NVIDIA GeForce RTX 4090"), FOUND)] == ["GPU-3"]
    assert len(fitting(Device(1, "GPU"), FOUND)) == 3


def test_requests_and_inventories_in_words() -> None:
    """As messages have them."""
    assert described(GPU("A100", 1, "1g.5gb")) == "1 x A100/1g.5gb"
    assert described(Device(2, "GPU")) == "2 x GPU"
    assert listed(declared("L4:2,T4:1x4,A100/1g.5gb:7")) == "L4:2, T4:1x4, A100/1g.5gb:7"
    assert listed([]) == "no device"


@pytest.mark.parametrize(
    ("wanted", "inventory", "expected"),
    [
        (GPU("T4", 2), "T4:2", {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        (GPU("L4", 1), "L4:1", {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        (AMD_GPU("MI300X"), "MI250:2,MI300X:1", {"ROCR_VISIBLE_DEVICES": "2", "HIP_VISIBLE_DEVICES": "0"}),
        (HABANA_GAUDI("Gaudi1"), "Gaudi1:1", {"HABANA_VISIBLE_DEVICES": "0"}),
        (Neuron("Inf2"), "Inf1:1,Inf2:1", {"NEURON_RT_VISIBLE_CORES": "2,3"}),
        (Neuron("Trn1"), "Trn1:2", {"NEURON_RT_VISIBLE_CORES": "0,1,2,3"}),
        (TPU("V5E"), "V5E:2", {"TPU_VISIBLE_CHIPS": "0,1"}),
        (TPU("V5E", "2x2"), "V5E/2x2:1", {"TPU_VISIBLE_CHIPS": "0,1,2,3"}),
    ],
)
def test_what_a_replica_is_told(wanted: Device, inventory: str, expected: Mapping[str, str]) -> None:
    """Each vendor has a variable of its own; Neuron counts cores, TPUs count chips."""
    chosen = fitting(wanted, declared(inventory, FOUND))
    assert variables(wanted.device_class, chosen) == expected
