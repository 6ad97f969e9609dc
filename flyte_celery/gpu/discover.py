"""Which devices this host has, as far as it can tell by itself: NVIDIA's. Others are declared, see `declare`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from . import driver_files, nvml, smi
from .found import Found, accelerators
from .inventory import Accelerator
from .visibility import is_visible


def discover(environ: Mapping[str, str], root: Path = Path("/")) -> list[Accelerator]:
    """The NVIDIA devices and MIG instances of this host, but those that `CUDA_VISIBLE_DEVICES` hides.

    The first that answers is believed: NVML, the command `nvidia-smi`, the driver's files.

    Args:
        environ: Usually `os.environ`; `PATH` and `CUDA_VISIBLE_DEVICES` count.
        root: The directory that has `proc`. Below another one than `/` NVML, which knows this machine, is not asked.
    """
    hidden = environ.get("CUDA_VISIBLE_DEVICES")
    return [
        accelerator
        for index, accelerator in accelerators(_read(environ, root))
        if is_visible(accelerator, index, hidden)
    ]


def _read(environ: Mapping[str, str], root: Path) -> list[Found]:
    found = nvml.read() if root == Path("/") else None
    if found is None:
        found = smi.read(environ.get("PATH"))
    if found is None:
        found = driver_files.read(root)
    return found or []
