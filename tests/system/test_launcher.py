"""The worker's end of its launcher: nothing that the launcher does, or does not, stops the worker's event loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from flyte_celery.supervisor.processes import Launcher, LauncherEnded, LauncherEvent, Start
from flyte_celery.supervisor.wire import Line
from tests.helpers.processes import kill
from tests.helpers.projects import PATIENCE
from tests.helpers.waiting import wait_until

#: An application whose import does not end.
IMPORTS_FOR_EVER = """
    import signal

    signal.pause()
"""

#: More commands of either kind than a socket takes that nobody reads.
MANY = 600


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    """A launcher that is importing its application."""
    (tmp_path / "importing.py").write_text("".join(line.strip() + "\n" for line in IMPORTS_FOR_EVER.splitlines()))
    launcher = Launcher({}, {**os.environ, "PYTHONPATH": str(tmp_path)}, module="importing", imports=True)
    yield launcher
    kill(launcher.pid)
    launcher.close()


def test_a_worker_waits_for_no_launcher_that_imports(launcher: Launcher) -> None:
    """A lease is proven again and again meanwhile, and replicas are asked for; when it has died they are gone."""
    lines: list[Line] = []

    def ask() -> None:
        for number in range(MANY):
            launcher.keep_until(float(number))
            if number < 100:
                lines.append(launcher.start(Start(number, {"LARGE": "x" * 8192})))

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert lines[0].receive() == ([], False)
    kill(launcher.pid)
    events: list[LauncherEvent] = []

    def ended() -> bool:
        events.extend(launcher.receive())
        return bool(events)

    wait_until(ended, PATIENCE, "the end of the launcher")
    assert [type(event) for event in events] == [LauncherEnded]
    for line in lines:
        assert line.receive() == ([], True)
        line.close()
