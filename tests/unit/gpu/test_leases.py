"""Who has a device: locks between real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flyte_celery.devices import GPU, Device
from flyte_celery.gpu import leases as module
from flyte_celery.gpu.declare import declared
from flyte_celery.gpu.leases import Lease, Leases, default_directory, lock
from tests.helpers import processes
from tests.helpers.waiting import wait_until


@pytest.fixture
def taken() -> Iterator[list[Lease]]:
    """Leases of a test, closed at its end."""
    found: list[Lease] = []
    yield found
    for lease in found:
        lease.close()


def host(folder: Path, wanted: Device, inventory: str) -> Leases:
    """One worker's view of a host; several of one folder are on the same host."""
    return Leases(folder / "locks", wanted, declared(inventory))


def take(leases: Leases, taken: list[Lease], holder: str = "me") -> list[str] | None:
    """The labels of what is given, and None for nothing."""
    lease = leases.take(holder)
    if lease is None:
        return None
    taken.append(lease)
    return lease.labels


class TestWhole:
    """Devices that one replica has alone."""

    def test_each_is_given_once(self, tmp_path: Path, taken: list[Lease]) -> None:
        """Also to workers of other environments."""
        one, other = (host(tmp_path, GPU("L4", 1), "L4:2") for _ in range(2))
        assert [take(each, taken) for each in (one, other, one, other)] == [["L4 0"], ["L4 1"], None, None]

    def test_it_is_free_when_it_is_let_go(self, tmp_path: Path, taken: list[Lease]) -> None:
        """The next one gets it."""
        leases = host(tmp_path, GPU("L4", 1), "L4:1")
        take(leases, taken)
        taken.pop().close()
        assert take(leases, taken) == ["L4 0"]

    def test_several_are_given_all_or_not_at_all(self, tmp_path: Path, taken: list[Lease]) -> None:
        """What cannot be used is not kept."""
        pair, single = (host(tmp_path, GPU("L4", number), "L4:3") for number in (2, 1))
        assert take(pair, taken) == ["L4 0", "L4 1"]
        assert take(pair, taken) is None
        assert take(single, taken) == ["L4 2"]

    def test_of_two_that_ask_at_once_for_all_there_is_one_gets_it(
        self, tmp_path: Path, taken: list[Lease], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Though each begins where the other ends, and both have taken one before either takes another."""
        one, other = (host(tmp_path, GPU("L4", 2), "L4:2") for _ in range(2))
        other.accelerators = tuple(reversed(other.accelerators))
        real, both = module.lock, threading.Barrier(2)

        def lock_together(path: Path, part: int | None, holder: str) -> int | None:
            file = real(path, part, holder)
            if path.name.startswith("GPU"):
                with contextlib.suppress(threading.BrokenBarrierError):
                    both.wait(timeout=1)
            return file

        monkeypatch.setattr(module, "lock", lock_together)
        with ThreadPoolExecutor(2) as pool:
            given = list(pool.map(lambda leases: take(leases, taken), (one, other)))
        assert sorted(len(labels or ()) for labels in given) == [0, 2]

    def test_holders_are_named(self, tmp_path: Path, taken: list[Lease]) -> None:
        """To ask takes nothing."""
        leases = host(tmp_path, GPU("L4", 1), "L4:2")
        take(leases, taken, "vision@there, replica 1")
        assert leases.holders() == {"L4 0": "vision@there, replica 1"}
        assert take(leases, taken) == ["L4 1"]


class TestShares:
    """Devices that several replicas have at once."""

    def test_they_are_spread_over_the_devices(self, tmp_path: Path, taken: list[Lease]) -> None:
        """The first share of each, then the second."""
        leases = host(tmp_path, GPU("T4 shared", 1), "T4:2x2")
        given = [take(leases, taken) for _ in range(5)]
        assert given == [["T4 0#0"], ["T4 1#0"], ["T4 0#1"], ["T4 1#1"], None]

    def test_a_whole_device_and_its_shares_exclude_each_other(self, tmp_path: Path, taken: list[Lease]) -> None:
        """Though two workers of a host may see it differently."""
        shared, whole = host(tmp_path, GPU("T4 shared", 1), "T4:1x2"), host(tmp_path, GPU("T4", 1), "T4:1")
        assert take(shared, taken, "a share") == ["T4 0#0"]
        assert take(whole, taken) is None
        assert whole.holders() == {"T4 0": "a share"}
        taken.pop().close()
        assert take(whole, taken, "all of it") == ["T4 0"]
        assert take(shared, taken) is None
        assert shared.holders() == {"T4 0#0": "all of it", "T4 0#1": "all of it"}

    def test_one_replica_never_gets_two_of_one_device(self, tmp_path: Path, taken: list[Lease]) -> None:
        """It asked for two devices."""
        leases = host(tmp_path, Device(2, "GPU", "T4 shared"), "T4:2x2")
        assert [take(leases, taken) for _ in range(3)] == [["T4 0#0", "T4 1#0"], ["T4 0#1", "T4 1#1"], None]


#: Ends when its standard input does, or when it is killed; with "fork" a child of its goes on until a file is gone.
HOLDER = """
import os, sys, pathlib, time
mark = pathlib.Path(sys.argv[2])
if sys.argv[1] == "fork" and os.fork() == 0:
    mark.touch()
    while mark.exists():
        time.sleep(0.01)
    os._exit(0)
print("there", flush=True)
sys.stdin.read()
"""


def hand_over(lease: Lease, mode: str, mark: Path) -> subprocess.Popen[str]:
    """Start a process that has a lease, and let go of it here."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, mode, str(mark)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=lease.files,
    )
    lease.close()
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


class TestProcesses:
    """A lease lives exactly as long as the processes that hold it."""

    def test_it_goes_with_a_killed_process(self, tmp_path: Path, taken: list[Lease]) -> None:
        """And not before."""
        leases = host(tmp_path, GPU("L4", 1), "L4:1")
        lease = leases.take("it")
        assert lease is not None
        with hand_over(lease, "alone", tmp_path / "mark") as process:
            assert take(leases, taken) is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert take(leases, taken) == ["L4 0"]

    def test_it_stays_with_a_fork_of_a_killed_process(self, tmp_path: Path, taken: list[Lease]) -> None:
        """Which may still use the device."""
        leases, mark = host(tmp_path, GPU("L4", 1), "L4:1"), tmp_path / "mark"
        lease = leases.take("it")
        assert lease is not None
        with hand_over(lease, "fork", mark) as process:
            wait_until(mark.exists, description="the fork")
            (child,) = processes.descendants(process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert take(leases, taken) is None
        mark.unlink()
        wait_until(lambda: take(leases, taken), description="the device's return")
        wait_until(lambda: not processes.alive(child))

    def test_what_a_replica_has_started_and_left_is_ended_before_the_next_one_has_the_device(
        self, tmp_path: Path, taken: list[Lease]
    ) -> None:
        """It has not the lock, but the variables; what has another share, or another device, is left alone."""
        shared, whole = host(tmp_path, GPU("T4 shared", 1), "T4:1x3"), host(tmp_path, GPU("T4", 1), "T4:1")
        left: list[subprocess.Popen[bytes]] = []
        for _ in range(3):
            lease = shared.take("it")
            assert lease is not None
            left.append(subprocess.Popen(["sleep", "600"], env={**os.environ, **lease.variables}))
            taken.append(lease)
        try:
            taken.pop(1).close()
            assert take(shared, taken) is None
            assert shared.left_behind == {"T4 0": [left[1].pid]}
            assert left[1].wait(timeout=60) == -signal.SIGKILL
            assert take(shared, taken) == ["T4 0#1"]
            assert shared.left_behind == {}
            assert left[0].poll() is left[2].poll() is None
            while taken:
                taken.pop().close()
            assert take(whole, taken) is None
            assert [each.wait(timeout=60) for each in (left[0], left[2])] == [-signal.SIGKILL] * 2
            assert take(whole, taken) == ["T4 0"]
        finally:
            for each in left:
                each.kill()
                each.wait()

    def test_many_that_ask_at_once_never_share(self, tmp_path: Path) -> None:
        """Each writes what it got; nobody lets go before all have asked."""
        script = f"""
import sys
from pathlib import Path
from flyte_celery.devices import GPU
from flyte_celery.gpu.declare import declared
from flyte_celery.gpu.leases import Leases
leases = Leases(Path({str(tmp_path / "locks")!r}), GPU("L4", 1), declared("L4:3"))
sys.stdin.readline()
lease = leases.take("me")
print(lease.labels[0] if lease else "none", flush=True)
sys.stdin.read()
"""
        crowd = [
            subprocess.Popen(
                [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            for _ in range(8)
        ]
        for each in crowd:
            assert each.stdin is not None
            each.stdin.write("go\n")
        given = [each.stdout.readline().strip() for each in crowd if each.stdout is not None]
        for each in crowd:
            each.communicate()
        assert sorted(given) == ["L4 0", "L4 1", "L4 2", *["none"] * 5]


class TestFiles:
    """The directory is everybody's."""

    def test_every_user_can_lock_what_another_has_made(self, tmp_path: Path, taken: list[Lease]) -> None:
        """Whatever the umask."""
        old = os.umask(0o077)
        try:
            take(host(tmp_path, GPU("L4", 1), "L4:1"), taken)
        finally:
            os.umask(old)
        assert (tmp_path / "locks").stat().st_mode & 0o7777 == 0o1777
        assert (tmp_path / "locks" / "GPU-0").stat().st_mode & 0o777 == 0o666

    def test_a_lock_on_a_file_that_was_removed_meanwhile_does_not_count(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Somebody tidies up between opening and locking: the next one would lock another file."""
        path, opened, removed = tmp_path / "file", module._opened, []

        def open_and_lose(path: Path) -> int:
            file = opened(path)
            if not removed:
                removed.append(path.unlink())
            return file

        monkeypatch.setattr(module, "_opened", open_and_lose)
        file = lock(path, None, "me")
        assert file is not None
        assert os.fstat(file).st_ino == path.stat().st_ino
        os.close(file)

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        """The directory is everybody's; what it points to may not be."""
        (tmp_path / "secret").write_text("as it was")
        (tmp_path / "link").symlink_to(tmp_path / "secret")
        with pytest.raises(OSError):
            lock(tmp_path / "link", None, "me")
        assert (tmp_path / "secret").read_text() == "as it was"

    def test_the_place_is_the_same_for_all(self) -> None:
        """It depends on the host alone."""
        assert default_directory().name == "flyte-celery-devices"
        assert default_directory().parent in (Path("/run/lock"), Path("/tmp"))


class TestBroken:
    """Devices that nobody is given."""

    def test_they_are_left_out_for_all_workers_until_the_note_is_removed(
        self, tmp_path: Path, taken: list[Lease]
    ) -> None:
        """The note has the reason."""
        one, other = (host(tmp_path, GPU("L4", 1), "L4:2") for _ in range(2))
        note = one.condemn(one.accelerators[0], "XID 79, and a long story")
        assert one.condemn(one.accelerators[0], "XID 79") == note
        assert other.broken() == {"0": "XID 79"}
        assert take(other, taken) == ["L4 1"]
        assert take(other, taken) is None
        note.unlink()
        assert take(other, taken) == ["L4 0"]

    def test_one_that_is_suspected_comes_back_by_itself(self, tmp_path: Path, taken: list[Lease]) -> None:
        """Until then it is like the others, and what a driver says comes first."""
        one, other = (host(tmp_path, GPU("L4", 1), "L4:1") for _ in range(2))
        note = one.condemn(one.accelerators[0], "GPU is lost", 600)
        assert other.broken()["0"].startswith("GPU is lost; it is tried again at ")
        assert (other.free(), take(other, taken)) == (0, None)
        sure = one.condemn(one.accelerators[0], "XID 79")
        assert other.broken() == {"0": "XID 79"}
        sure.unlink()
        os.utime(note, (past := time.time() - 1, past))
        assert other.broken() == {}
        assert take(other, taken) == ["L4 0"]
