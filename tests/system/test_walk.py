"""A short random walk of a fleet; `make walk` takes minutes, other seeds, and is strict about time."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.workers import run_module


# The first thirty steps of this seed are of every kind; a slow machine does fewer.
def test_every_invariant_holds_on_a_short_walk(tmp_path: Path) -> None:
    """Workers join, die and are cut off, orders change, tasks come; see `tests.chaos.walk` for what has to hold."""
    options = ["--seed", "197", "--steps", "30", "--minutes", "0.75", "--lease", "4", "--patience", "40"]
    done = run_module(tmp_path, "tests.chaos.walk", *options, "--keep", str(tmp_path / "walk"), timeout=230)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every invariant held." in done.stdout
