"""Importing the app, and everything that belongs to it, into a fresh interpreter."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import runpy
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import redaction
from ..secret_sources import Secrets
from .application import ApplicationReference
from .backend import install as install_backend

if TYPE_CHECKING:
    from celery import Celery


def load(reference: ApplicationReference, secrets: Secrets) -> Celery:
    """Import the app and all modules with its tasks, in a fresh interpreter that has its secrets first."""
    redaction.install(secrets.values)
    os.environ.update(secrets.environ)
    os.chdir(reference.cwd)
    sys.path[:] = reference.path
    with _said_by_the_worker():
        app = _import(reference)
        install_backend(app)
        app.loader.init_worker()  # imports `include`, `imports` and autodiscovered modules, as every worker does
        for name in reference.includes:
            app.loader.import_task_module(name)
    _install_django(app)
    app.finalize()
    return app


@contextlib.contextmanager
def _said_by_the_worker() -> Iterator[None]:
    """Around an import that the worker has made before, which has logged then what definitions are warned of."""
    logger = logging.getLogger("flyte_celery")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _import(reference: ApplicationReference) -> Any:
    if reference.module is not None:
        return getattr(importlib.import_module(reference.module), reference.attribute)
    # As multiprocessing's spawn does: the script runs under another name than `__main__`, so that its
    # `if __name__ == "__main__"` part does not.
    assert reference.script is not None
    module = ModuleType("__mp_main__")
    module.__file__ = reference.script
    sys.modules["__mp_main__"] = sys.modules["__main__"] = module
    module.__dict__.update(runpy.run_path(reference.script, run_name="__mp_main__"))
    return getattr(module, reference.attribute)


def _install_django(app: Any) -> None:
    # Celery installs its per-task Django hooks (closing stale connections) from the `worker_init` signal of the
    # main process, for children to inherit by fork. Ours are not forks of that process.
    if os.environ.get("DJANGO_SETTINGS_MODULE") and "django" in sys.modules:
        from celery.fixups.django import DjangoWorkerFixup

        # The signals hold the fixup's methods weakly, so somebody has to hold the fixup.
        app.flyte_celery_django = DjangoWorkerFixup(app).install()
