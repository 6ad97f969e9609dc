"""Flyte's name of a product, as vendors' tools spell it: `NVIDIA A100-SXM4-80GB` is `A100_80G`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..devices import DEVICE_NAMES, DeviceClass

#: Above it an A100 is the one of 80 GB; bytes.
_BIG_A100 = 70 * 2**30

#: A virtual GPU (`GRID T4-16Q`, `NVIDIA A10-24Q`) is a part of the device after which it is called.
_VIRTUAL = re.compile(r"^GRID\b|-\d+[ABCQ]\b")

#: What a product is called behind the vendor's name, as a pattern, and Flyte's name. The first that fits wins.
_PRODUCTS: Mapping[str, tuple[DeviceClass, str]] = {
    r"A100\b.*80GB|A100-SXM-80|A100X\b": ("GPU", "A100_80G"),
    r"A100\b": ("GPU", "A100"),
    r"A10G\b": ("GPU", "A10G"),
    r"A10\b": ("GPU", "A10"),
    r"A2\b": ("GPU", "A2"),
    r"B200\b": ("GPU", "B200"),
    r"H100\b": ("GPU", "H100"),
    r"H200\b": ("GPU", "H200"),
    r"L40S\b": ("GPU", "L40s"),
    r"L4\b": ("GPU", "L4"),
    r"T4G?\b": ("GPU", "T4"),
    r"V100S?\b": ("GPU", "V100"),
    r"RTX PRO 4500\b": ("GPU", "RTX_PRO_4500"),
    r"RTX PRO 6000\b": ("GPU", "RTX_PRO_6000"),
    r"GB10\b": ("GPU", "GB10"),
    r"TPU v5 ?(lite|e)\b": ("TPU", "V5E"),
    r"TPU v5p?\b": ("TPU", "V5P"),
    r"TPU v6 ?(lite|e)\b": ("TPU", "V6E"),
    r"(AWS )?Inferentia2\b": ("NEURON", "Inf2"),
    r"(AWS )?Inferentia\b": ("NEURON", "Inf1"),
    **{rf"(Instinct )?{name}\b": ("AMD_GPU", name) for name in sorted(DEVICE_NAMES["AMD_GPU"], key=len, reverse=True)},
    r"(Gaudi|HL-20[05])\b(?! ?[23])": ("HABANA_GAUDI", "Gaudi1"),
    r"M\d( Pro| Max| Ultra)?$": ("APPLE_SILICON", "AppleSilicon"),
}

_VENDOR = re.compile(r"^(NVIDIA|Tesla|Quadro|AMD|Habana|Intel|Google|Apple)[ -]+", re.IGNORECASE)

#: Flyte's names, whatever their case.
_NAMES: Mapping[str, tuple[DeviceClass, str]] = {
    name.lower(): (device_class, name)
    for device_class, names in DEVICE_NAMES.items()
    for name in names
    if not name.endswith(" shared")
}


def normalised(product: str, memory: int | None = None) -> tuple[DeviceClass, str] | None:
    """The class and Flyte's name of a product; None for one that Flyte has no name for, such as a GeForce.

    Args:
        product: What a driver or a vendor's tool calls it, or Flyte's own name.
        memory: Bytes, to tell the A100 of 80 GB from that of 40 where the name does not.
    """
    words = " ".join(product.split())
    if (named := _NAMES.get(words.lower())) is not None:
        return named
    if _VIRTUAL.search(words):
        return None
    while (shorter := _VENDOR.sub("", words, count=1)) != words:
        words = shorter
    for pattern, (device_class, name) in _PRODUCTS.items():
        if re.match(pattern, words, re.IGNORECASE):
            big = name == "A100" and memory is not None and memory > _BIG_A100
            return device_class, "A100_80G" if big else name
    return None
