"""Whether this host has a device that an environment asks for."""

from __future__ import annotations

from pathlib import Path

from ..devices import Device

#: Where NVIDIA's driver lists its devices, one folder each.
_NVIDIA = Path("/proc/driver/nvidia/gpus")


def can_offer(device: Device) -> bool:
    """Whether this host offers the device, as far as the driver's own files tell."""
    if device.device_class != "GPU" or not _NVIDIA.is_dir():
        return False
    return sum(1 for _ in _NVIDIA.iterdir()) >= device.quantity
