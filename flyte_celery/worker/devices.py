"""The devices of one worker's replicas: leased before a replica starts, watched while it runs."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterable
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.utils.log import get_logger

from ..gpu import nvml
from ..gpu.health import device_failure, may_tell_of_devices
from ..gpu.inventory import Accelerator, described
from ..gpu.leases import Lease, Leases
from ..replica import wire

logger = get_logger("flyte_celery.worker")

#: Seconds for which a device is given to nobody because of what a replica's error says. Who sends texts that are quoted
#: in errors may be behind it, and a device that is broken says so again.
SUSPECTED_FOR = 600.0


class ReplicaDevices:
    """What replicas of one environment are given on this host.

    Args:
        leases: The host's devices of the kind that they need.
        hostname: The worker's node name, which others are told.
    """

    def __init__(self, leases: Leases, hostname: str) -> None:
        self._leases = leases
        self._hostname = hostname
        self._errors: nvml.Errors | None = None
        #: Why the last replica that was asked for got no devices; None when it got them.
        self.obstacle: str | None = None

    @property
    def ids(self) -> frozenset[str]:
        """The devices that may be given, whoever has them now."""
        return frozenset(f"{each.device_class} {each.id}" for each in self._leases.accelerators)

    def take(self, replica: int) -> Lease | None:
        """Devices for a replica. None when too few are free; `obstacle` says who has them."""
        try:
            lease = self._leases.take(f"{self._hostname}, replica {replica}")
            for device, pids in self._leases.left_behind.items():
                logger.warning("The device %s was free, but used by what a replica has left: %s", device, _ended(pids))
            self.obstacle = self._why_not() if lease is None else None
        except OSError as exc:
            self.obstacle = _unusable(exc)
            return None
        return lease

    def free(self) -> int:
        """For how many more replicas this host has devices now; where it is none, `obstacle` says why."""
        try:
            free = self._leases.free()
        except OSError as exc:
            free, self.obstacle = 0, _unusable(exc)
        else:
            self.obstacle = None if free else self._why_not()
        return free

    def _why_not(self) -> str:
        words = [f"{device} is held by {holder}" for device, holder in self._leases.holders().items()]
        words += [f"{device} is broken ({why})" for device, why in self.broken().items()]
        left = self._leases.left_behind
        words += [f"{device} is used by what a replica has left: {_ended(pids)}" for device, pids in left.items()]
        held = ", ".join(words) or "others are just taking theirs"
        return f"no free device for another replica: it needs {described(self._leases.wanted)}; {held}"

    def broken(self) -> dict[str, str]:
        """The devices that nobody is given, with the reason, for people."""
        reasons = self._leases.broken()
        return {each.label: reasons[each.id] for each in self._leases.accelerators if each.id in reasons}

    def has_broken(self, lease: Lease) -> bool:
        """Whether a device of a replica is broken."""
        reasons = self._leases.broken()
        return any(each.id in reasons for each in lease.accelerators)

    def blame(self, lease: Lease, error: str) -> None:
        """Take the devices of a replica out of use for a while when this error of its says that one of them is broken.

        Args:
            lease: The devices.
            error: Type and message of the error.
        """
        if (why := device_failure(error)) is not None:
            self._condemn(lease.accelerators, why, SUSPECTED_FOR)

    def watch(self) -> None:
        """Take devices out of use that their driver has reported since the last call."""
        if self._errors is None:
            ids = [each.id for each in self._leases.accelerators if not each.id.isdigit()]
            self._errors = nvml.Errors(ids)
        if broken := self._errors.poll():
            for accelerator in self._leases.accelerators:
                if accelerator.id in broken:
                    self._condemn([accelerator], broken[accelerator.id])

    def _condemn(self, accelerators: Iterable[Accelerator], why: str, seconds: float | None = None) -> None:
        known = self._leases.broken()
        for accelerator in accelerators:
            if accelerator.id in known:
                continue
            try:
                note = self._leases.condemn(accelerator, why, seconds)
            except OSError as exc:
                logger.error("The device %s is broken (%s) and stays in use: %s", accelerator.label, why, exc)
                continue
            logger.error(
                "The device %s is broken (%s): no replica on this host is given it %suntil %s is removed.",
                accelerator.label,
                why,
                "" if seconds is None else f"for {seconds:.0f} s, or ",
                note,
            )

    def keep(self, leases: Iterable[Lease | None]) -> None:
        """Let nobody tidy up the locks of these leases."""
        for lease in leases:
            if lease is not None:
                self._leases.touch(lease)


def _ended(pids: list[int]) -> str:
    return f"process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))}, killed now"


def _unusable(exc: OSError) -> str:
    return f"the devices of this host cannot be locked: {exc}; FLYTE_CELERY_DEVICE_LOCKS names the place"


def failure_text(outcome: tuple[Any, ...]) -> str:
    """The exception of a failed task's outcome, for `ReplicaDevices.blame`; empty where it says nothing of devices."""
    match outcome:
        case (wire.OK, failed, bytes() as pickled, _) if failed:
            pass
        case (wire.RAISED, bytes() as pickled):
            pass
        case _:
            return ""
    if not may_tell_of_devices(pickled):
        return ""
    with contextlib.suppress(Exception):  # what cannot be read is reported with the task's end
        exc = pickle.loads(pickled).exception
        exc = exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
        return f"{type(exc).__name__}: {exc}"
    return ""
