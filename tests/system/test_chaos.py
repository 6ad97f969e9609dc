"""The chaos driver itself, with a few faults and a few hundred tasks; `make chaos` runs all of them with thousands.

How soon tasks run again is judged by `make chaos` on a machine of its own; a busy one proves nothing about it.
"""

from __future__ import annotations

from pathlib import Path

from tests.helpers.workers import run_module

FAULTS = ("replica SIGKILL", "worker SIGKILL", "worker SIGTERM", "connections cut before replies")


def test_every_promise_is_kept_under_a_few_faults(tmp_path: Path) -> None:
    options = ["--seed", "1", "--tasks", "200", "--lease", "2", "--patience", "30", "--keep", str(tmp_path / "chaos")]
    done = run_module(tmp_path, "tests.chaos", *options, "--faults", *FAULTS, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    for fault in FAULTS:
        assert f"| {fault} | " in done.stdout
    assert "Every promise was kept." in done.stdout
