"""What an environment's processes need beside code: its secrets, found before the worker takes any work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..environment import TaskEnvironment
from ..redaction import SHORTEST
from ..secret import SecretRequest, secrets_of
from ..secret_sources import SecretError, Secrets, Sources, provider_of
from ..settings import Settings


@dataclass(frozen=True, slots=True)
class Provisions:
    """What was found."""

    secrets: Secrets
    #: What the worker's log says at its start.
    warnings: tuple[str, ...] = ()


def find_secrets(app: Any, request: SecretRequest | None) -> Secrets:
    """Find secrets where the worker's are.

    Raises:
        SecretError: One is missing, or cannot be given as it is asked for.
    """
    settings = Settings.from_environ(os.environ)
    return Sources(provider_of(app), settings.secrets_dir, os.environ).resolve(secrets_of(request))


def provide(app: Any, environment: TaskEnvironment) -> Provisions:
    """Find what an environment asks for.

    Raises:
        SecretError: A secret is missing, or cannot be given to the replicas as it is asked for.
    """
    try:
        secrets = find_secrets(app, environment.secrets)
    except SecretError as exc:
        raise SecretError(f"Environment {environment.name!r} cannot be served. {exc}") from None
    if both := sorted(secrets.environ.keys() & (environment.env_vars or {}).keys()):
        raise SecretError(
            f"Environment {environment.name!r} has {both[0]} in env_vars and as a secret: leave it out of env_vars, or "
            "give the secret another name with as_env_var=."
        )
    short = sum(len(value) < SHORTEST for value in secrets.values)
    warning = (
        f"{short} of its secrets have fewer than {SHORTEST} characters: they are not redacted in logs and errors, "
        "because such a text occurs by chance."
    )
    return Provisions(secrets, (warning,) if short else ())
