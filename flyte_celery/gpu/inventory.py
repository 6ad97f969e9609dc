"""What a host has to give: devices, parts of them and shares, and which of them an environment's request means."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ..devices import Device, DeviceClass

#: How Flyte calls a share of a device: `T4 shared`.
SHARED = " shared"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device, or a part of one that has an address of its own (a MIG instance, a slice)."""

    id: str
    """How its vendor's visibility variable calls it: an NVIDIA UUID, else its number among those of its class."""

    device_class: DeviceClass

    name: str | None
    """Flyte's name, None for a product without one."""

    product: str
    """What its driver calls it; the name again for a declared one."""

    memory: int | None = None
    """Bytes, None when nobody knows."""

    partition: str | None = None
    """The MIG profile or the slice, None for a whole device."""

    shares: int = 1
    """Replicas that may have it at the same time; above 1 it is time-sliced, and is given in shares alone."""

    driver: str | None = None
    """Version of its driver, None when nobody knows."""

    @property
    def label(self) -> str:
        """For people: `L4 GPU-5d5b...`, `A100/1g.5gb MIG-c738...`."""
        part = f"/{self.partition}" if self.partition else ""
        return f"{self.name or self.product}{part} {self.id}"


def fits(wanted: Device, accelerator: Accelerator) -> bool:
    """Whether an accelerator is one of those that a request means, whatever its number.

    `"T4 shared"` means a share of a time-sliced T4, `"T4"` one that nobody shares, a plain count any whole GPU that
    nobody shares. A request without partition means whole devices.
    """
    if accelerator.device_class != wanted.device_class or accelerator.partition != wanted.partition:
        return False
    name = wanted.device
    shared = name is not None and name.endswith(SHARED)
    if shared != (accelerator.shares > 1):
        return False
    if name is None:
        return True
    model = name.removesuffix(SHARED).lower()  # Flyte writes `L40s`, and `L40S shared`
    return model in (str(accelerator.name).lower(), accelerator.product.lower())


def fitting(wanted: Device, accelerators: Iterable[Accelerator]) -> list[Accelerator]:
    """The accelerators that a request may be given."""
    return [accelerator for accelerator in accelerators if fits(wanted, accelerator)]


def most_replicas(wanted: Device, accelerators: Iterable[Accelerator]) -> int:
    """How many replicas with these devices there may be at once. A replica's devices are different ones."""
    number = int(-(-wanted.quantity // 1))  # Flyte takes 1.5, too
    return replicas_of(number, [accelerator.shares for accelerator in fitting(wanted, accelerators)])


def replicas_of(number: int, shares: Collection[int]) -> int:
    """How many replicas there may be at once.

    Args:
        number: Devices that each needs, of which none may be the same.
        shares: How many replicas each device may be given to.
    """
    most = sum(shares) // number
    # The largest n with sum(min(shares, n)) >= n * number.
    while most and sum(min(each, most) for each in shares) < most * number:
        most -= 1
    return most


def described(wanted: Device) -> str:
    """A request in words: `2 x L4`, `1 x A100/1g.5gb`, `1 x GPU`."""
    part = f"/{wanted.partition}" if wanted.partition else ""
    return f"{wanted.quantity} x {wanted.device or wanted.device_class}{part}"


def listed(accelerators: Iterable[Accelerator]) -> str:
    """What there is, in the words of a declaration: `L4:2, A100/1g.5gb:7, T4:1x4`; `no device` for none."""
    counts: dict[tuple[str, int], int] = {}
    for accelerator in accelerators:
        part = f"/{accelerator.partition}" if accelerator.partition else ""
        key = f"{accelerator.name or accelerator.product}{part}", accelerator.shares
        counts[key] = counts.get(key, 0) + 1
    words = [f"{name}:{count}{f'x{shares}' if shares > 1 else ''}" for (name, shares), count in counts.items()]
    return ", ".join(words) or "no device"
