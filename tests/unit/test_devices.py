"""Which accelerators exist, and what `GPU(...)`, `TPU(...)` and strings such as `"A100:8"` make of them."""

from __future__ import annotations

import dataclasses
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from flyte_celery.devices import (
    AMD_GPU,
    APPLE_SILICON,
    DEVICE_NAMES,
    GPU,
    HABANA_GAUDI,
    KUBERNETES_RESOURCES,
    TPU,
    Device,
    Neuron,
    parse_accelerator,
)

#: Class, names, and the counts that a string NAME:COUNT may have.
COUNTS: list[tuple[str, str, list[int]]] = [
    ("GPU", "A10 A10G A100 A100_80G B200 H100 H200 L4 L40s V100 T4", list(range(1, 9))),
    ("GPU", "A2 RTX_PRO_4500 GB10", [1]),
    ("GPU", "RTX_PRO_6000", [1, 2]),
    ("NEURON", "Trn1 Trn1n Trn2 Trn2u", [1, 4, 8, 16]),
    ("NEURON", "Inf1", list(range(1, 17))),
    ("NEURON", "Inf2", list(range(1, 13))),
    ("AMD_GPU", "MI100 MI210 MI250 MI250X MI300A MI300X MI325X MI350X MI355X", [1]),
    ("HABANA_GAUDI", "Gaudi1", [1]),
    ("APPLE_SILICON", "AppleSilicon", [1]),
]
SHARED = ["T4 shared", "L4 shared", "A10G shared", "A10 shared", "L40S shared"]
NAMED = [(cls, name, counts) for cls, names, counts in COUNTS for name in names.split()]
NAMED += [("GPU", name, [1]) for name in SHARED]

MIG = {
    "A100": "1g.5gb 2g.10gb 3g.20gb 4g.20gb 7g.40gb",
    "A100_80G": "1g.10gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb",
    "H100": "1g.10gb 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb",
    "H200": "1g.18gb 1g.35gb 2g.35gb 3g.71gb 4g.71gb 7g.141gb",
    "RTX_PRO_6000": "1g.24gb 2g.48gb 4g.96gb",
}
SLICES = {
    "V5E": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "V6E": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "V5P": "2x2x1 2x2x2 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 16x16x24",
}


def pairs(table: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, partition) for name, partitions in table.items() for partition in partitions.split()]


def foreign(table: dict[str, str]) -> list[tuple[str, str]]:
    """Partitions of other devices of the table, the empty one among them."""
    known = {partition for _, partition in pairs(table)} | {""}
    return [(name, partition) for name in table for partition in sorted(known - set(table[name].split()))]


# -- Strings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device_class", "name", "counts"), NAMED)
def test_a_string_may_have_the_counts_of_the_table_and_no_other(
    device_class: Any, name: str, counts: list[int]
) -> None:
    for count in range(18):
        if count in counts:
            assert parse_accelerator(f"{name}:{count}") == Device(count, device_class, name)
        else:
            with pytest.raises(ValueError, match=f"gpu='{name}:{count}'"):
                parse_accelerator(f"{name}:{count}")


def test_the_table_of_this_test_names_every_device() -> None:
    names = {name for _, name, _ in NAMED} | {*SLICES}
    assert names == {name for each in DEVICE_NAMES.values() for name in each}


@pytest.mark.parametrize(
    "text",
    [
        "T4",
        "",
        "t4:1",
        " T4:1",
        "T4:1 ",
        "T4: 1",
        "T4:01",
        "T4:+1",
        "T4:1:1",
        "banana:1",
        "L40S:1",
        "L40s shared:1",
        ":1",
    ],
)
def test_a_string_is_taken_exactly(text: str) -> None:
    """Case and spaces count, and so does the count."""
    with pytest.raises(ValueError, match="is no accelerator"):
        parse_accelerator(text)


@pytest.mark.parametrize("name", SLICES)
def test_a_tpu_is_not_asked_for_by_a_string(name: str) -> None:
    with pytest.raises(ValueError, match=rf"TPU\('{name}'\)"):
        parse_accelerator(f"{name}:1")


def test_apple_silicon_needs_no_count() -> None:
    assert parse_accelerator("AppleSilicon") == APPLE_SILICON()


@pytest.mark.parametrize(("old", "new"), [("A100 80G", "A100_80G"), ("RTX PRO 6000", "RTX_PRO_6000")])
def test_an_old_spelling_is_accepted_with_a_warning(old: str, new: Any, caplog: pytest.LogCaptureFixture) -> None:
    old_name: Any = old
    assert parse_accelerator(f"{old}:2") == GPU(new, 2)
    assert GPU(old_name, 1) == GPU(new, 1)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "deprecated" in caplog.text
    with pytest.raises(ValueError, match=f"gpu='{old}:9'"):
        parse_accelerator(f"{old}:9")


# -- Device ----------------------------------------------------------------------------------------------------------


def test_a_device_has_four_fields() -> None:
    assert dataclasses.astuple(Device(2, "GPU")) == (2, "GPU", None, None)
    assert dataclasses.astuple(Device(1, "GPU", "A100", "1g.5gb")) == (1, "GPU", "A100", "1g.5gb")


@pytest.mark.parametrize("quantity", [0, -1, False])
def test_a_device_without_a_quantity_of_one_is_a_value_error(quantity: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Device(quantity, "GPU")


@pytest.mark.parametrize("quantity", ["1", None])
def test_a_quantity_that_is_no_number_is_a_type_error(quantity: Any) -> None:
    with pytest.raises(TypeError, match="quantity="):
        Device(quantity, "GPU")


def test_class_and_name_of_a_device_are_not_checked() -> None:
    unknown: Any = "x"
    assert Device(1, unknown, "anything", "goes").device == "anything"


@pytest.mark.parametrize(
    ("quantity", "device_class", "name"),
    [
        (1, "GPU", "AppleSilicon"),
        (1, "APPLE_SILICON", None),
        (1, "APPLE_SILICON", "T4"),
        (2, "APPLE_SILICON", "AppleSilicon"),
        (1.5, "APPLE_SILICON", "AppleSilicon"),
    ],
)
def test_the_fields_of_apple_silicon_must_go_together(quantity: Any, device_class: Any, name: str | None) -> None:
    with pytest.raises(ValueError, match=r"Apple Silicon|APPLE_SILICON\(\)"):
        Device(quantity, device_class, name)


def test_a_device_equals_by_value_is_hashable_and_cannot_be_changed() -> None:
    device = GPU("T4", 1)
    assert device == Device(1, "GPU", "T4")
    assert hash(device) == hash(Device(1, "GPU", "T4"))
    assert pickle.loads(pickle.dumps(device)) == device
    with pytest.raises(AttributeError):
        device.quantity = 2  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        device.other = 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("device", "label"),
    [
        (GPU("A100", 1), "nvidia-tesla-a100"),
        (GPU("A100_80G", 1), "nvidia-a100-80gb"),
        (GPU("H100", 1), "nvidia-tesla-h100"),
        (GPU("L4", 1), "nvidia-l4"),
        (GPU("T4", 1), "nvidia-tesla-t4"),
        (GPU("V100", 1), "nvidia-tesla-v100"),
        (TPU("V5E"), "tpu-v5-lite-podslice"),
        (TPU("V5P"), "tpu-v5p-slice"),
        (TPU("V6E"), "tpu-v6e-slice"),
        (GPU("B200", 1), "B200"),
        (Device(1, "GPU"), None),
    ],
)
def test_a_model_has_the_label_of_its_nodes(device: Device, label: str | None) -> None:
    assert device.node_label == label


def test_a_cluster_counts_each_class_under_its_own_name() -> None:
    assert KUBERNETES_RESOURCES == {
        "GPU": "nvidia.com/gpu",
        "TPU": "google.com/tpu",
        "NEURON": "aws.amazon.com/neuron",
        "AMD_GPU": "amd.com/gpu",
        "HABANA_GAUDI": "habana.ai/gaudi",
    }


# -- GPU -------------------------------------------------------------------------------------------------------------


def test_the_quantity_of_a_gpu_has_no_default() -> None:
    with pytest.raises(TypeError, match="quantity"):
        GPU("A100")  # type: ignore[call-arg]


@pytest.mark.parametrize("name", DEVICE_NAMES["GPU"])
def test_every_gpu_can_be_asked_for(name: Any) -> None:
    assert GPU(name, 1) == Device(1, "GPU", name)


@pytest.mark.parametrize("quantity", [1000, 1.5, True])
def test_the_quantity_of_a_gpu_has_no_upper_bound(quantity: Any) -> None:
    assert GPU("T4", quantity).quantity == quantity


@pytest.mark.parametrize("quantity", [0, -1])
def test_a_gpu_quantity_below_one_is_a_value_error(quantity: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        GPU("T4", quantity)


def test_a_gpu_quantity_as_text_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="quantity='1'"):
        GPU("T4", "1")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a100", "A100:1", "V5P", None, "", "Trn1"])
def test_an_unknown_gpu_is_a_value_error(name: Any) -> None:
    with pytest.raises(ValueError, match=f"device={name!r} is no GPU"):
        GPU(name, 1)


def test_the_quantity_of_a_gpu_is_checked_before_its_name() -> None:
    unknown: Any = "bogus"
    with pytest.raises(ValueError, match="quantity=0"):
        GPU(unknown, 0)


@pytest.mark.parametrize(("name", "partition"), pairs(MIG))
def test_a_gpu_has_the_partitions_of_the_table(name: Any, partition: str) -> None:
    assert GPU(name, 1, partition) == Device(1, "GPU", name, partition)


@pytest.mark.parametrize(("name", "partition"), foreign(MIG))
def test_a_gpu_has_no_other_partition(name: Any, partition: str) -> None:
    with pytest.raises(ValueError, match=f"partition='{partition}' does not exist on {name}"):
        GPU(name, 1, partition)


@pytest.mark.parametrize("name", sorted({*DEVICE_NAMES["GPU"]} - {*MIG} - {*SHARED}))
@pytest.mark.parametrize("partition", ["anything", ""])
def test_a_gpu_without_a_table_takes_any_partition(name: Any, partition: str) -> None:
    assert GPU(name, 1, partition).partition == partition


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("partition", ["1g.5gb", ""])
def test_a_shared_gpu_has_no_partition(name: Any, partition: str) -> None:
    with pytest.raises(ValueError, match="ask for the whole device"):
        GPU(name, 1, partition)


# -- TPU and the others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLICES)
def test_a_tpu_is_always_one(name: Any) -> None:
    assert TPU(name) == Device(1, "TPU", name)
    with pytest.raises(TypeError, match="quantity"):
        TPU(name, quantity=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(("name", "partition"), pairs(SLICES))
def test_a_tpu_has_the_slices_of_the_table(name: Any, partition: str) -> None:
    assert TPU(name, partition) == Device(1, "TPU", name, partition)


@pytest.mark.parametrize(("name", "partition"), foreign(SLICES))
def test_a_tpu_has_no_other_slice(name: Any, partition: str) -> None:
    with pytest.raises(ValueError, match=f"partition='{partition}' does not exist on {name}"):
        TPU(name, partition)


@pytest.mark.parametrize("name", ["V4", "v5p", "", None, "A100"])
def test_an_unknown_tpu_is_a_value_error(name: Any) -> None:
    with pytest.raises(ValueError, match=f"device={name!r} is no TPU"):
        TPU(name)


@pytest.mark.parametrize(
    ("make", "device_class"), [(Neuron, "NEURON"), (AMD_GPU, "AMD_GPU"), (HABANA_GAUDI, "HABANA_GAUDI")]
)
def test_the_other_accelerators_come_one_at_a_time(make: Callable[[Any], Device], device_class: Any) -> None:
    for name in DEVICE_NAMES[device_class]:
        assert make(name) == Device(1, device_class, name)
    for unknown in ("", None, DEVICE_NAMES[device_class][0].lower(), "T4"):
        with pytest.raises(ValueError, match=f"device={unknown!r} is no {device_class}"):
            make(unknown)


def test_apple_silicon_is_the_one_of_its_machine() -> None:
    assert APPLE_SILICON() == Device(1, "APPLE_SILICON", "AppleSilicon")
