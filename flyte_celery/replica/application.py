"""Finding the running Celery app's own name, so that another interpreter can import it.

A Celery app is picklable, but its pickle carries configuration only, not the modules that define its tasks; what a
fresh process needs is the module and attribute that the app lives at, as in `celery -A module:attribute`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery

#: Modules that hold references to every app without being its home.
_NOT_A_HOME = ("celery", "kombu", "flyte_celery", "click", "multiprocessing")


@dataclass(frozen=True, slots=True)
class ApplicationReference:
    """Where an app is found by a fresh interpreter."""

    #: Dotted module name, or None when the app lives in a script.
    module: str | None
    #: Path of the script (`python worker.py`) when there is no module.
    script: str | None
    attribute: str
    #: Modules with tasks that were imported besides (`-I`, `include`, autodiscovery).
    includes: tuple[str, ...]
    path: tuple[str, ...]
    cwd: str


def find(app: Celery) -> ApplicationReference:
    """Locate the app among the modules that this process has imported.

    Raises:
        LookupError: The app is not an attribute of any imported module, with the fix.
    """
    for name, module, attribute in _homes(app):
        script = None
        home: str | None = name
        if name == "__main__":
            spec = getattr(module, "__spec__", None)
            home = spec.name if spec is not None else None
            script = None if home else os.path.abspath(str(module.__file__))
        includes = tuple(m for m in app.conf.include if m not in ("__main__", name) and not m.startswith("celery."))
        return ApplicationReference(home, script, attribute, includes, _path(), os.getcwd())
    raise LookupError(
        f"The Celery app {app.main!r} is not a global of any imported module, so replicas cannot import it. "
        "Assign it at the top level of a module, as in `app = flyte.init(...)`."
    )


def _path() -> tuple[str, ...]:
    # The script `celery` looks for the app in the current directory, and takes that out of the path again.
    here = os.getcwd()
    return (*sys.path,) if {"", here}.intersection(sys.path) else (here, *sys.path)


def _homes(app: Celery) -> Iterator[tuple[str, ModuleType, str]]:
    # The module that `-A` names is the app's `main` by convention; then any other; a package that re-exports the
    # app is as good as the module that makes it.
    names = sorted(sys.modules, key=lambda name: (name != app.main, name != "__main__"))
    for name in names:
        module = sys.modules.get(name)
        if name.split(".")[0] in _NOT_A_HOME or not isinstance(module, ModuleType):
            continue
        if name == "__main__" and not hasattr(module, "__file__"):
            continue
        for attribute, value in list(vars(module).items()):
            if value is app:
                yield name, module, attribute
