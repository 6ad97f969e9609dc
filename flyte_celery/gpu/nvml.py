"""NVIDIA's devices by NVML, the driver's own library, through `nvidia-ml-py` (extra `gpu`)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from .found import Found, Instance

logger = logging.getLogger("flyte_celery")

#: Errors of the driver (XID) that a program's own fault causes; the device is as good as before.
_PROGRAMS_FAULT = frozenset({13, 31, 43, 45, 68, 109})


def read() -> list[Found] | None:
    """The devices of this host, None where there is no NVML."""
    nvml = _library()
    if nvml is None:
        return None
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as exc:
        logger.warning("NVML cannot say which devices there are: %s", exc)
        return None
    found: list[Found] = []
    for index in range(count):
        try:
            found.append(_device(nvml, index, driver))
        except nvml.NVMLError as exc:
            logger.warning("The NVIDIA device %d is left out, NVML says: %s", index, exc)
    return found


def _library() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _device(nvml: Any, index: int, driver: str) -> Found:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    mig = _mig_is_on(nvml, handle)
    return Found(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        product=_text(nvml.nvmlDeviceGetName(handle)),
        memory=_memory(nvml, handle),
        driver=driver,
        mig=mig,
        instances=tuple(_instances(nvml, handle)) if mig else (),
    )


def _memory(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError_NotSupported:  # a chip that shares the host's memory
        return None


def _mig_is_on(nvml: Any, handle: Any) -> bool:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # it cannot be divided
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _instances(nvml: Any, handle: Any) -> Iterator[Instance]:
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError:  # fewer than there could be
            continue
        name = _text(nvml.nvmlDeviceGetName(instance))  # NVIDIA A100-SXM4-40GB MIG 1g.5gb
        yield Instance(_text(nvml.nvmlDeviceGetUUID(instance)), name.rpartition("MIG ")[2], _memory(nvml, instance))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class Errors:
    """Listens for errors of devices that no program has caused.

    Args:
        devices: UUIDs of whole devices, or of MIG instances.
    """

    def __init__(self, devices: Iterable[str]) -> None:
        self._nvml = _library()
        self._set: Any = None
        if self._nvml is not None:
            self._register(sorted(set(devices)))

    def _register(self, uuids: list[str]) -> None:
        nvml = self._nvml
        try:
            self._set = nvml.nvmlEventSetCreate()
        except nvml.NVMLError as exc:
            logger.warning("Errors of NVIDIA devices will not be noticed: %s", exc)
            return
        #: By the device's handle as an event has it, what of it is ours.
        self._uuids: dict[str, list[str]] = {}
        for uuid in uuids:
            try:
                handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
                if uuid.startswith("MIG-"):
                    handle = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
                device = _text(nvml.nvmlDeviceGetUUID(handle))
                if device not in self._uuids:
                    nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._set)
                self._uuids.setdefault(device, []).append(uuid)
            except nvml.NVMLError as exc:
                logger.info("Errors of the device %s will not be noticed: %s", uuid, exc)

    def poll(self) -> dict[str, str]:
        """What has broken since the last call: the reason by UUID. It does not wait."""
        broken: dict[str, str] = {}
        nvml = self._nvml
        while self._set is not None:
            try:
                event = nvml.nvmlEventSetWait_v2(self._set, 0)
            except nvml.NVMLError_Timeout:
                break
            except nvml.NVMLError_GpuIsLost:
                broken |= dict.fromkeys(self._lost(), "the driver has lost it")
                break
            except nvml.NVMLError as exc:
                logger.warning("Errors of NVIDIA devices are no longer noticed: %s", exc)
                self._set = None
                break
            if event.eventData not in _PROGRAMS_FAULT:
                device = _text(nvml.nvmlDeviceGetUUID(event.device))
                broken |= dict.fromkeys(self._uuids.get(device, ()), f"XID {event.eventData}")
        return broken

    def _lost(self) -> list[str]:
        nvml = self._nvml
        lost: list[str] = []
        for device, uuids in self._uuids.items():
            try:
                nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(device))
            except nvml.NVMLError_NotSupported:
                continue
            except nvml.NVMLError:
                lost += uuids
        return lost
