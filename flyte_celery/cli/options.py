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
            ["--max-age"],
            type=click.FloatRange(min=0, min_open=True),
            help_group=_GROUP,
            help="Seconds after which a replica is replaced by a fresh one.",
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
        *_host_options(_GROUP),
    ]


def with_host_options(command: click.Command) -> click.Command:
    """Add the options that say what the host is, for every worker that a command starts."""
    command.params += _host_options(None)
    return command


def _host_options(group: str | None) -> list[click.Option]:
    return [
        CeleryOption(
            ["--devices"],
            metavar="NAME:COUNT[xSHARES],...",
            help_group=group,
            help="Devices of this host, such as L4:2, T4:1x4 or A100/1g.5gb:7, in place of those that are found.",
        ),
        CeleryOption(
            ["--labels"],
            metavar="NAME=VALUE,...",
            help_group=group,
            help="Labels of this host, such as zone=a,tier=batch, beside those that are found.",
        ),
    ]
