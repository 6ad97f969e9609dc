"""`Secret`: a secret that a task reads from an environment variable or a file, never from code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")

#: The only directory that secrets are mounted in.
MOUNT = Path("/etc/flyte/secrets")


@dataclass(frozen=True)
class Secret:
    """A secret of the platform's store.

    Args:
        key: Its name in the store.
        group: The group that it belongs to in the store.
        mount: `/etc/flyte/secrets`: have it as a file in there. None: as an environment variable.
        as_env_var: The environment variable. None: `KEY`, or `GROUP_KEY`, in upper case with `_` for `-`, unless it
            is mounted.

    Raises:
        TypeError: `key`, `group` or `as_env_var` is no string.
        ValueError: `mount` is another directory, or the environment variable's name has other characters than
            `A-Z`, `0-9` and `_`, or starts with a digit.
    """

    key: str
    group: str | None = None
    mount: Path | None = None
    as_env_var: str | None = None

    def __post_init__(self) -> None:
        for field, text in (("key", self.key), ("group", self.group or ""), ("as_env_var", self.as_env_var or "")):
            if not isinstance(text, str):
                raise TypeError(f"{field}={text!r} of a secret is no string: use its name in the store.")
        if self.mount:
            if not isinstance(self.mount, str | Path) or Path(self.mount) != MOUNT:
                raise ValueError(f"mount={self.mount!r} of secret {self.key!r} is not possible: use {str(MOUNT)!r}.")
            object.__setattr__(self, "mount", Path(self.mount))
        if not self.mount and not self.as_env_var:
            name = "_".join(filter(None, (self.group, self.key)))
            object.__setattr__(self, "as_env_var", name.replace("-", "_").upper())
        if self.as_env_var is not None and not _VARIABLE.fullmatch(self.as_env_var):
            raise ValueError(
                f"as_env_var={self.as_env_var!r} of secret {self.key!r} is no environment variable: "
                f"give one that matches {_VARIABLE.pattern}, such as as_env_var='MY_SECRET'."
            )


#: What `secrets=` of an environment may be.
SecretRequest = str | Secret | list[str | Secret]


def secrets_of(request: SecretRequest | tuple[str | Secret, ...] | None) -> tuple[Secret, ...]:
    """What `secrets=` of an environment means.

    Args:
        request: A key, a `Secret`, a list or tuple of those, or None for no secret.

    Raises:
        TypeError: It is something else.
        ValueError: A key alone makes no name for an environment variable.
    """
    if request is None:
        return ()
    each = request if isinstance(request, list | tuple) else (request,)
    return tuple(secret if isinstance(secret, Secret) else _secret(secret) for secret in each)


def _secret(key: object) -> Secret:
    if not isinstance(key, str):
        raise TypeError(f"secrets={key!r} is not possible: use the key of a secret, a Secret, or a list of those.")
    return Secret(key)
