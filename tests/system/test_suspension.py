"""A machine that is suspended for longer than a lease: its replicas go when it wakes up, others may run in their place.

No test can suspend the machine. The clock that counts a suspension is set ahead for the launcher alone instead, in a
time namespace, and what the worker tells it is of the time before.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flyte_celery.clock import always_on
from flyte_celery.replica.application import ApplicationReference
from flyte_celery.replica.plan import Logging, ReplicaPlan
from flyte_celery.supervisor.processes import Ended, Forked, Launcher, LauncherEvent, Start
from tests.helpers.projects import PATIENCE
from tests.helpers.waiting import wait_until
from tests.helpers.workers import project_environment, write_module

#: Seconds of the suspension, and of a lease that is over only when these count.
SUSPENDED, LEASE = 100_000, 50_000

SOURCE = """
    import flyte_celery as flyte

    app = flyte.init(broker="redis://localhost:1")
    env = flyte.TaskEnvironment("env", reusable=flyte.ReusePolicy(replicas=1))
"""


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    """A launcher for which the machine was suspended; skipped where time namespaces cannot be made."""
    ahead = ["unshare", "--time", "--fork", "--kill-child", "--boottime", str(SUSPENDED)]
    if shutil.which("unshare") is None or subprocess.run([*ahead, "true"], check=False, capture_output=True).returncode:
        pytest.skip("Time namespaces need the command unshare, root, and a kernel that has them.")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.join(ahead)} {sys.executable} "$@"\n')
    python.chmod(0o755)
    write_module(tmp_path, SOURCE)
    plan = ReplicaPlan(
        ApplicationReference("proj", None, "app", (), (str(tmp_path), *sys.path), str(tmp_path)),
        hostname="env@here",
        environment="env",
        concurrency=1,
        logging=Logging(None, None, False, "WARNING", None),
    )
    monkeypatch.setattr(sys, "executable", str(python))
    launcher = Launcher(plan, project_environment(tmp_path))
    monkeypatch.undo()
    yield launcher
    launcher.close()


def test_replicas_go_when_their_lease_was_over_while_the_machine_was_suspended(launcher: Launcher) -> None:
    events: list[LauncherEvent] = []

    def told(kind: type) -> bool:
        events.extend(launcher.receive())
        return any(isinstance(event, kind) for event in events)

    line = launcher.start(Start(1, {}))
    wait_until(lambda: told(Forked), PATIENCE, "a replica")
    launcher.keep_until(always_on() + LEASE)
    wait_until(lambda: told(Ended), PATIENCE, "its end")
    assert [event.status for event in events if isinstance(event, Ended)] == [-signal.SIGKILL]
    line.close()
