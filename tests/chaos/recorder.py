"""The book that tasks keep themselves, in files: no Redis, no Celery, no clock but the machine's monotonic one.

Each process appends to a file of its own, one `write` per line, so a line is there or not, whatever kills the process.
"""

from __future__ import annotations

import os
import threading
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


class Reader:
    """Reads what was written, each line once: a driver looks often, and there are many.

    Args:
        folder: The directory of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: How far each file was read, in bytes.
        self._read: dict[str, int] = {}
        self._marks: list[Mark] = []
        #: Threads of a load and of a fault look at the same time.
        self._lock = threading.Lock()

    def marks(self) -> list[Mark]:
        """Everything that was written since `forget`, in the order of time."""
        with self._lock:
            self._read_all()
            self._marks.sort(key=lambda mark: mark.at)
            return list(self._marks)

    def forget(self) -> None:
        """Leave out what was written so far."""
        with self._lock:
            self._read_all()
            self._marks.clear()

    def _read_all(self) -> None:
        for file in self._folder.iterdir():
            self._read_on(file)

    def _read_on(self, file: Path) -> None:
        begin = self._read.get(file.name, 0)
        if file.stat().st_size == begin:
            return
        with file.open("rb") as lines:
            lines.seek(begin)
            data = lines.read()
        # A line over the boundary of two pages is written in two steps: its end comes with the next look.
        whole = data[: data.rfind(b"\n") + 1]
        self._read[file.name] = begin + len(whole)
        self._marks += map(_mark, whole.decode().splitlines())


@cache
def _file(pid: int) -> int:
    return os.open(Path(os.environ[FOLDER], str(pid)), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def _mark(line: str) -> Mark:
    task, event, pid, worker, at = line.split()
    return Mark(task, event, int(pid), worker, float(at))
