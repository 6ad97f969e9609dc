"""Options of a worker that only an environment's worker understands."""

from __future__ import annotations

import click
from celery.bin.base import CeleryOption

_GROUP = "Environment Options"


def worker_options() -> list[click.Option]:
    """The options that `celery worker` and `celery env worker` gain."""
    return [
        CeleryOption(
            ["--idle-ttl"],
            type=click.FloatRange(min=0),
            help_group=_GROUP,
            help="Seconds without work after which the environment rests at zero, in place of the policy's.",
        ),
        CeleryOption(
            ["--scaledown-ttl"],
            type=click.FloatRange(min=0),
            help_group=_GROUP,
            help="Seconds after which surplus replicas go, in place of the policy's.",
        ),
        CeleryOption(
            ["--grace"],
            type=click.FloatRange(min=0),
            help_group=_GROUP,
            help="Seconds that running tasks get to finish when the worker stops. Default: 25.",
        ),
        CeleryOption(
            ["--strict-image"],
            is_flag=True,
            help_group=_GROUP,
            help="Do not start where the Python packages of the environment's image are missing; else a warning.",
        ),
    ]
