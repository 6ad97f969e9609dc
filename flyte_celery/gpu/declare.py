"""Inventories that an operator declares: `--devices L4:2`, `--devices T4:1x4,A100/1g.5gb:7`.

```
inventory  none | item,item,...
item       NAME[/PARTITION]:COUNT[xSHARES]
```
NAME is Flyte's name of a device or its vendor's name of the product, PARTITION a MIG profile or the slice of a TPU,
COUNT how many of them there are, SHARES how many replicas may have each of them at the same time (time-slicing).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..devices import PARTITIONS, DeviceClass
from .inventory import SHARED, Accelerator
from .products import normalised

_ITEM = re.compile(r"(?P<name>[^:/,]+)(?:/(?P<partition>[^:/,]+))?:(?P<count>\d+)(?:x(?P<shares>\d+))?")

#: An inventory without devices: what is found on the host is not used.
NOTHING = "none"


def declared(text: str, found: Iterable[Accelerator] = ()) -> list[Accelerator]:
    """The accelerators that an operator has declared.

    Args:
        text: The declaration.
        found: What discovery has found. Declared devices of which enough were found are these, with their UUIDs; all
            others are numbered from 0 in each class.

    Raises:
        ValueError: The text is no declaration; the message quotes the item and says what to write.
    """
    if text.strip() == NOTHING:
        return []
    left = list(found)
    numbers: dict[DeviceClass, int] = {}
    inventory: list[Accelerator] = []
    for item in text.split(","):
        wanted, count = _parsed(text, item.strip())
        same = [each for each in left if _same(wanted, each)][:count]
        if len(same) == count:
            left = [each for each in left if each not in same]
            inventory += [_with_shares(each, wanted.shares) for each in same]
            continue
        first = numbers.get(wanted.device_class, 0)
        numbers[wanted.device_class] = first + count
        inventory += [_numbered(wanted, number) for number in range(first, first + count)]
    return inventory


def _parsed(text: str, item: str) -> tuple[Accelerator, int]:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise ValueError(
            f"devices={text!r}: {item!r} is no item of an inventory. Write NAME:COUNT as in L4:2, NAME/PARTITION:COUNT "
            f"as in A100/1g.5gb:7, NAME:COUNTxSHARES as in T4:1x4, or {NOTHING!r} alone."
        )
    name, partition = match["name"], match["partition"]
    count, shares = int(match["count"]), int(match["shares"] or 1)
    if name.endswith(SHARED):
        model = name.removesuffix(SHARED)
        raise ValueError(
            f"devices={text!r}: {name!r} is what an environment asks for. Declare the device and its shares: "
            f"{model}:1x4 is one {model} for four replicas."
        )
    known = normalised(name)
    if known is None:
        raise ValueError(
            f"devices={text!r}: {name!r} is no device that Flyte has a name for. Use one such as L4, A100_80G, MI300X, "
            "Gaudi1, Trn1 or V5E."
        )
    if not count or not shares:
        raise ValueError(f"devices={text!r}: {item!r} counts to zero. Give at least 1, or leave the item out.")
    partitions = PARTITIONS.get(known[1])
    if partition is not None and partitions is not None and partition not in partitions:
        raise ValueError(
            f"devices={text!r}: {partition!r} is no partition of {known[1]}. Use one of {', '.join(partitions)}."
        )
    if partition is not None and shares > 1:
        raise ValueError(f"devices={text!r}: {item!r} shares a partition. Declare shares for whole devices only.")
    return Accelerator("", known[0], known[1], known[1], partition=partition, shares=shares), count


def _same(wanted: Accelerator, found: Accelerator) -> bool:
    return (wanted.device_class, wanted.name, wanted.partition) == (found.device_class, found.name, found.partition)


def _with_shares(found: Accelerator, shares: int) -> Accelerator:
    return Accelerator(
        found.id, found.device_class, found.name, found.product, found.memory, found.partition, shares, found.driver
    )


def _numbered(wanted: Accelerator, number: int) -> Accelerator:
    return Accelerator(
        str(number), wanted.device_class, wanted.name, wanted.product, None, wanted.partition, wanted.shares
    )
