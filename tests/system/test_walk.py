"""A short random walk of a fleet; `make walk` takes minutes, other seeds, and is strict about time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.workers import project_environment


# The first thirty steps of this seed are of every kind; a slow machine does fewer.
def test_every_invariant_holds_on_a_short_walk(tmp_path: Path) -> None:
    """Workers join, die and are cut off, orders change, tasks come; see `tests.chaos.walk` for what has to hold."""
    command = [sys.executable, "-m", "tests.chaos.walk", "--seed", "197", "--steps", "30", "--minutes", "0.75"]
    command += ["--lease", "4", "--patience", "40", "--keep", str(tmp_path / "walk")]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=project_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=230,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every invariant held." in done.stdout
