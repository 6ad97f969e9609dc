"""How a process sees only its own devices: the variables that vendors' libraries read when they are loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..devices import DeviceClass
from .inventory import Accelerator

#: Cores of one device, by which the Neuron runtime addresses; of Trainium 2 its logical ones.
_NEURON_CORES = {"Inf1": 4, "Inf2": 2, "Trn1": 2, "Trn1n": 2, "Trn2": 4, "Trn2u": 4}


def variables(device_class: DeviceClass, accelerators: Sequence[Accelerator]) -> dict[str, str]:
    """Environment variables of a replica that has these accelerators, all of one class.

    They must be set before the process imports anything that loads the vendor's library.
    """
    ids = [accelerator.id for accelerator in accelerators]
    match device_class:
        case "GPU":
            # The order matters to numbers alone: CUDA's own counts the fastest device first.
            return {"CUDA_VISIBLE_DEVICES": ",".join(ids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        case "AMD_GPU":
            # HIP counts within what ROCr leaves visible.
            return {
                "ROCR_VISIBLE_DEVICES": ",".join(ids),
                "HIP_VISIBLE_DEVICES": ",".join(str(index) for index in range(len(ids))),
            }
        case "HABANA_GAUDI":
            return {"HABANA_VISIBLE_DEVICES": ",".join(ids)}
        case "NEURON":
            return {"NEURON_RT_VISIBLE_CORES": _pieces(accelerators, [_cores(each) for each in accelerators])}
        case "TPU":
            return {"TPU_VISIBLE_CHIPS": _pieces(accelerators, [_chips(each) for each in accelerators])}
        case _:
            return {}


def _pieces(accelerators: Sequence[Accelerator], sizes: Sequence[int]) -> str:
    """The numbers of the pieces of which devices of the same size consist."""
    return ",".join(
        str(int(accelerator.id) * size + piece)
        for accelerator, size in zip(accelerators, sizes, strict=True)
        for piece in range(size)
    )


def _cores(accelerator: Accelerator) -> int:
    return _NEURON_CORES[accelerator.name or ""]


def _chips(accelerator: Accelerator) -> int:
    return math.prod(int(side) for side in (accelerator.partition or "1").split("x"))


def is_visible(accelerator: Accelerator, index: int, cuda_visible: str | None) -> bool:
    """Whether an operator has left an NVIDIA device to this process, by its own `CUDA_VISIBLE_DEVICES`.

    Args:
        accelerator: The device, or one of its MIG instances.
        index: The device's number.
        cuda_visible: The variable, None where it is not set: everything is visible.
    """
    if cuda_visible is None:
        return True
    for word in (each.strip() for each in cuda_visible.split(",")):
        if word == str(index) or (word.startswith(("GPU-", "MIG-")) and accelerator.id.startswith(word)):
            return True
    return False
