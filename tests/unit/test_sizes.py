"""Arguments and results that are too large for a message."""

from __future__ import annotations

from typing import Any

import pytest

from flyte_celery.client.sizes import check_size
from flyte_celery.errors import InlineIOMaxBytesBreached


@pytest.mark.parametrize(
    ("what", "said"), [("arguments", "The arguments of e.f take 12"), ("result", "The result of e.f takes 12")]
)
def test_a_value_over_the_bound_is_refused(what: str, said: str) -> None:
    check_size(what, "e.f", "x" * 10, 12)
    with pytest.raises(InlineIOMaxBytesBreached, match=said):
        check_size(what, "e.f", "x" * 10, 11)


@pytest.mark.parametrize("value", [[1 << 100_000], {"a": 1 << 100_000}])
def test_an_integer_that_python_does_not_write(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^The arguments of e\.f cannot be written: Exceeds .* Pass large integers as text"
    ):
        check_size("arguments", "e.f", value, 100)


def test_what_json_cannot_write_is_for_the_sender_to_say() -> None:
    check_size("arguments", "e.f", [object()], 1)
