"""Which errors of a replica mean that its device is broken, rather than its program."""

from __future__ import annotations

import re

#: What CUDA and its libraries say when a device cannot be used at all, whatever the program does. A failed assertion,
#: an illegal address or too little memory are the program's.
_BROKEN = re.compile(
    r"uncorrectable ECC error|GPU is lost|fallen off the bus|CUDA unknown error"
    r"|cudaErrorECCUncorrectable|cudaErrorDevicesUnavailable|CUDA-capable device\(s\) is/are busy or unavailable"
    r"|CUDA_ERROR_(ECC_UNCORRECTABLE|UNKNOWN|DEVICE_UNAVAILABLE|NO_DEVICE|INVALID_DEVICE|NOT_INITIALIZED|HARDWARE_STACK_ERROR)"
    r"|no CUDA-capable device is detected|CUDA driver initialization failed|No HIP GPUs are available"
    r"|\bGPUFaultSystemError\b|No CUDA GPUs are available|NVML_ERROR_GPU_IS_LOST"
    r"|Unable to determine the device handle for GPU",
    re.IGNORECASE,
)


def device_failure(error: str) -> str | None:
    """What in an error's text says that the device of its process is broken, None when nothing does."""
    found = _BROKEN.search(error)
    return found[0] if found else None
