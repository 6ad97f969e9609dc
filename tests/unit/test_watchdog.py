"""What the watchdog makes of its readings, told without processes; and which processes belong to whom, with some."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from flyte_celery.supervisor import usage
from flyte_celery.supervisor.confinement import Confinement
from flyte_celery.supervisor.family import Family
from flyte_celery.supervisor.watchdog import FASTEST, LATEST, SOONEST, Bound, Breach, Usage, Watchdog, Watched
from tests.helpers.waiting import wait_until

MIB = 2**20


def watched(memory: int | None = 256 * MIB, processes: int | None = 100) -> Watched:
    return Watched(pid=1, bounds=Confinement(memory=memory, processes=processes), inherited=0)


def test_the_next_look_comes_before_the_fastest_task_can_be_there() -> None:
    """At 4 GiB/s, 128 MiB of room are 31 ms."""
    each = watched()
    each.seen(128 * MIB, 1, now=10.0)
    assert each.next_look == pytest.approx(10.0 + 128 * MIB / FASTEST)
    each.seen(255 * MIB, 1, now=11.0)
    assert each.next_look == pytest.approx(11.0 + SOONEST)
    assert each.breach() is None
    each.seen(256 * MIB + 1, 1, now=12.0)
    breach = each.breach()
    assert breach is not None and (breach.bound, breach.used, breach.limit) == (
        Bound.MEMORY,
        256 * MIB + 1,
        256 * MIB,
    )


def test_nothing_is_looked_at_less_than_four_times_a_second() -> None:
    each = watched(memory=None)
    each.seen(10**12, 1, now=1.0)
    assert each.next_look == 1.0 + LATEST
    assert each.breach() is None


def test_many_processes_are_looked_at_all_the_time() -> None:
    each = watched()
    each.seen(0, 20, now=1.0)
    assert each.next_look == 1.0 + SOONEST
    each.seen(0, 101, now=2.0)
    assert each.breach() == Breach(Bound.PROCESSES, 101, 100)


def test_the_history_tells_what_was_there_before_a_task_began() -> None:
    """It stays short, keeps its beginning, and is exact to a sixty-fourth of the limit."""
    each = watched()
    for moment in range(10_000):
        each.seen(moment * MIB // 40, 1, now=float(moment))
    breach = Breach(Bound.MEMORY, 0, 256 * MIB, tuple(each.history))
    assert len(each.history) < 520
    assert breach.before(-1.0) == breach.before(0.0) == 0
    assert breach.before(4000.0) == pytest.approx(100 * MIB, abs=4 * MIB)
    assert breach.before(1e9) == pytest.approx(250 * MIB, abs=4 * MIB)


def test_what_hardly_changed_is_not_told() -> None:
    assert not Usage(MIB, 1, 20).differs(Usage(2 * MIB - 1, 1, 10))
    assert Usage(MIB, 1, 20).differs(Usage(3 * MIB, 1, 20))
    assert Usage(MIB, 2, 20).differs(Usage(MIB, 1, 20))


class TestProcesses:
    """Real ones, with a launcher that is this process."""

    @pytest.fixture
    def family(self) -> Family:
        return Family(os.getpid(), "TEST_REPLICA")

    @pytest.fixture
    def replica(self, family: Family) -> Iterator[subprocess.Popen[str]]:
        """Starts one child when told so, which holds 60 MiB."""
        child = "import time; held = bytearray(60 * 2**20); print('ready', flush=True); time.sleep(60)"
        code = f"import subprocess, sys; input(); subprocess.Popen([sys.executable, '-c', {child!r}]); input()"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        family.born(7, process.pid)
        yield process
        family.end(7, process.pid)
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()

    def test_a_child_belongs_to_its_replica_and_ends_with_it(
        self, family: Family, replica: subprocess.Popen[str]
    ) -> None:
        family.look()
        assert family.members(7) == [replica.pid]
        self._start_child(replica)
        family.look()
        (child,) = (pid for pid in family.members(7) if pid != replica.pid)
        family.end(7, replica.pid)
        wait_until(lambda: usage.held(child) == 0, description="the end of the child")

    def test_its_memory_counts(self, family: Family, replica: subprocess.Popen[str]) -> None:
        dog = Watchdog(family)
        dog.watch(7, replica.pid, Confinement(memory=40 * MIB), inherited=0)
        assert dog.look(time.monotonic()) == {}
        self._start_child(replica)
        breach = wait_until(lambda: dog.look(time.monotonic()).get(7), description="a breach")
        assert breach.bound is Bound.MEMORY and breach.used > 60 * MIB

    def _start_child(self, replica: subprocess.Popen[str]) -> None:
        assert replica.stdin is not None and replica.stdout is not None
        replica.stdin.write("\n")
        replica.stdin.flush()
        assert replica.stdout.readline() == "ready\n"


def test_readings_of_a_process_that_is_gone_are_zero() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert usage.held(gone.pid) == usage.own(gone.pid) == usage.shares([gone.pid]) == usage.open_files(gone.pid) == 0
    assert usage.kinship(gone.pid) is None


def test_shared_memory_that_nobody_shares_counts_once() -> None:
    before = usage.own(os.getpid())
    with mmap.mmap(-1, 64 * MIB) as block:
        block.write(b"x" * len(block))
        assert usage.own(os.getpid()) - before == pytest.approx(len(block), rel=0.2)


def test_readings_of_this_process() -> None:
    before = usage.held(os.getpid())
    block = bytearray(64 * MIB)
    assert usage.held(os.getpid()) - before == pytest.approx(len(block), rel=0.1)
    assert usage.own(os.getpid()) >= 64 * MIB
    with open(os.devnull) as one:
        many = usage.open_files(os.getpid())
        one.close()
        assert usage.open_files(os.getpid()) == many - 1
    assert usage.kinship(os.getpid()) == usage.Kinship(os.getppid(), os.getpgrp())
    assert usage.total_memory() > 2**28 and usage.cores() >= 1
