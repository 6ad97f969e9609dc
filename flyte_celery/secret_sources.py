"""Where a worker finds the values of secrets, and what its replicas get of them.

A source is asked in the order of how deliberate it is: the app's provider, the files of the secrets' directory, the
worker's environment. Only workers ask; a process that merely calls tasks never does.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from .secret import MOUNT, Secret

#: A function of the app that knows secrets: it gets a `Secret` and returns its value, None for one that it does not
#: know.
SecretProvider = Callable[[Secret], str | bytes | None]

_providers: WeakKeyDictionary[Any, SecretProvider] = WeakKeyDictionary()


class SecretError(Exception):
    """A secret cannot be had; the text names it, and says where it was looked for and how to give it."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """Secrets with their values, as replicas get them. Never shown, never an argument of a process."""

    #: Values by environment variable.
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Every value, the mounted ones too: what logs and errors must not show.
    values: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where secrets are looked for.

    Args:
        provider: The app's own function, if it has one.
        directory: Holds a file `KEY`, `GROUP/KEY` or `GROUP_KEY` for each secret.
        environ: The worker's environment variables.
        mount: Where mounted secrets have to be; another directory than `MOUNT` is for tests.
    """

    provider: SecretProvider | None
    directory: Path
    environ: Mapping[str, str] = field(repr=False)
    mount: Path = MOUNT

    def resolve(self, secrets: Iterable[Secret]) -> Secrets:
        """Find all secrets and put the mounted ones into place.

        Raises:
            SecretError: One is missing, cannot be read or placed, or is no text where it has to be.
        """
        environ: dict[str, str] = {}
        values: dict[str, None] = {}
        for secret in secrets:
            value = self._placed(secret) if secret.mount else self._found(secret)
            if value is None:
                raise SecretError(self._missing(secret))
            values[value.decode("utf-8", "surrogateescape")] = None
            if secret.as_env_var is not None:
                if secret.as_env_var in environ:
                    raise SecretError(
                        f"Two secrets are to be the environment variable {secret.as_env_var}: give {_shown(secret)} "
                        "another one with as_env_var=."
                    )
                environ[secret.as_env_var] = _text(secret, _without_newline(value) if secret.mount else value)
        return Secrets(environ, tuple(values))

    def _found(self, secret: Secret) -> bytes | None:
        """The value, None where no source has one. An empty value is none."""
        return self._provided(secret) or self._read(secret) or self._inherited(secret) or None

    def _provided(self, secret: Secret) -> bytes | None:
        if self.provider is None:
            return None
        try:
            value = self.provider(secret)
        except Exception as exc:
            raise SecretError(
                f"The secret provider failed for {_shown(secret)}: {type(exc).__name__}: {exc}. Correct the function "
                "that was given as flyte.init(secret_provider=...), or what it depends on."
            ) from exc
        if value is not None and not isinstance(value, str | bytes):
            raise SecretError(
                f"The secret provider returned a {type(value).__name__} for {_shown(secret)}: return str or bytes, or "
                "None for a secret that it does not know."
            )
        return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value

    def _read(self, secret: Secret) -> bytes | None:
        for path in _files(self.directory, secret):
            try:
                return _without_newline(path.read_bytes())
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue
            except OSError as exc:
                raise SecretError(
                    f"{_shown(secret)} cannot be read from {path} ({exc.strerror}): let the worker's user read it."
                ) from None
        return None

    def _inherited(self, secret: Secret) -> bytes | None:
        value = self.environ.get(_variable(secret))
        return None if value is None else value.encode("utf-8", "surrogateescape")

    # -- Mounted ones ------------------------------------------------------------------------------------------------

    def _placed(self, secret: Secret) -> bytes | None:
        """The value of a secret that has to be a file, which is there when this returns.

        What another source has is written there, where that is possible; what a container runtime has mounted is
        read-only, and stays.
        """
        path = next(_files(self.mount, secret), None)
        if path is None:
            raise SecretError(f"{_shown(secret)} cannot be a file in {self.mount}: its name is no path.")
        there = None
        with contextlib.suppress(OSError):
            there = path.read_bytes()
        value = self._found(secret)
        if value is None or (there is not None and value == _without_newline(there)):
            return there or None
        try:
            _write(path, value, self.mount)
        except OSError as exc:
            if there is not None:
                return there
            raise SecretError(
                f"{_shown(secret)} was found, but cannot be written to {path} ({exc.strerror}): mount it there, or "
                f"make {self.mount} a directory, on a tmpfs for choice, that the worker's user may write to."
            ) from None
        return value

    def _missing(self, secret: Secret) -> str:
        files = [str(path) for path in _files(self.directory, secret)]
        if secret.mount:
            files += [str(path) for path in _files(self.mount, secret)][:1]
        provider = "the app's secret provider does not know it" if self.provider else "the app has no secret provider"
        places = f"there is no file {' or '.join(files)}, " if files else ""
        first = files[-1] if secret.mount else files[0] if files else None
        how = (
            f"put it into {first}"
            if secret.mount
            else f"set {_variable(secret)} for the worker" + (f", put it into {first}" if first else "")
        )
        return (
            f"{_shown(secret)} is missing: {provider}, {places}and the environment variable {_variable(secret)} is not "
            f"set. To give it, {how}, or return it from flyte.init(secret_provider=...)."
        )


def set_provider(app: Any, provider: SecretProvider | None) -> None:
    """Remember an app's secret provider; None leaves it as it is.

    Raises:
        TypeError: It is no function, or an `async def` one.
    """
    if provider is None:
        return
    if not callable(provider):
        raise TypeError(
            f"secret_provider is a {type(provider).__name__}: give a function that takes a flyte.Secret and returns "
            "its value."
        )
    if getattr(getattr(provider, "__code__", None), "co_flags", 0) & 0x80:  # inspect.CO_COROUTINE
        raise TypeError(f"secret_provider={provider.__qualname__} is `async def`: give a function with `def`.")
    _providers[app] = provider


def provider_of(app: Any) -> SecretProvider | None:
    """The secret provider that was given to `flyte.init` with this app."""
    return _providers.get(app)


def _files(directory: Path, secret: Secret) -> Iterator[Path]:
    """Where a secret's file may be; nowhere for a key that would lead out of the directory."""
    names = [Path(secret.key)] if not secret.group else [Path(secret.group, secret.key)]
    if secret.group:
        names.append(Path(f"{secret.group}_{secret.key}"))
    for name in names:
        if name.parts and not name.is_absolute() and ".." not in name.parts and "\0" not in str(name):
            yield directory / name


def _variable(secret: Secret) -> str:
    """The environment variable of the worker that may hold the value."""
    if secret.as_env_var is not None:
        return secret.as_env_var
    name = "_".join(filter(None, (secret.group, secret.key)))
    return re.sub(r"[^A-Z0-9_]", "_", name.upper())


def _shown(secret: Secret) -> str:
    group = f" of group {secret.group!r}" if secret.group else ""
    return f"The secret {secret.key!r}{group}"


def _text(secret: Secret, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise SecretError(
            f"{_shown(secret)} is no text, so it cannot be the environment variable {secret.as_env_var}: have it as a "
            f"file, with mount={str(MOUNT)!r}, or store it in base64."
        )
    return text


def _without_newline(content: bytes) -> bytes:
    """A file that was written with an editor or `echo` ends with one that is no part of the secret."""
    return content.removesuffix(b"\n").removesuffix(b"\r")


def _write(path: Path, value: bytes, mount: Path) -> None:
    """Write a file that nobody else may read, in one step; `mount` itself has to exist."""
    if not mount.is_dir():
        raise FileNotFoundError(2, f"there is no directory {mount}")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(value)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
