"""`make demo` on its own: it ends by itself, tells the whole story, and leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import processes
from tests.helpers.waiting import wait_until

DEMO = Path(__file__).resolve().parents[2] / "examples" / "digits" / "demo.py"

#: A burst that is long enough for a second replica to come before it is over.
SMALL = {"DEMO_BURST": "1000", "DEMO_AWAITED": "50", "DEMO_WARM": "10", "DEMO_COLD": "2", "DEMO_SCALEDOWN_TTL": "2"}


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the demo keeps what it needs while it runs; pytest's own folders are too long for a Redis socket."""
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        yield Path(folder)


@pytest.fixture
def demo(temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """A small demo, started as the Makefile does, in a shell with a broker URL that is not for it."""
    process = subprocess.Popen(
        [sys.executable, str(DEMO)],
        env={**os.environ, **SMALL, "TMPDIR": str(temporary), "CELERY_BROKER_URL": "redis://nobody.invalid:1/0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def summary_of(output: str) -> dict[str, str]:
    """The lines of the summary, by what they are about."""
    lines = output.partition("Summary\n")[2].splitlines()
    return dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines if line.startswith("  "))


def test_it_tells_its_story_and_ends_by_itself(demo: subprocess.Popen[str], temporary: Path) -> None:
    output, errors = demo.communicate(timeout=100)
    assert demo.returncode == 0, output + errors
    assert errors == ""
    summary = summary_of(output)
    mapped, awaited = (float(percent) for percent in re.findall(r"([\d.]+)%", summary["accuracy"]))
    assert min(mapped, awaited) > 90
    warm = float(summary["warm call"].split()[0])
    cold = float(summary["cold call"].split()[0])
    assert cold > 5 * warm
    counts = [int(count) for count in summary["replicas"].split(" -> ")]
    assert (counts[0], counts[-1]) == (0, 0)
    assert max(counts) > 1
    trained = int(summary["model trained"].split()[0])
    assert max(counts) <= trained < 20  # once per replica, not per call; on a busy machine some come and go
    assert list(temporary.iterdir()) == []


def test_ctrl_c_stops_it_and_everything_that_it_started(demo: subprocess.Popen[str], temporary: Path) -> None:
    (log,) = wait_until(lambda: list(temporary.glob("*/demo.log")), 20, "the demo's log")
    wait_until(lambda: " ready." in log.read_text(), 40, "a worker")
    below = processes.descendants(demo.pid)
    demo.send_signal(signal.SIGINT)
    output, errors = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "Interrupted; stopping what was started." in errors
    assert "Traceback" not in output + errors
    assert not [pid for pid in below if processes.alive(pid)]
    assert list(temporary.iterdir()) == []
