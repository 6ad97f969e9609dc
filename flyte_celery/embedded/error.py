"""What goes wrong with the bundled Redis."""

from __future__ import annotations


class EmbeddedRedisError(RuntimeError):
    """The bundled Redis cannot be found, started or stopped; the message says why and what to do."""
