"""What processes use, read from `/proc`: each function costs some 20 µs unless it says otherwise. Linux only.

Memory is what a process cannot give back: anonymous pages, shared memory and what was swapped out. Pages of files that
it has mapped (code, model weights read by `mmap`) can be read again, so they do not count.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

#: Whether this system has what this module reads.
AVAILABLE = sys.platform == "linux"

_KIB = 1024
_HELD = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
_SHARES = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")
_OWN = (b"Pss_Shmem:", b"SwapPss:")


@dataclass(frozen=True, slots=True)
class Kinship:
    """Where a process comes from."""

    parent: int
    group: int


def held(pid: int) -> int:
    """Bytes that a process holds, with all that it shares with its parent since it was forked; 0 when it is gone."""
    return sum(_fields(_read(f"/proc/{pid}/status"), _HELD).values())


def own(pid: int) -> int:
    """Bytes that a process holds alone: without what it shares with its parent. Costs 10 ms per GiB."""
    fields = _fields(_read(f"/proc/{pid}/smaps_rollup"), (*_OWN, b"Anonymous:", b"Private_Dirty:"))
    anonymous, private = fields.pop(b"Anonymous:", 0), fields.pop(b"Private_Dirty:", 0)
    # What nobody else has mapped of shared memory is private as well, and is in the sum already.
    return min(anonymous, max(0, private - fields.get(b"Pss_Shmem:", 0))) + sum(fields.values())


def shares(pids: Iterable[int]) -> int:
    """Bytes that processes hold together, each page shared among its users. Costs 10 ms per GiB."""
    return sum(sum(_fields(_read(f"/proc/{pid}/smaps_rollup"), _SHARES).values()) for pid in pids)


def open_files(pid: int) -> int:
    """How many descriptors a process has open; 0 when it is gone."""
    try:
        size = os.stat(f"/proc/{pid}/fd").st_size  # the count itself since Linux 6.2
        return size or len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def last_pid() -> int:
    """The newest process or thread; while it stays the same there is no new one."""
    data = _read("/proc/loadavg")
    return int(data.split()[-1]) if data else 0


def all_pids() -> list[int]:
    """Every process that can be seen from here."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def kinship(pid: int) -> Kinship | None:
    """Where a process comes from; None when it is gone."""
    # Its name stands in parentheses, and may contain some.
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return Kinship(int(fields[1]), int(fields[2])) if len(fields) > 2 else None


def variable(pid: int, name: str) -> str:
    """An environment variable that a process was started with; nothing when it has none, or is another user's."""
    for each in _read(f"/proc/{pid}/environ").split(b"\0"):
        if each.startswith(name.encode() + b"="):
            return each.partition(b"=")[2].decode(errors="replace")
    return ""


def kernel_kills() -> int:
    """How many processes of this machine the kernel has killed because memory ran out, since it was started."""
    for line in _read("/proc/vmstat").splitlines():
        if line.startswith(b"oom_kill "):
            return int(line.split()[1])
    return 0


def total_memory() -> int:
    """Bytes of memory that this machine has, or that the container which this process runs in may use."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdigit():
            return min(machine, int(text))
    return machine


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if AVAILABLE else os.cpu_count() or 1


def _fields(text: bytes, names: tuple[bytes, ...]) -> dict[bytes, int]:
    """Lines such as `RssAnon:  1234 kB`, in bytes."""
    found: dict[bytes, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(b" ") if b"\t" not in line else line.partition(b"\t")
        if name in names:
            found[name] = int(value.split()[0]) * _KIB
    return found


def _read(path: str) -> bytes:
    """A small file; nothing when it, or its process, is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""
    finally:
        os.close(fd)
