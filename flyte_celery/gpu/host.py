"""A host as its workers see it: labels, devices, and what is missing for an environment."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import quantity
from ..devices import Device
from ..environment import TaskEnvironment
from ..resources import Resources
from . import machine
from .declare import declared
from .discover import discover
from .inventory import Accelerator, described, listed, most_replicas
from .labels import device_labels, has_label, parse_labels


@dataclass(frozen=True, slots=True)
class Host:
    """What one host offers."""

    labels: Mapping[str, str]
    accelerators: tuple[Accelerator, ...]

    @property
    def name(self) -> str:
        """How it is called: its label `host`."""
        return self.labels["host"]

    def as_dict(self) -> dict[str, Any]:
        """JSON-native form, as it is published."""
        return {
            "labels": dict(self.labels),
            "devices": [
                {
                    "id": each.id,
                    "class": each.device_class,
                    "name": each.name,
                    "product": each.product,
                    "partition": each.partition,
                    "shares": each.shares,
                }
                for each in self.accelerators
            ],
        }

    @classmethod
    def from_dict(cls, published: Mapping[str, Any]) -> Host:
        """The host that somebody has published.

        Raises:
            LookupError: It has no such form.
        """
        return cls(
            labels={"host": "?", **published["labels"]},
            accelerators=tuple(
                Accelerator(
                    each["id"],
                    each["class"],
                    each["name"],
                    each["product"],
                    partition=each["partition"],
                    shares=each["shares"],
                )
                for each in published["devices"]
            ),
        )


def this_host(
    environ: Mapping[str, str], devices: str | None = None, labels: str | None = None, root: Path = Path("/")
) -> Host:
    """What this host offers.

    Args:
        environ: Usually `os.environ`.
        devices: An inventory that the operator declares, see `declare`; it replaces what is found. None: what is found.
        labels: Labels that the operator gives; they replace those that are found.
        root: The directory that has `proc` and `sys`.

    Raises:
        ValueError: `devices` or `labels` cannot be read.
    """
    given = parse_labels(labels) if labels else {}
    for name, read in (("cores", quantity.cores), ("memory", quantity.size)):
        if name in given:
            read(given[name], f"labels={labels!r}: {name}")
    found = discover(environ, root)
    accelerators = found if devices is None else declared(devices, found)
    bytes_here = machine.memory(root)
    own = {
        "host": socket.gethostname(),
        "cores": f"{machine.cores(root):g}",
        **({} if bytes_here is None else {"memory": f"{bytes_here // 2**20}Mi"}),
        **device_labels(accelerators),
    }
    return Host({**own, **given}, tuple(accelerators))


def device_of(environment: TaskEnvironment) -> Device | None:
    """The devices that each replica of an environment needs."""
    return environment.resources.get_device() if environment.resources is not None else None


@dataclass(frozen=True, slots=True)
class Need:
    """Something that an environment needs and a host lacks."""

    what: str
    """The end of a sentence that begins with "it needs"."""

    instead: str
    """The end of one that begins with "the host has"."""

    def __str__(self) -> str:
        return f"{self.what} (the host has {self.instead})"


def missing(environment: TaskEnvironment, host: Host) -> list[Need]:
    """What a host lacks to run even one replica of an environment; nothing when it can."""
    return [*lacking(environment.resources, host), *_labels(environment, host)]


def lacking(resources: Resources | None, host: Host) -> list[Need]:
    """What a host lacks of what one replica is to have, however idle it is; nothing when it has all."""
    return [] if resources is None else [*_devices(resources, host), *_cores_and_memory(resources, host)]


def in_words(resources: Resources) -> str:
    """What one replica is to have of a host, for a sentence that begins with "it needs"."""
    return " and ".join(need.what for need in lacking(resources, _NOWHERE))


def missing_everywhere(environment: TaskEnvironment, hosts: Iterable[Host]) -> str | None:
    """Why none of these hosts can run an environment, None when one can."""
    lacks = [[need.what for need in missing(environment, host)] for host in hosts]
    needs = [need.what for need in missing(environment, _NOWHERE)]
    if not needs or not all(lacks):
        return None
    common = [what for what in needs if all(what in lack for lack in lacks)]
    if len(common) == 1:
        return f"needs {common[0]}, no worker offers one"
    if common:
        return f"needs {' and '.join(common)}, no worker offers any of that"
    return f"needs {' and '.join(needs)}, no worker offers all of that"


_NOWHERE = Host({"host": "nowhere", "cores": "0", "memory": "0"}, ())


def _devices(resources: Resources, host: Host) -> list[Need]:
    device = resources.get_device()
    if device is None or most_replicas(device, host.accelerators):
        return []
    return [Need(described(device), listed(host.accelerators))]


def _cores_and_memory(resources: Resources, host: Host) -> list[Need]:
    needs: list[Need] = []
    cores, memory = host.labels.get("cores"), host.labels.get("memory")
    # Text that is no quantity is refused where it is used.
    with contextlib.suppress(ValueError):
        wanted = resources.cpu_request()
        if wanted and cores is not None and quantity.cores(cores) < wanted:
            needs.append(Need(f"{wanted:g} cores", f"{cores}; the label cores=N says otherwise"))
    with contextlib.suppress(ValueError):
        size = resources.memory_request()
        if size and memory is not None and quantity.size(memory) < size:
            text = resources.memory[0] if isinstance(resources.memory, tuple) else resources.memory
            needs.append(Need(f"{text} of memory", f"{memory}; the label memory=N says otherwise"))
    return needs


def _labels(environment: TaskEnvironment, host: Host) -> list[Need]:
    return [
        Need(f"the label {name}={value}", f"{name}={host.labels[name]}" if name in host.labels else f"no {name}")
        for name, value in (environment.labels or {}).items()
        if not has_label(host.labels, name, value)
    ]
