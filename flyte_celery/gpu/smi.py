"""NVIDIA's devices by the command `nvidia-smi`, which comes with the driver."""

from __future__ import annotations

import csv
import logging
import re
import shutil
import subprocess

from .found import Found, Instance

logger = logging.getLogger("flyte_celery")

#: Seconds for one answer; without persistence mode the driver first has to wake every device.
PATIENCE = 60.0

_FIELDS = ("index", "uuid", "name", "memory.total", "driver_version", "mig.mode.current")
_DEVICE = re.compile(r"GPU (\d+):")
_INSTANCE = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: ([^)]+)\)")


def read(path: str | None = None) -> list[Found] | None:
    """The devices of this host, None where the command does not exist or does not work.

    Args:
        path: Where to look for the command. None: `PATH`.
    """
    command = shutil.which("nvidia-smi", path=path)
    if command is None:
        return None
    table = _output([command, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"])
    if table is None:
        return None
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(table.splitlines(), skipinitialspace=True)
        if len(row) == len(_FIELDS)
    ]
    divided = any(row[5] == "Enabled" for row in rows)
    instances = _instances(_output([command, "-L"]) or "") if divided else {}
    return [
        Found(
            index=int(index),
            uuid=uuid,
            product=product,
            memory=int(memory) * 2**20 if memory.isdigit() else None,
            driver=driver,
            mig=mode == "Enabled",
            instances=tuple(instances.get(int(index), ())),
        )
        for index, uuid, product, memory, driver, mode in rows
    ]


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        logger.warning("nvidia-smi does not work: %s", exc)
        return None
    if done.returncode:
        logger.warning("nvidia-smi ended with status %d: %s", done.returncode, (done.stdout + done.stderr).strip())
        return None
    return done.stdout


def _instances(listing: str) -> dict[int, list[Instance]]:
    """The MIG instances by the number of their device, from what `nvidia-smi -L` prints."""
    found: dict[int, list[Instance]] = {}
    device = -1
    for line in listing.splitlines():
        if match := _DEVICE.match(line):
            device = int(match[1])
        elif match := _INSTANCE.match(line):
            found.setdefault(device, []).append(Instance(match[2], match[1]))
    return found
