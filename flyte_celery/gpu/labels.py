"""Labels of a host: what an operator gives, what is found, and what an environment may ask for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .inventory import Accelerator

_LABEL = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9_./-]*[A-Za-z0-9])?)=([A-Za-z0-9_./+:-]+)")

#: Between the values of a label that has several.
SEVERAL = "+"


def parse_labels(text: str) -> dict[str, str]:
    """Labels as an operator writes them: `zone=a,tier=batch`, with `tier=batch+web` for one that has both.

    Raises:
        ValueError: The text is no list of labels, or gives one twice.
    """
    labels: dict[str, str] = {}
    for item in text.split(","):
        match = _LABEL.fullmatch(item.strip())
        if match is None:
            raise ValueError(
                f"labels={text!r}: {item.strip()!r} is no label. Write NAME=VALUE of letters, digits and _ . / - in "
                "each, joined by commas, as in zone=a,tier=batch."
            )
        if match[1] in labels:
            raise ValueError(f"labels={text!r}: {match[1]!r} is given twice. Join its values by +, or leave one out.")
        labels[match[1]] = match[2]
    return labels


def device_labels(accelerators: Iterable[Accelerator]) -> dict[str, str]:
    """What a host's devices say about it; nothing where it has none."""
    there = list(accelerators)
    values = {
        "gpu": [each.name or each.product.replace(" ", "-") for each in there],
        "gpu_memory": [f"{each.memory // 2**20}Mi" for each in there if each.memory],
        "gpu_driver": [each.driver for each in there if each.driver],
        "mig": [each.partition for each in there if each.partition and each.device_class == "GPU"],
    }
    labels = {name: SEVERAL.join(dict.fromkeys(several)) for name, several in values.items() if several}
    return {**labels, "gpu_count": str(len(there))} if there else {}


def has_label(labels: Mapping[str, str], name: str, value: str) -> bool:
    """Whether a host has a label with this value, perhaps among others."""
    offered = labels.get(name)
    return offered is not None and (offered == value or value in offered.split(SEVERAL))
