"""URLs of brokers and result backends, as people may see them."""

from __future__ import annotations

import re

#: Where one URL of a list ends: kombu joins failover URLs by semicolons, and passwords may contain some.
_NEXT_URL = re.compile(r";(?=[\w.+-]+://)")
_SECRET_PARAMETER = re.compile(r"([?&][^=&]*(?:password|passwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


def redacted(url: str) -> str:
    """The URL, or the URLs joined by semicolons, with `**` for each password; for logs and messages.

    Rather too much is hidden than too little: everything between the first colon and the last `@` counts as password,
    as unescaped passwords may contain anything.

    Args:
        url: What a user configured. Text that is no URL comes back unchanged.
    """
    return ";".join(_redacted_one(one) for one in _NEXT_URL.split(url))


def _redacted_one(url: str) -> str:
    hidden = _SECRET_PARAMETER.sub(r"\1**", url)
    start = hidden.find("://") + len("://") if "://" in hidden else 0
    login, at, place = hidden[start:].rpartition("@")
    user, colon, _ = login.partition(":")
    return f"{hidden[:start]}{user}{colon}{'**' if colon else ''}{at}{place}"
