"""The bundled Redis of one project directory: started on demand, shared by all of its processes, outliving them.

`server` starts and stops it, `program` finds the program, `address` says where it listens and which URLs mean it.
Standard library only, as web processes ask `running()`; this package knows neither Celery nor what its Redis is for.
"""

from __future__ import annotations

from pathlib import Path

from .address import STATE_FOLDER, client_url
from .error import EmbeddedRedisError
from .server import EmbeddedRedis

__all__ = ["STATE_FOLDER", "EmbeddedRedisError", "client_url", "running", "start", "stop", "url"]


def url(project_dir: Path) -> str:
    """See `server.EmbeddedRedis.url`."""
    return EmbeddedRedis(project_dir).url


def running(project_dir: Path) -> str | None:
    """See `server.EmbeddedRedis.running`."""
    return EmbeddedRedis(project_dir).running()


def start(project_dir: Path) -> str:
    """See `server.EmbeddedRedis.start`."""
    return EmbeddedRedis(project_dir).start()


def stop(project_dir: Path) -> bool:
    """See `server.EmbeddedRedis.stop`."""
    return EmbeddedRedis(project_dir).stop()
