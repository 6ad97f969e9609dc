"""The worker processes of a contender, for the time of a block."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import processes

_ROOT = Path(__file__).parents[2]

#: Set for workers and what they fork, so that none outlives a measurement.
_MARK = "BENCH_WORKERS"


@contextmanager
def running(commands: list[list[str]]) -> Iterator[list[int]]:
    """Start workers and yield their process ids; if one ends too early, this process ends with its output."""
    mark = uuid.uuid4().hex
    over = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "workers.log")
        with log.open("wb") as output:
            started = [
                subprocess.Popen(
                    command, cwd=_ROOT, env={**os.environ, _MARK: mark}, stdout=output, stderr=subprocess.STDOUT
                )
                for command in commands
            ]
        for process in started:
            threading.Thread(target=_watch, args=(process, over, log, mark), daemon=True).start()
        try:
            yield [process.pid for process in started]
        finally:
            over.set()
            for process in started:
                process.terminate()
            for process in started:
                _end(process)
            processes.kill_carrying(_MARK, mark)


def _watch(process: subprocess.Popen[bytes], over: threading.Event, log: Path, mark: str) -> None:
    """A client would wait for results that nobody will send."""
    process.wait()
    if not over.is_set():
        over.set()  # the others end because of this one
        sys.stderr.write(f"{log.read_text(errors='replace')}\nA worker ended with status {process.returncode}.\n")
        sys.stderr.flush()
        processes.kill_carrying(_MARK, mark)
        os._exit(1)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
