"""The chaos driver itself, with a few faults and a few hundred tasks; `make chaos` runs all of them with thousands.

How soon tasks run again is judged by `make chaos` on a machine of its own; a busy one proves nothing about it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.workers import project_environment

FAULTS = ("replica SIGKILL", "worker SIGKILL", "worker SIGTERM", "connections cut before replies")


def test_every_promise_is_kept_under_a_few_faults(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--seed", "1", "--tasks", "200", "--lease", "2"]
    command += ["--patience", "30"]
    done = subprocess.run(
        [*command, "--keep", str(tmp_path / "chaos"), "--faults", *FAULTS],
        cwd=tmp_path,
        env=project_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for fault in FAULTS:
        assert f"| {fault} | " in done.stdout
    assert "Every promise was kept." in done.stdout
