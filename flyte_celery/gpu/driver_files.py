"""NVIDIA's devices by the files of the driver, for hosts with neither NVML nor `nvidia-smi`.

They tell neither memory nor MIG profiles: a device that is divided is left out.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from .found import Found

logger = logging.getLogger("flyte_celery")

_FOLDER = Path("proc/driver/nvidia")
_VERSION = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")


def read(root: Path = Path("/")) -> list[Found] | None:
    """The devices of this host, None where the driver is not loaded.

    Args:
        root: The directory that has `proc`.
    """
    folder = root / _FOLDER
    if not (folder / "gpus").is_dir():
        return None
    version = _VERSION.search(_text(folder / "version"))
    found: list[Found] = []
    for number, each in enumerate(sorted((folder / "gpus").iterdir())):
        fields = dict(re.findall(r"^([^:\n]+?)\s*:\s*(.*?)\s*$", _text(each / "information"), re.MULTILINE))
        minor = fields.get("Device Minor", "")
        index = int(minor) if minor.isdigit() else number
        uuid = fields.get("GPU UUID", "")
        divided = any((folder / "capabilities" / f"gpu{index}" / "mig").glob("gi*"))
        if divided:
            logger.warning(
                "The NVIDIA device %d is divided by MIG and is left out: only NVML and nvidia-smi know its instances, "
                "so install one of them (`pip install 'flyte-celery[gpu]'`).",
                index,
            )
        found.append(
            Found(
                index=index,
                uuid=uuid if uuid and "?" not in uuid else str(index),  # question marks until it was first used
                product=fields.get("Model", "unknown"),
                memory=None,
                driver=version[1] if version else None,
                mig=divided,
            )
        )
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
