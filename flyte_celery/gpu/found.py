"""What a source of discovery tells of one NVIDIA device, before it has a name of Flyte's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .inventory import Accelerator
from .products import normalised


@dataclass(frozen=True, slots=True)
class Instance:
    """A MIG instance."""

    uuid: str
    profile: str
    #: Bytes, None when the source does not say.
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A device."""

    index: int
    uuid: str
    product: str
    #: Bytes, None when the source does not say.
    memory: int | None
    driver: str | None
    #: Whether it is divided; then only its instances can be used, if it has any.
    mig: bool = False
    instances: tuple[Instance, ...] = ()


def accelerators(devices: Iterable[Found]) -> list[tuple[int, Accelerator]]:
    """What can be used of the devices, each with the number of its device."""
    usable: list[tuple[int, Accelerator]] = []
    for device in devices:
        named = normalised(device.product, device.memory)
        name = named[1] if named else None
        parts = (
            [(each.uuid, each.memory, without_attributes(each.profile)) for each in device.instances]
            if device.mig
            else [(device.uuid, device.memory, None)]
        )
        usable += [
            (device.index, Accelerator(uuid, "GPU", name, device.product, memory, profile, driver=device.driver))
            for uuid, memory, profile in parts
        ]
    return usable


def without_attributes(profile: str) -> str:
    """A MIG profile without what marks one with media engines, as in `1g.10gb+me`, or a compute instance."""
    return profile.split("+")[0].split("c.")[-1]
