"""Real workers for system tests: `celery -A MODULE worker ...` in a process of its own, with its log in a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.helpers import processes
from tests.helpers.waiting import wait_until

#: Tells the processes of one worker from all others, also when their parent is gone.
_MARK = "FLYTE_CELERY_TEST_WORKER"

#: What Celery logs when a worker consumes.
_READY = "ready."

_REPOSITORY = Path(__file__).resolve().parents[2]


def write_module(folder: Path, source: str, name: str = "proj") -> Path:
    """Write a module of a small project and return its path.

    Args:
        folder: Directory of the project; workers of it are started with it as `folder`.
        source: The module's text; common indentation is removed.
        name: Dotted module name; packages on the way are made.
    """
    *packages, module = name.split(".")
    for package in packages:
        folder = folder / package
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
    path = folder / f"{module}.py"
    path.write_text(textwrap.dedent(source))
    return path


def project_environment(folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment variables of a process that works on the project in `folder`."""
    path = os.pathsep.join([str(folder), str(_REPOSITORY)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(extra or {})}


def run_python(folder: Path, source: str, env: Mapping[str, str] | None = None, timeout: float = 60.0) -> str:
    """Run Python code in a process of its own, in the project in `folder`, and return what it printed.

    Raises:
        AssertionError: It ended with a non-zero status; the message has its output and its errors.
        subprocess.TimeoutExpired: It still ran after `timeout` seconds, and was killed.
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        cwd=folder,
        env=project_environment(folder, env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, f"The code ended with status {result.returncode}.\n{result.stdout}\n{result.stderr}"
    return result.stdout


def run_module(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run `python -m *arguments` in the project in `folder` to its end, and return its status and what it printed.

    Raises:
        subprocess.TimeoutExpired: It still ran after `timeout` seconds, and was killed.
    """
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=project_environment(folder, env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


class Worker:
    """One `celery` command that keeps running, in a process group of its own.

    Args:
        folder: The project's directory: working directory, import path and place of the log.
        arguments: The command line behind `celery`, as in `["-A", "proj", "worker", "-Q", "env"]`.
        env: Environment variables besides those of the test run.
        name: Names the log file, for tests with several workers.
        within: A command that runs another one, as `ip netns exec NAME`.
    """

    def __init__(
        self,
        folder: Path,
        arguments: list[str],
        env: Mapping[str, str] | None = None,
        name: str = "worker",
        within: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self._mark = uuid.uuid4().hex
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "celery", *arguments],
                cwd=folder,
                env=project_environment(folder, {**(env or {}), _MARK: self._mark}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the worker's main process."""
        return self.process.pid

    def log(self) -> str:
        """Everything that the worker's processes have written so far."""
        return self.log_path.read_text(errors="replace")

    def log_tail(self, lines: int = 60) -> str:
        """The last lines of the log, under a heading with the worker's name."""
        return "\n".join([f"--- {self.name}, end of {self.log_path}", *self.log().splitlines()[-lines:]])

    def wait_for_log(self, text: str, timeout: float = 60.0) -> None:
        """Wait until the log has `text`.

        Raises:
            AssertionError: The worker ended first, or the time is over; the message has the end of the log.
        """
        deadline = time.monotonic() + timeout

        def settled() -> bool:
            return self.process.poll() is not None or text in self.log() or time.monotonic() > deadline

        wait_until(settled, timeout + 1)
        if text not in self.log():
            status = self.process.poll()
            ending = f"still runs after {timeout:g} s" if status is None else f"ended with status {status}"
            raise AssertionError(f"The worker {ending} and never logged {text!r}.\n{self.log_tail()}")

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until the worker says that it consumes."""
        self.wait_for_log(_READY, timeout)

    def terminate(self) -> None:
        """Ask the main process for a warm shutdown (SIGTERM)."""
        self.process.terminate()

    def kill(self) -> None:
        """Kill the main process alone (SIGKILL), as the kernel does when memory runs out."""
        self.process.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for the end of the main process and return its exit status.

        Raises:
            AssertionError: It still runs after `timeout` seconds; the message has the end of the log.
        """
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"The worker still runs after {timeout:g} s.\n{self.log_tail()}") from None

    def processes(self) -> list[int]:
        """Every living process of this worker, the main one included, also those whose parent has ended."""
        return processes.carrying(_MARK, self._mark)

    def destroy(self) -> None:
        """Kill whatever is left of the worker, its whole process tree, and reap the main process."""
        processes.kill_carrying(_MARK, self._mark)
        self.process.wait()
