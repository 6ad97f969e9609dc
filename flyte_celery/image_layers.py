"""The layers of an `Image`, as values: what each of them adds when a deployment builds it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .secret import Secret

#: Whether a project's own package is installed too, or only what it depends on.
ProjectInstallMode = Literal["dependencies_only", "install_project"]
CopyStyle = Literal["loaded_modules", "all"]


@dataclass(frozen=True, kw_only=True)
class PipOptions:
    """How packages are installed: from where, whether pre-releases count, and with which secrets at hand."""

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    pre: bool = False
    extra_args: str | None = None
    secret_mounts: tuple[Secret, ...] = ()


@dataclass(frozen=True)
class PipPackages(PipOptions):
    """Python packages, as requirement strings."""

    packages: tuple[str, ...]


@dataclass(frozen=True)
class Requirements(PipOptions):
    """Python packages, as a requirements file lists them."""

    file: Path


@dataclass(frozen=True)
class UVProject(PipOptions):
    """A project that uv manages."""

    pyproject: Path
    lock: Path
    project_install_mode: ProjectInstallMode


@dataclass(frozen=True)
class UVScript(PipOptions):
    """What the inline metadata of a script asks for."""

    script: Path


@dataclass(frozen=True)
class PoetryProject:
    """A project that Poetry manages."""

    pyproject: Path
    lock: Path
    extra_args: str | None
    secret_mounts: tuple[Secret, ...]
    project_install_mode: ProjectInstallMode


@dataclass(frozen=True)
class PixiProject:
    """A project that Pixi manages."""

    manifest: Path
    lock: Path
    environment: str
    extra_args: str | None
    secret_mounts: tuple[Secret, ...]
    project_install_mode: ProjectInstallMode


@dataclass(frozen=True)
class PixiScript:
    """What the inline Pixi metadata of a script asks for."""

    script: Path
    environment: str
    extra_args: str | None
    secret_mounts: tuple[Secret, ...]


@dataclass(frozen=True)
class AptPackages:
    """System packages."""

    packages: tuple[str, ...]
    secret_mounts: tuple[Secret, ...]


@dataclass(frozen=True)
class Commands:
    """Shell commands, run in order."""

    commands: tuple[str, ...]
    secret_mounts: tuple[Secret, ...]


@dataclass(frozen=True)
class EnvVars:
    """Environment variables, in the order in which they were given."""

    env_vars: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class WorkDir:
    """The directory in which later layers, and the processes, work."""

    workdir: str


@dataclass(frozen=True)
class SourceFile:
    """A file that is copied into the directory `dst`."""

    src: Path
    dst: str


@dataclass(frozen=True)
class SourceFolder:
    """A folder that is copied into the directory `dst`, or its contents alone."""

    src: Path
    dst: str
    copy_contents_only: bool


@dataclass(frozen=True)
class DockerIgnore:
    """The file that says what is never copied."""

    path: Path


@dataclass(frozen=True)
class CodeBundle:
    """The user's code, copied when the image is built."""

    copy_style: CopyStyle
    dst: str


Layer = (
    PipPackages
    | Requirements
    | UVProject
    | UVScript
    | PoetryProject
    | PixiProject
    | PixiScript
    | AptPackages
    | Commands
    | EnvVars
    | WorkDir
    | SourceFile
    | SourceFolder
    | DockerIgnore
    | CodeBundle
)
