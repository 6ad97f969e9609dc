"""Kubernetes quantities as numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyte_celery.quantity import cores, size

NO_QUANTITY = [
    "",
    "lots",
    " 1",
    "1 ",
    "1 Gi",
    "1gi",
    "1K",
    "Gi",
    "m",
    ".",
    "1.2.3",
    "1e",
    "1e3Ki",
    "0x10",
    "1,5",
    "nan",
    "inf",
    "\u0661",
]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (2, 2.0),
        (0.5, 0.5),
        (True, 1.0),
        ("2", 2.0),
        ("500m", 0.5),
        ("0.1", 0.1),
        (".5", 0.5),
        ("1.", 1.0),
        ("+2", 2.0),
        ("1e3", 1000.0),
        ("250000u", 0.25),
        ("2k", 2000.0),
        ("0", 0.0),
        ("-0", 0.0),
    ],
)
def test_cores_are_numbers_or_quantities(value: float | str, expected: float) -> None:
    assert cores(value) == expected


@pytest.mark.parametrize("text", NO_QUANTITY)
def test_other_text_is_a_value_error_that_names_field_and_value(text: str) -> None:
    with pytest.raises(ValueError, match=r"cpu limit=.* is no Kubernetes quantity: write it like") as info:
        cores(text, "cpu limit")
    assert repr(text) in str(info.value)
    with pytest.raises(ValueError, match=r"memory=.* is no Kubernetes quantity: write it like"):
        size(text)


@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf"), "-1", "-500m"])
def test_cores_are_finite_and_not_negative(value: float | str) -> None:
    with pytest.raises(ValueError, match=r"cpu=.*(is negative|is no number of cores)"):
        cores(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1Ki", 1024),
        ("1Mi", 1024**2),
        ("4Gi", 4 * 1024**3),
        ("2Ti", 2 * 1024**4),
        ("1Pi", 1024**5),
        ("1Ei", 1024**6),
        ("1k", 1000),
        ("512M", 512 * 1000**2),
        ("2G", 2 * 1000**3),
        ("1T", 1000**4),
        ("1P", 1000**5),
        ("1E", 1000**6),
        ("1E3", 1000),
        ("129e6", 129_000_000),
        ("1.5Gi", 3 * 512 * 1024**2),
        ("128974848000m", 128_974_848),
        ("1m", 1),
        ("1n", 1),
        ("0.1", 1),
    ],
)
def test_sizes_are_bytes_rounded_up(text: str, expected: int) -> None:
    assert size(text) == expected


def test_a_negative_size_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="memory='-1Gi' is negative"):
        size("-1Gi")


@given(st.integers(0, 10**12))
def test_a_plain_number_of_bytes_means_itself(number: int) -> None:
    assert size(str(number)) == number


@given(st.integers(0, 10**6))
def test_a_thousand_thousandths_are_one(number: int) -> None:
    assert cores(f"{number}000m") == number
