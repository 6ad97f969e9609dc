"""Which errors of a replica let one suspect that its device is broken, rather than its program."""

from __future__ import annotations

import re

#: What CUDA and its libraries say when a device cannot be used at all, whatever the program does. A failed assertion,
#: an illegal address or too little memory are the program's.
_BROKEN = (
    r"uncorrectable ECC error|GPU is lost|GPU has fallen off the bus|CUDA unknown error"
    r"|cudaErrorECCUncorrectable|cudaErrorDevicesUnavailable|CUDA-capable device\(s\) is/are busy or unavailable"
    r"|CUDA_ERROR_(?:ECC_UNCORRECTABLE|UNKNOWN|DEVICE_UNAVAILABLE|NO_DEVICE|INVALID_DEVICE|NOT_INITIALIZED"
    r"|HARDWARE_STACK_ERROR)"
    r"|no CUDA-capable device is detected|CUDA driver initialization failed|No HIP GPUs are available"
    r"|No CUDA GPUs are available|NVML_ERROR_GPU_IS_LOST|Unable to determine the device handle for GPU"
)

#: Exceptions of libraries (torch, JAX, CuPy, PyCUDA, Numba, NVML) that are about devices and nothing else.
_OF_DEVICES = (
    r"AcceleratorError|DeferredCudaCallError|XlaRuntimeError|JaxRuntimeError|CUDARuntimeError|CUDADriverError"
    r"|CudaAPIError|CudaSupportError|LogicError|NVMLError\w*"
)

#: Texts of callers are quoted in messages of all kinds. So an exception counts whose type speaks for devices, or a
#: `RuntimeError`, which torch raises as well, whose message says it first.
_SUSPICION = re.compile(
    rf"(?:RuntimeError: )?(?:\w+\.)*"
    rf"(?:(?P<told>GPUFaultSystemError)\b|(?:{_OF_DEVICES}): .*?(?P<library>{_BROKEN})"
    rf"|RuntimeError: (?:(?:CUDA|HIP) error: )?(?P<plain>{_BROKEN}))",
    re.IGNORECASE | re.DOTALL,
)

#: Where nothing of this is in what a process says, it need not be read.
_ANY = re.compile(rf"GPUFaultSystemError|{_BROKEN}".encode(), re.IGNORECASE)


def device_failure(error: str) -> str | None:
    """What in an error says that the device of its process may be broken, None when nothing does.

    Args:
        error: The exception's own type and message, as in `RuntimeError: CUDA error: uncorrectable ECC error`.
    """
    found = _SUSPICION.match(error)
    return None if found is None else next(part for part in found.groups() if part)


def may_tell_of_devices(pickled: bytes) -> bool:
    """Whether it is worth to ask `device_failure` of a pickled exception."""
    return _ANY.search(pickled) is not None
