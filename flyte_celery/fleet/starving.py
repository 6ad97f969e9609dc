"""Calls that can never run because the tasks that wait for them have the devices that they need: as pure functions.

A task that waits for its children keeps its replica, and so its devices. A child that needs one of these, where there
are no others, would wait for ever. It is certain when each live worker of the child's environment whose host could run
it could not do so without the devices of the child's ancestors, and these wait for nothing but such children.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..gpu.host import Host


@dataclass(frozen=True, slots=True)
class Call:
    """A call that waits for a replica."""

    task_id: str
    chain: tuple[str, ...]
    """Its ancestors as `name[id]`, the first one first: those that wait for it, if they wait."""

    environment: str
    """Its environment, whose workers alone may run it."""

    fits: Callable[[Host], bool]
    """Whether a host could run it, however busy it is."""

    need: str | None = None
    """See `fleet.needs`; None for a call that any replica of the environment may run, of which there is none."""

    @property
    def ancestors(self) -> tuple[str, ...]:
        """The ids of the chain."""
        return tuple(each.rpartition("[")[2].removesuffix("]") for each in self.chain)


def starved_by(call: Call, offers: Iterable[Mapping[str, Any]]) -> list[str]:
    """The ancestors of a call without whose devices it could run nowhere; none where it is another's turn to end.

    Args:
        call: The call.
        offers: What live workers' hosts offer, see `fleet.offers`.
    """
    ancestors, found = set(call.ancestors), set[str]()
    there = [offer for offer in offers if isinstance(offer.get("labels"), Mapping)]
    able = [(host, offer) for offer in there if offer.get("environment") == call.environment for host in _hosts(offer)]
    able = [(host, offer) for host, offer in able if call.fits(host)]
    for host, _ in able:
        held: dict[str, str] = {}
        for other in there:
            if other["labels"].get("host") == host.name:
                for task_id, wait in (other.get("waits") or {}).items():
                    if task_id in ancestors and (call.need is None or wait["serves"] != call.need):
                        held |= dict.fromkeys(wait["devices"], task_id)
        left = [replace(each, shares=each.shares - (_key(each) in held)) for each in host.accelerators]
        if call.fits(replace(host, accelerators=tuple(each for each in left if each.shares > 0))):
            return []
        found |= set(held.values())
    return [each for each in call.ancestors if each in found]


def never_ending(
    calls: Mapping[str, Call], holders: Mapping[str, list[str]], awaited: Mapping[str, list[str]]
) -> set[str]:
    """Those of the calls that are certain to wait for ever.

    Args:
        calls: Calls that are starved by their ancestors, by their ids.
        holders: These ancestors, for each call.
        awaited: The ids that a task waits for, any of which lets it go on; only of tasks that wait for nothing else.
    """
    left = set(calls)
    while True:
        ended = set()
        for task_id in left:
            path = [*calls[task_id].ancestors, task_id]
            first = min(path.index(holder) for holder in holders[task_id])
            for waiting, following in zip(path[first:], path[first + 1 :], strict=False):
                if not awaited.get(waiting) or not {following, *left}.issuperset(awaited[waiting]):
                    ended.add(task_id)
        if not ended:
            return left
        left -= ended


def _hosts(offer: Mapping[str, Any]) -> list[Host]:
    try:
        return [Host.from_dict(offer)]
    except (LookupError, TypeError):  # of another version
        return []


def _key(accelerator: Any) -> str:
    return f"{accelerator.device_class} {accelerator.id}"
