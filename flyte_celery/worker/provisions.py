"""What an environment's processes need beside code, found before the worker takes any work: secrets and packages."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .. import redaction
from ..environment import TaskEnvironment
from ..image import Image
from ..packages.check import complaint
from ..redaction import SHORTEST
from ..secret import SecretRequest, secrets_of
from ..secret_sources import SecretError, Secrets, Sources, provider_of
from ..settings import Settings


class CannotProvide(Exception):
    """The environment cannot have what it asks for; the text says what, and what to do."""


@dataclass(frozen=True, slots=True)
class Provisions:
    """What was found."""

    secrets: Secrets
    #: What the worker's log says at its start.
    warnings: tuple[str, ...] = ()


def provide(app: Any, environment: TaskEnvironment, *, strict_image: bool = False) -> Provisions:
    """Find what an environment asks for.

    Args:
        app: The Celery app, which may have a secret provider.
        environment: What is to be served.
        strict_image: Whether missing packages of its image are more than a warning.

    Raises:
        CannotProvide: A secret is missing, or cannot be given to the replicas as it is asked for; or packages are
            missing.
    """
    warnings = []
    if isinstance(environment.image, Image) and (lacking := complaint(environment.name, environment.image)) is not None:
        if strict_image:
            raise CannotProvide(f"Environment {environment.name!r} cannot be served. {lacking}")
        warnings.append(lacking)
    secrets = secrets_for(app, environment.name, environment.secrets)
    if both := sorted(secrets.environ.keys() & (environment.env_vars or {}).keys()):
        raise CannotProvide(
            f"Environment {environment.name!r} has {both[0]} in env_vars and as a secret: leave it out of env_vars, or "
            "give the secret another name with as_env_var=."
        )
    if short := sum(len(value) < SHORTEST for value in secrets.values):
        warnings.append(
            f"{short} of its secrets have fewer than {SHORTEST} characters: they are not redacted in logs and errors, "
            "because such a text occurs by chance."
        )
    return Provisions(secrets, tuple(warnings))


def secrets_for(app: Any, name: str, request: SecretRequest | None) -> Secrets:
    """Find secrets for replicas of an environment; from now on this process redacts their values.

    Args:
        app: The Celery app, which may have a secret provider.
        name: The environment's.
        request: What it asks for.

    Raises:
        CannotProvide: One is missing, or cannot be given as it is asked for.
    """
    directory = Settings.from_environ(os.environ).secrets_dir
    try:
        secrets = Sources(provider_of(app), directory, os.environ).resolve(secrets_of(request))
    except SecretError as exc:
        raise CannotProvide(f"Environment {name!r} cannot be served. {exc}") from None
    redaction.install(secrets.values)
    return secrets
