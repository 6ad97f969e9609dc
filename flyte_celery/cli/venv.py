"""`--venv`: continuing a command in the virtual environment of an environment's image."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from .. import embedded, redaction
from ..environment import environments
from ..image import Image
from ..packages.venv import CannotBuild, ensure
from ..packages.wanted import installs
from ..secret_sources import SecretError, Sources, provider_of
from ..settings import Settings

#: The option, as it is typed.
OPTION = "--venv"


def continue_in_venv(ctx: click.Context, name: str) -> None:
    """Run this very command again with the interpreter of the environment's own packages, in place of this process.

    Returns when the environment's image names no packages: then this interpreter is the right one.

    Raises:
        click.ClickException: The virtual environment cannot be built.
    """
    app = ctx.obj.app
    image = environments()[name].image
    settings = Settings.from_environ(os.environ)
    python = None
    if isinstance(image, Image):
        folder = settings.project_dir / embedded.STATE_FOLDER / "venvs"
        try:
            environ = _with_secrets(app, image, settings)
            hidden = redaction.current()
            python = ensure(image, folder, environ, lambda line: click.echo(f"{name}: {hidden.text(line)}"))
        except (CannotBuild, SecretError) as exc:
            raise click.ClickException(f"{name}: {redaction.current().text(str(exc))}") from None
    if python is None:
        click.echo(f"{name}: its image names no Python packages, so it is served from {sys.executable}")
        return
    _continue(python)


def _with_secrets(app: Any, image: Image, settings: Settings) -> dict[str, str]:
    """The variables of this process, with the secrets that are to be at hand when packages are installed."""
    try:
        wanted = [secret for install in installs(image) for secret in install.options.secret_mounts]
    except (OSError, ValueError):  # `ensure` says so
        wanted = []
    secrets = Sources(provider_of(app), settings.secrets_dir, os.environ).resolve(wanted)
    redaction.install(secrets.values)
    return {**os.environ, **secrets.environ}


def _continue(python: Path) -> NoReturn:
    binaries = str(python.parent)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    environ |= {
        "VIRTUAL_ENV": str(python.parent.parent),
        "PATH": os.pathsep.join(filter(None, (binaries, os.environ.get("PATH")))),
    }
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(python, [str(python), "-m", "celery", *_arguments(sys.argv[1:])], environ)


def _arguments(typed: list[str]) -> list[str]:
    """The arguments of this command without the option, and with the place where Celery has gone already."""
    arguments: list[str] = []
    for argument in typed:
        if arguments[-1:] == ["--workdir"] or argument.startswith("--workdir="):
            argument = argument.rpartition("=")[0] + "=." if "=" in argument else "."
        if argument != OPTION:
            arguments.append(argument)
    return arguments
