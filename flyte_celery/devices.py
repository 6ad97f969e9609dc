"""Accelerators: `Device`, the functions that make one (`GPU`, `TPU`, ...), and the tables of what exists.

The names, counts and partitions are those of Flyte's SDK 2.12.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

logger = logging.getLogger("flyte_celery")

DeviceClass = Literal["GPU", "TPU", "NEURON", "AMD_GPU", "HABANA_GAUDI", "APPLE_SILICON"]

GPUType = Literal[
    "A2", "A10", "A10G", "A100", "A100_80G", "B200", "H100", "H200", "L4", "L40s", "T4", "V100",
    "RTX_PRO_4500", "RTX_PRO_6000", "GB10", "T4 shared", "L4 shared", "A10G shared", "A10 shared", "L40S shared",
]  # fmt: skip
TPUType = Literal["V5E", "V5P", "V6E"]
NeuronType = Literal["Inf1", "Inf2", "Trn1", "Trn1n", "Trn2", "Trn2u"]
AMDType = Literal["MI100", "MI210", "MI250", "MI250X", "MI300A", "MI300X", "MI325X", "MI350X", "MI355X"]
GaudiType = Literal["Gaudi1"]

_APPLE = "AppleSilicon"

#: The names of each class. A TPU is asked for by `TPU(...)` only, the others also by a string `NAME:COUNT`.
DEVICE_NAMES: Mapping[DeviceClass, tuple[str, ...]] = {
    "GPU": get_args(GPUType),
    "TPU": get_args(TPUType),
    "NEURON": get_args(NeuronType),
    "AMD_GPU": get_args(AMDType),
    "HABANA_GAUDI": get_args(GaudiType),
    "APPLE_SILICON": (_APPLE,),
}

_ONE: Sequence[int] = (1,)
_UP_TO_EIGHT: Sequence[int] = range(1, 9)
_TRAINIUM: Sequence[int] = (1, 4, 8, 16)

#: Counts that a string `NAME:COUNT` may have; a name that is not here exists one at a time.
_COUNTS: Mapping[str, Sequence[int]] = {
    **dict.fromkeys(
        ("A10", "A10G", "A100", "A100_80G", "B200", "H100", "H200", "L4", "L40s", "V100", "T4"), _UP_TO_EIGHT
    ),
    "RTX_PRO_6000": (1, 2),
    **dict.fromkeys(("Trn1", "Trn1n", "Trn2", "Trn2u"), _TRAINIUM),
    "Inf1": range(1, 17),
    "Inf2": range(1, 13),
}

_SLICES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16", "16x16x24",
)  # fmt: skip

#: Partitions of a GPU (MIG profiles) and slices of a TPU. A device that is not here takes any partition.
PARTITIONS: Mapping[str, tuple[str, ...]] = {
    "A100": ("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"),
    "A100_80G": ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"),
    "H100": ("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"),
    "H200": ("1g.18gb", "1g.35gb", "2g.35gb", "3g.71gb", "4g.71gb", "7g.141gb"),
    "RTX_PRO_6000": ("1g.24gb", "2g.48gb", "4g.96gb"),
    "V5E": _SLICES,
    "V6E": _SLICES,
    "V5P": _CUBES,
}

#: Old spellings and what they are called now.
ALIASES: Mapping[str, str] = {"A100 80G": "A100_80G", "RTX PRO 6000": "RTX_PRO_6000"}

#: What a cluster's nodes are labelled with; a name that is not here is its own label.
NODE_LABELS: Mapping[str, str] = {
    "A100": "nvidia-tesla-a100",
    "A100_80G": "nvidia-a100-80gb",
    "H100": "nvidia-tesla-h100",
    "L4": "nvidia-l4",
    "T4": "nvidia-tesla-t4",
    "V100": "nvidia-tesla-v100",
    "V5E": "tpu-v5-lite-podslice",
    "V5P": "tpu-v5p-slice",
    "V6E": "tpu-v6e-slice",
}

#: The Kubernetes resource that counts the devices of a class; Apple Silicon has none.
KUBERNETES_RESOURCES: Mapping[DeviceClass, str] = {
    "GPU": "nvidia.com/gpu",
    "TPU": "google.com/tpu",
    "NEURON": "aws.amazon.com/neuron",
    "AMD_GPU": "amd.com/gpu",
    "HABANA_GAUDI": "habana.ai/gaudi",
}


@dataclass(frozen=True, slots=True)
class Device:
    """Accelerators that a task needs. `GPU(...)`, `TPU(...)` and their siblings make one and check the names.

    Args:
        quantity: How many, at least 1. There is no upper bound.
        device_class: Which kind of accelerator. Not checked.
        device: The model, such as `"A100"`. None: any. Not checked, but for Apple Silicon.
        partition: Part of a GPU (a MIG profile) or slice of a TPU. None: all of it. Not checked.

    Raises:
        TypeError: `quantity` is no number.
        ValueError: `quantity` is below 1, or Apple Silicon's class, name and quantity do not go together.
    """

    quantity: int
    device_class: DeviceClass
    device: str | None = None
    partition: str | None = None

    def __post_init__(self) -> None:
        _check_quantity(self.quantity)
        if (self.device_class == "APPLE_SILICON") != (self.device == _APPLE):
            raise ValueError(
                f"device={self.device!r} and device_class={self.device_class!r} do not go together: "
                "use APPLE_SILICON() for an Apple Silicon device."
            )
        if self.device == _APPLE and self.quantity != 1:
            raise ValueError(
                f"quantity={self.quantity!r} is too many: a machine has one Apple Silicon device, so use 1."
            )

    @property
    def node_label(self) -> str | None:
        """What the nodes that have this model are labelled with; None when any model will do."""
        return None if self.device is None else NODE_LABELS.get(self.device, self.device)


def GPU(device: GPUType, quantity: int, partition: str | None = None) -> Device:
    """NVIDIA GPUs.

    Args:
        device: The model. `A100 80G` and `RTX PRO 6000` are old spellings; they are accepted with a warning.
        quantity: How many, at least 1.
        partition: A MIG profile of A100, A100_80G, H100, H200 or RTX_PRO_6000; other models take any text. A shared
            GPU has none.

    Raises:
        TypeError: `quantity` is missing, or no number.
        ValueError: `quantity` is below 1, or the model or its partition does not exist.
    """
    _check_quantity(quantity)
    name = _renamed(device)
    _check_name("GPU", name)
    if partition is not None:
        if name.endswith(" shared"):
            raise ValueError(
                f"partition={partition!r} is not possible for {name!r}: leave it out, or ask for the whole device."
            )
        _check_partition(name, partition)
    return Device(quantity, "GPU", name, partition)


def TPU(device: TPUType, partition: str | None = None) -> Device:
    """A Google TPU; always one, of the given slice.

    Args:
        device: The version.
        partition: The slice, such as `"2x4"` for V5E and V6E or `"2x2x1"` for V5P.

    Raises:
        ValueError: The version or the slice does not exist.
    """
    _check_name("TPU", device)
    if partition is not None:
        _check_partition(device, partition)
    return Device(1, "TPU", device, partition)


def Neuron(device: NeuronType) -> Device:
    """One AWS Inferentia or Trainium device. `Resources(gpu="Trn1:4")` asks for more.

    Raises:
        ValueError: The model does not exist.
    """
    return _single("NEURON", device)


def AMD_GPU(device: AMDType) -> Device:
    """One AMD GPU.

    Raises:
        ValueError: The model does not exist.
    """
    return _single("AMD_GPU", device)


def HABANA_GAUDI(device: GaudiType) -> Device:
    """One Habana Gaudi device.

    Raises:
        ValueError: The model does not exist.
    """
    return _single("HABANA_GAUDI", device)


def APPLE_SILICON() -> Device:
    """The GPU of an Apple Silicon machine."""
    return _single("APPLE_SILICON", _APPLE)


def parse_accelerator(text: str) -> Device:
    """The devices that a string such as `"A100:8"` asks for.

    Args:
        text: `NAME:COUNT`, exactly: case and spaces count. `AppleSilicon` needs no count. Old spellings are accepted
            with a warning.

    Raises:
        ValueError: There is no such accelerator, or not in that number.
    """
    name, separator, count = text.partition(":")
    if text == _APPLE:
        separator, count = ":", "1"
    name = _renamed(name) if separator else name
    device_class = _STRING_CLASSES.get(name)
    allowed = _COUNTS.get(name, _ONE)
    if device_class is None or count not in map(str, allowed):
        raise ValueError(f"gpu={text!r} is no accelerator: {_advice(name, device_class, allowed)}")
    return Device(int(count), device_class, name)


#: Class of each name that a string may have.
_STRING_CLASSES: Mapping[str, DeviceClass] = {
    name: device_class for device_class, names in DEVICE_NAMES.items() if device_class != "TPU" for name in names
}


def _advice(name: str, device_class: DeviceClass | None, allowed: Sequence[int]) -> str:
    if device_class is not None:
        return f"{name} takes a count of {', '.join(map(str, allowed))}, such as {f'{name}:{allowed[0]}'!r}."
    if name in DEVICE_NAMES["TPU"]:
        return f"ask for a TPU with gpu=TPU({name!r})."
    return f"write NAME:COUNT with a name of {', '.join(_STRING_CLASSES)}, or a plain count for any GPU."


def _renamed(name: str) -> str:
    new = ALIASES.get(name)
    if new is None:
        return name
    logger.warning("The GPU name %r is deprecated: write %r.", name, new)
    return new


def _single(device_class: DeviceClass, name: str) -> Device:
    _check_name(device_class, name)
    return Device(1, device_class, name)


def _check_quantity(quantity: object) -> None:
    if not isinstance(quantity, int | float):
        raise TypeError(f"quantity={quantity!r} is no number: use a whole number, 1 or more.")
    if quantity < 1:
        raise ValueError(f"quantity={quantity!r} is too low: ask for at least 1 device.")


def _check_name(device_class: DeviceClass, name: str) -> None:
    if name not in DEVICE_NAMES[device_class]:
        raise ValueError(f"device={name!r} is no {device_class}: use one of {', '.join(DEVICE_NAMES[device_class])}.")


def _check_partition(name: str, partition: str) -> None:
    known = PARTITIONS.get(name)
    if known is not None and partition not in known:
        raise ValueError(f"partition={partition!r} does not exist on {name}: use one of {', '.join(known)}.")
