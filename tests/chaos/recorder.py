"""The book that tasks keep themselves, in files: no Redis, no Celery, no clock but the machine's monotonic one.

Each process appends to a file of its own, one `write` per line, so a line is there or not, whatever kills the process.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: Environment variable: the directory of the files.
FOLDER = "CHAOS_RECORDS"

#: Environment variable: the worker's name, as the driver calls it.
WORKER = "CHAOS_WORKER"


@dataclass(frozen=True, slots=True)
class Mark:
    """A body began or ended."""

    task: str
    #: "start" or "finish".
    event: str
    pid: int
    worker: str
    #: Monotonic seconds, the same clock in every process of the machine.
    at: float


def record(task: str, event: str) -> None:
    """Write a line about a task, from inside its body."""
    os.write(_file(os.getpid()), f"{task} {event} {os.getpid()} {os.environ[WORKER]} {time.monotonic()}\n".encode())


def read(folder: Path) -> list[Mark]:
    """Everything that was written so far, in the order of time."""
    marks = [_mark(line) for path in folder.iterdir() for line in path.read_text().splitlines()]
    return sorted(marks, key=lambda mark: mark.at)


@cache
def _file(pid: int) -> int:
    return os.open(Path(os.environ[FOLDER], str(pid)), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def _mark(line: str) -> Mark:
    task, event, pid, worker, at = line.split()
    return Mark(task, event, int(pid), worker, float(at))
