"""Benchmarks are run by hand, on a quiet machine; here only that the fleet's still starts: it uses what is inside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.workers import project_environment


def test_the_cost_of_a_fleet_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.fleet", "--seconds", "0.05", "--fleets", "2x1"]
    done = subprocess.run(
        command, cwd=tmp_path, env=project_environment(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    headings, figures = (line.split() for line in done.stdout.splitlines()[-2:])
    assert headings[:4] == ["workers", "environments", "seats", "changing"]
    assert figures[:2] == ["2", "1"]
    assert all(float(figure) >= 0 for figure in figures[2:])
