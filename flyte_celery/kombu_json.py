"""kombu's JSON by an encoder and a decoder that are made once: kombu makes new ones for each message and result.

Use it where `is_kombus` says that the serializer "json" is kombu's own. Text and values are the same as kombu's.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from kombu import serialization
from kombu.utils.json import JSONEncoder
from kombu.utils.json import loads as kombus_loads

#: kombu's encoder, which knows dates, UUIDs and what was registered with `register_type`.
dumps = JSONEncoder().encode

CONTENT_TYPE, CONTENT_ENCODING = "application/json", "utf-8"

#: A value that tells Python's JSON from others: spaces, escapes, how numbers look.
_PROBE = [{"a": [1, 2.5, None, True]}, "\u00e4\u2028</>"]

#: What kombu writes around a value that is not JSON's own.
_MARK = '"__type__"'


def loads(text: str | bytes) -> Any:
    """The value that kombu reads."""
    marked = _MARK in text if isinstance(text, str) else _MARK.encode() in text
    return kombus_loads(text) if marked else json.loads(text)


def is_kombus() -> bool:
    """Whether nobody has registered another encoder or decoder under the name of JSON."""
    text = json.dumps(_PROBE)
    written, read = serialization.dumps(_PROBE, "json"), serialization.loads(text, CONTENT_TYPE, CONTENT_ENCODING)
    return bool(written == (CONTENT_TYPE, CONTENT_ENCODING, text) and repr(read) == repr(_PROBE))


@cache
def was_kombus() -> bool:
    """The same as it was when it was first asked, for what is asked with each message."""
    return is_kombus()
