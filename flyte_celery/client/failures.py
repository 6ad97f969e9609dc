"""Failures of environment tasks in the result store: Celery's fields, and beside them a description of the exception.

Any Celery client reads Celery's fields. A process with an app of `flyte.init` makes the exception from the description,
for Celery's face and for Flyte's, see `crossing`.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from celery import current_task

from .. import redaction
from ..crossing import described, recreated
from ..task import TaskTemplate

#: Name of the description among Celery's fields of an exception.
FIELD = "flyte_celery"


class Failures:
    """Mixed into Celery's result backends."""

    encode: Any

    def prepare_exception(self, exc: Any, serializer: str | None = None) -> Any:
        """An exception as it is stored; of one that an environment task raises with a description."""
        prepared = super().prepare_exception(exc, serializer)  # type: ignore[misc]
        if isinstance(prepared, dict) and isinstance(getattr(current_task, "template", None), TaskTemplate):
            with contextlib.suppress(Exception):  # without one Celery's fields still say what happened
                description = redaction.current().value(described(_raised(exc)))
                self.encode(description)  # by a serializer that may not know all text
                prepared[FIELD] = description
        return prepared

    def exception_to_python(self, exc: Any) -> Any:
        """A stored exception; made from its description where there is one."""
        if isinstance(exc, dict) and FIELD in exc:
            with contextlib.suppress(Exception):  # it is not what was written here
                return recreated(exc[FIELD])
        return super().exception_to_python(exc)  # type: ignore[misc]


def _raised(exc: BaseException) -> BaseException:
    """What the task raised, where Celery's tracer stores another exception because this one cannot be pickled."""
    raised = sys.exception()
    stands_for = raised is not None and raised.__traceback__ is not None and raised.__traceback__ is exc.__traceback__
    return raised if stands_for and raised is not None else exc
