"""`Resources`: what one replica of an environment needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .devices import Device, parse_accelerator
from .quantity import cores, size

#: Cores as a number, or a Kubernetes quantity such as `"500m"`.
Cores = int | float | str


@dataclass
class Resources:
    """What one replica needs. Of a pair, the first is what it is given at least, the second what it may use at most.

    Strings are kept as written; `cpu_request()` and its siblings read them.

    Args:
        cpu: Cores as a number, or a Kubernetes quantity such as `"500m"`, or a pair of those.
        memory: A Kubernetes quantity such as `"4Gi"`, or a pair of those. Never a number.
        gpu: A count (0: none), a string such as `"A100:8"`, or a `Device` from `GPU(...)`, `TPU(...)` and the like.
            A string of digits is a count.
        disk: Scratch space, as a Kubernetes quantity.
        shm: Shared memory (`/dev/shm`), as a Kubernetes quantity, or `"auto"` for as much as the memory allows.

    Raises:
        ValueError: A field has the wrong type or shape, is negative, or names an accelerator that does not exist.
    """

    cpu: Cores | tuple[Cores, Cores] | None = None
    memory: str | tuple[str, str] | None = None
    gpu: str | int | Device | None = None
    disk: str | None = None
    shm: str | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        for each in _each("cpu", self.cpu):
            if not isinstance(each, int | float | str):
                raise ValueError(f"cpu={self.cpu!r} is not possible: use cores such as 2, 0.5 or '500m', or a pair.")
            if not isinstance(each, str) and each < 0:
                raise ValueError(f"cpu={self.cpu!r} is negative: use 0 cores or more.")
        for each in _each("memory", self.memory):
            if not isinstance(each, str):
                raise ValueError(f"memory={self.memory!r} is not possible: use a string such as '4Gi', or a pair.")
        for field, value in (("disk", self.disk), ("shm", self.shm)):
            if not isinstance(value, str | None):
                raise ValueError(f"{field}={value!r} is not possible: use a string such as '10Gi'.")
        self.gpu = _checked_gpu(self.gpu)

    def get_device(self) -> Device | None:
        """The accelerators, however they were asked for; None for none.

        Raises:
            ValueError: `gpu` was assigned something that it cannot be.
        """
        gpu = _checked_gpu(self.gpu)
        if isinstance(gpu, str):
            return parse_accelerator(gpu)
        if isinstance(gpu, int):
            return Device(gpu, "GPU") if gpu else None
        return gpu

    def get_shared_memory(self) -> str | None:
        """The size of `/dev/shm` as a quantity; `""` for `"auto"`, None when none was asked for."""
        return "" if self.shm == "auto" else self.shm

    def cpu_request(self) -> float | None:
        """Cores that a replica is given at least; None when nothing was asked for.

        Raises:
            ValueError: `cpu` is a string that is no quantity, or not finite.
        """
        value = self.cpu[0] if isinstance(self.cpu, tuple) else self.cpu
        return None if value is None else cores(value)

    def cpu_limit(self) -> float | None:
        """Cores that a replica may use at most; None when there is no limit.

        Raises:
            ValueError: `cpu` is a string that is no quantity, or not finite.
        """
        value = self.cpu[1] if isinstance(self.cpu, tuple) else self.cpu
        return None if value is None else cores(value)

    def memory_request(self) -> int | None:
        """Bytes that a replica is given at least; None when nothing was asked for.

        Raises:
            ValueError: `memory` is a string that is no quantity.
        """
        value = self.memory[0] if isinstance(self.memory, tuple) else self.memory
        return None if value is None else size(value)

    def memory_limit(self) -> int | None:
        """Bytes that a replica may use at most; None when there is no limit.

        Raises:
            ValueError: `memory` is a string that is no quantity.
        """
        value = self.memory[1] if isinstance(self.memory, tuple) else self.memory
        return None if value is None else size(value)

    def check_amounts(self) -> None:
        """Make sure that cores and sizes can be acted on: Flyte takes any text when it is written.

        Raises:
            ValueError: `cpu`, `memory`, `disk` or `shm` is no quantity, or a limit is below its request.
        """
        for field, request, limit in (
            ("cpu", self.cpu_request(), self.cpu_limit()),
            ("memory", self.memory_request(), self.memory_limit()),
        ):
            if request is not None and limit is not None and limit < request:
                value = getattr(self, field)
                raise ValueError(f"{field}={value!r} has a limit below its request: write (request, limit).")
        for field, text in (("disk", self.disk), ("shm", self.get_shared_memory())):
            if text:
                size(text, field)


def _each(field: str, value: object) -> tuple[object, ...]:
    """The one or two parts of a value."""
    if value is None:
        return ()
    if not isinstance(value, tuple):
        return (value,)
    if len(value) != 2:
        raise ValueError(f"{field}={value!r} has {len(value)} parts: use one value, or a pair (request, limit).")
    return value


def _checked_gpu(gpu: object) -> str | int | Device | None:
    """The value of `gpu` as it is kept: a count, the current spelling of an accelerator, or a `Device`.

    Raises:
        ValueError: It is none of those.
    """
    if isinstance(gpu, str):
        if gpu.isascii() and gpu.isdigit():
            return int(gpu)
        device = parse_accelerator(gpu)
        return gpu if gpu == device.device else f"{device.device}:{device.quantity}"
    if isinstance(gpu, int) and gpu < 0:
        raise ValueError(f"gpu={gpu!r} is negative: use 0 for none.")
    if gpu is None or isinstance(gpu, int | Device):
        return gpu
    raise ValueError(f"gpu={gpu!r} is not possible: use a count, a string such as 'A100:8', or a Device.")
