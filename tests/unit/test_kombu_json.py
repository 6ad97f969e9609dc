"""JSON by an encoder that is made once: the same text and values as kombu's, whatever is in them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from kombu import serialization

from flyte_celery import kombu_json

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KNOWN = st.datetimes() | st.dates() | st.uuids() | st.binary() | st.integers().map(Decimal)
VALUES = st.recursive(
    PLAIN | KNOWN,
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["__type__", "__value__"]), inner),
    max_leaves=8,
)


@given(VALUES)
def test_text_and_values_are_kombus(value: Any) -> None:
    content_type, encoding, text = serialization.dumps(value, "json")
    assert (content_type, encoding) == (kombu_json.CONTENT_TYPE, kombu_json.CONTENT_ENCODING)
    assert kombu_json.dumps(value) == text
    for received in (text, text.encode()):
        assert attempt(kombu_json.loads, received) == attempt(
            lambda data: serialization.loads(data, content_type, encoding), received
        )


def attempt(loads: Any, text: Any) -> Any:
    """The value, or that there is none: what looks like a value of kombu's own may be none."""
    try:
        return loads(text)
    except Exception:
        return "refused"


def test_kombus_own_json_is_recognized() -> None:
    assert kombu_json.is_kombus()


def test_another_encoder_or_decoder_is_noticed() -> None:
    names = kombu_json.CONTENT_TYPE, kombu_json.CONTENT_ENCODING
    try:
        serialization.register("json", lambda value: "[]", kombu_json.loads, *names)
        assert not kombu_json.is_kombus()
        serialization.register("json", kombu_json.dumps, lambda text: Decimal(1), *names)
        assert not kombu_json.is_kombus()
    finally:
        serialization.register_json()
