"""Product strings as drivers and vendors' tools print them, and Flyte's names."""

from __future__ import annotations

import pytest

from flyte_celery.devices import DEVICE_NAMES
from flyte_celery.gpu.products import normalised

GIB = 2**30

#: What `nvidia-smi`, `rocm-smi`, `hl-smi`, JAX and others print.
PRODUCTS: list[tuple[str, str | None]] = [
    ("NVIDIA A2", "A2"),
    ("NVIDIA A10", "A10"),
    ("NVIDIA A10G", "A10G"),
    ("A100-SXM4-40GB", "A100"),
    ("NVIDIA A100-SXM4-40GB", "A100"),
    ("NVIDIA A100-PCIE-40GB", "A100"),
    ("NVIDIA A100-SXM4-80GB", "A100_80G"),
    ("NVIDIA A100-SXM-80GB", "A100_80G"),
    ("NVIDIA A100 80GB PCIe", "A100_80G"),
    ("NVIDIA A100X", "A100_80G"),
    ("NVIDIA B200", "B200"),
    ("NVIDIA H100 PCIe", "H100"),
    ("NVIDIA H100 80GB HBM3", "H100"),
    ("NVIDIA H100 NVL", "H100"),
    ("NVIDIA H200", "H200"),
    ("NVIDIA H200 NVL", "H200"),
    ("NVIDIA L4", "L4"),
    ("NVIDIA L40S", "L40s"),
    ("Tesla T4", "T4"),
    ("NVIDIA T4G", "T4"),
    ("Tesla V100-SXM2-16GB", "V100"),
    ("Tesla V100-PCIE-32GB", "V100"),
    ("Tesla V100S-PCIE-32GB", "V100"),
    ("NVIDIA RTX PRO 4500 Blackwell", "RTX_PRO_4500"),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX_PRO_6000"),
    ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX_PRO_6000"),
    ("NVIDIA GB10", "GB10"),
    ("AMD Instinct MI100", "MI100"),
    ("AMD Instinct MI210", "MI210"),
    ("AMD INSTINCT MI250 (MCM) OAM AC MBA", "MI250"),
    ("AMD Instinct MI250X", "MI250X"),
    ("AMD Instinct MI300A", "MI300A"),
    ("AMD Instinct MI300X", "MI300X"),
    ("AMD Instinct MI300X VF", "MI300X"),
    ("AMD Instinct MI325X", "MI325X"),
    ("AMD Instinct MI350X", "MI350X"),
    ("AMD Instinct MI355X", "MI355X"),
    ("HL-205", "Gaudi1"),
    ("Habana Gaudi", "Gaudi1"),
    ("TPU v5 lite", "V5E"),
    ("TPU v5e", "V5E"),
    ("TPU v5p", "V5P"),
    ("TPU v5", "V5P"),
    ("TPU v6 lite", "V6E"),
    ("AWS Inferentia", "Inf1"),
    ("AWS Inferentia2", "Inf2"),
    ("Apple M2 Max", "AppleSilicon"),
    # What Flyte has no name for, however similar it looks.
    ("NVIDIA GeForce RTX 4090", None),
    ("NVIDIA L40", None),
    ("NVIDIA A16", None),
    ("NVIDIA A30", None),
    ("NVIDIA A40", None),
    ("NVIDIA RTX A2000", None),
    ("NVIDIA T400", None),
    ("NVIDIA GH200 480GB", None),
    ("NVIDIA GB200", None),
    ("NVIDIA H100XM-40C", None),
    ("NVIDIA A10-24Q", None),
    ("GRID T4-16Q", None),
    ("GRID V100D-32Q", None),
    ("Gaudi 2", None),
    ("Gaudi3", None),
    ("HL-225", None),
    ("", None),
]


@pytest.mark.parametrize(("product", "name"), PRODUCTS)
def test_a_product_has_flytes_name(product: str, name: str | None) -> None:
    """Or none."""
    found = normalised(product)
    assert (found[1] if found else None) == name
    assert found is None or name in DEVICE_NAMES[found[0]]


@pytest.mark.parametrize(
    "name", [name for names in DEVICE_NAMES.values() for name in names if not name.endswith(" shared")]
)
def test_flytes_own_names_stay_as_they_are(name: str) -> None:
    """In any case, as people declare them."""
    for spelled in (name, name.lower(), name.upper()):
        found = normalised(spelled)
        assert found is not None
        assert found[1] == name


def test_every_nvidia_device_of_flyte_has_a_product_in_this_table() -> None:
    """So that none is forgotten."""
    reached = {name for _, name in PRODUCTS}
    for device_class in ("GPU", "AMD_GPU", "HABANA_GAUDI", "TPU", "APPLE_SILICON"):
        assert {name for name in DEVICE_NAMES[device_class] if not name.endswith(" shared")} <= reached


@pytest.mark.parametrize(("memory", "name"), [(None, "A100"), (40 * GIB, "A100"), (80 * GIB, "A100_80G")])
def test_memory_decides_where_the_name_does_not(memory: int | None, name: str) -> None:
    """Early A100s are called by their board."""
    assert normalised("NVIDIA A100-PG506-232", memory) == ("GPU", name)
    assert normalised("NVIDIA H100 PCIe", memory) == ("GPU", "H100")
