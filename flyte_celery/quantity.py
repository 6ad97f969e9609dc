"""Kubernetes quantities as numbers: `"500m"` is half a core, `"4Gi"` is 4,294,967,296 bytes.

A quantity is a decimal number with an optional suffix: `n u m` (billionth to thousandth), `k M G T P E` (powers of
1000), `Ki Mi Gi Ti Pi Ei` (powers of 1024), or an exponent such as `e3`.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

_QUANTITY = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?[0-9]{1,2}))?")

_FACTORS = {
    "n": Fraction(1, 1000**3),
    "u": Fraction(1, 1000**2),
    "m": Fraction(1, 1000),
    **{suffix: Fraction(1000**power) for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": Fraction(1024**power) for power, suffix in enumerate("KMGTPE", start=1)},
}


def cores(value: float | str, field: str = "cpu") -> float:
    """How many cores a cpu value means.

    Args:
        value: Cores as a number, or a quantity such as `"500m"`.
        field: What the value is, for the error message.

    Raises:
        ValueError: The value is no quantity, negative, or not finite.
    """
    if not isinstance(value, str):
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{field}={value!r} is no number of cores: use 0 or more, such as 0.5 or 4.")
        return float(value)
    return float(_exact(value, field, "'2', '500m' or '0.5'"))


def size(value: str, field: str = "memory") -> int:
    """How many bytes a quantity means, rounded up to whole bytes as Kubernetes does.

    Args:
        value: A quantity such as `"4Gi"`, `"512M"` or a plain number of bytes.
        field: What the value is, for the error message.

    Raises:
        ValueError: The value is no quantity, or negative.
    """
    return math.ceil(_exact(value, field, "'4Gi', '512M' or '1073741824'"))


def _exact(text: str, field: str, examples: str) -> Fraction:
    if (match := _QUANTITY.fullmatch(text)) is None:
        raise ValueError(f"{field}={text!r} is no Kubernetes quantity: write it like {examples}.")
    number, suffix, exponent = match.groups()
    amount = Fraction(number) * (_FACTORS[suffix] if suffix else Fraction(10) ** int(exponent or 0))
    if amount < 0:
        raise ValueError(f"{field}={text!r} is negative: write 0 or more, like {examples}.")
    return amount
