"""Groups of cgroup v2, on folders that look like the kernel's: what is written where, and when none is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flyte_celery.supervisor.cgroup import Groups, delegated
from flyte_celery.supervisor.confinement import Confinement

BOUNDS = Confinement(memory=64 * 2**20, cores=1.5, processes=10)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A delegated group that holds this process."""
    own = tmp_path / "service"
    own.mkdir()
    (own / "cgroup.controllers").write_text("cpu io memory pids\n")
    (own / "cgroup.subtree_control").write_text("")
    (own / "cgroup.procs").write_text(f"{os.getpid()}\n")
    return own


def ours(pid: int) -> bool:
    """As the launcher knows its worker."""
    return pid == os.getpid()


def test_a_delegated_group_has_one_for_each_replica(tmp_path: Path, own: Path) -> None:
    """The worker itself moves out of the way, because the kernel limits children or processes, not both."""
    groups = delegated(ours, tmp_path, "/service")
    assert groups is not None and groups.limits_cores
    assert (own / "worker" / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    group = groups.make(3, BOUNDS)
    assert group is not None
    written = {path.name: path.read_text() for path in group.path.iterdir()}
    assert written == {
        "memory.max": str(64 * 2**20),
        "memory.oom.group": "1",
        "pids.max": "10",
        "cpu.max": "150000 100000",
    }


def test_what_was_not_asked_for_is_not_limited(own: Path) -> None:
    group = Groups(own, frozenset({"memory", "pids", "cpu"})).make(1, Confinement())
    assert group is not None and list(group.path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [("cgroup.controllers", "cpu pids\n"), ("cgroup.procs", f"{os.getpid()}\n1\n"), ("cgroup.procs", None)],
    ids=["memory is not delegated", "others are in it", "it is none of version 2"],
)
def test_no_group_is_made_where_the_kernel_would_not_have_it(
    tmp_path: Path, own: Path, file: str, text: str | None
) -> None:
    if text is None:
        (own / file).unlink()
    else:
        (own / file).write_text(text)
    assert delegated(ours, tmp_path, "/service") is None
    assert not (own / "worker").exists()


def test_a_group_tells_whether_the_kernel_killed_in_it(own: Path) -> None:
    group = Groups(own, frozenset({"memory"})).make(1, BOUNDS)
    assert group is not None and not group.was_out_of_memory()
    (group.path / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 1\n")
    (group.path / "memory.peak").write_text("67108864\n")
    assert (group.was_out_of_memory(), group.peak()) == (True, 64 * 2**20)


def test_a_group_that_the_kernel_refuses_leaves_the_watchdog_alone(own: Path) -> None:
    """A replica starts all the same."""
    (own / f"replica-{os.getpid()}-1").mkdir()
    assert Groups(own, frozenset({"memory"})).make(1, BOUNDS) is None
