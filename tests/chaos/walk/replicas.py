"""What replicas write of themselves when they start: that they exist, and that they alone have their devices.

A lock of the kernel's, held by an open file, is free when the process is gone and not sooner; so two replicas that have
one device at the same time are seen, whatever Redis says.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from tests.chaos import recorder
from tests.helpers import processes

#: Environment variable: the directory of all this.
FOLDER = "WALK_REPLICAS"

#: Environment variable: the host's name.
HOST = "WALK_HOST"

#: Seconds in which a process that ends may still have its locks: those of the package may be free a moment before.
ENDING = 2.0


def begin(environment: str) -> None:
    """Write down a replica that starts; the replica alone calls it."""
    folder = Path(os.environ[FOLDER])
    if devices := os.environ.get("CUDA_VISIBLE_DEVICES"):
        for device in devices.split(","):
            _take(folder / f"{os.environ[HOST]}:{device}.device", folder / "shared")
    (folder / f"{environment}:{os.environ[recorder.WORKER]}:{os.getpid()}.replica").touch()


def _take(path: Path, shared: Path) -> None:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # for life
    until = time.monotonic() + ENDING
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                with shared.open("a") as log:
                    log.write(f"{path.stem} was given to {os.environ[recorder.WORKER]} while another replica has it\n")
                return None
        time.sleep(0.01)


def alive(folder: Path) -> list[tuple[str, str, int]]:
    """The replicas that existed at the moment of the call: environment, worker and process id.

    All are listed before the first is looked at: what lives after that, lived at that moment.
    """
    found = []
    for name in os.listdir(folder):
        stem, _, kind = name.rpartition(".")
        if kind == "replica":
            environment, worker, pid = stem.split(":")
            found.append((environment, worker, int(pid), folder / name))
    there = []
    for environment, worker, number, path in found:
        if processes.alive(number):
            there.append((environment, worker, number))
        else:
            path.unlink(missing_ok=True)
    return there


def sharings(folder: Path) -> list[str]:
    """A sentence for each replica that was given a device of another one's."""
    path = folder / "shared"
    return path.read_text().splitlines() if path.exists() else []
