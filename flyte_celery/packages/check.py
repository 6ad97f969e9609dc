"""Whether the running interpreter has the Python packages that an image asks for."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from ..image import Image
from .wanted import installs


@dataclass(frozen=True, slots=True)
class Unmet:
    """A requirement that this interpreter does not meet."""

    requirement: str
    #: None: the package is not installed.
    installed: str | None

    def __str__(self) -> str:
        state = "not installed" if self.installed is None else f"{self.installed} is installed"
        return f"{self.requirement} ({state})"


def unmet(requirement: str) -> Unmet | None:
    """Compare one requirement with what is installed.

    Returns:
        None when it is met, when it is for other machines (`; sys_platform == "win32"`), and when only an installer
        could tell, as for a URL or a path. The extras of a package are not looked at.
    """
    try:
        wanted = Requirement(_of_wheel(requirement))
    except InvalidRequirement:
        return None
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return None
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Unmet(requirement, None)
    try:
        met = wanted.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:  # of before versions had rules
        return None
    return None if met else Unmet(requirement, version)


def complaint(environment: str, image: Image) -> str | None:
    """What this interpreter lacks of an image, and the command that installs it; None when it lacks nothing.

    Args:
        environment: Name of the image's environment.
        image: What it asks for. Layers that need another tool than pip, and system packages, are not looked at.
    """
    running = sys.version_info[:2]
    if image.python_version != running:
        wanted, here = ("{}.{}".format(*version) for version in (image.python_version, running))
        return f"Its image has Python {wanted}, and this worker runs {here}: start it with Python {wanted}."
    try:
        wanted_by_layer = installs(image)
    except (OSError, ValueError) as exc:
        return (
            f"The packages of its image cannot be checked ({exc}): correct the image, or put its file where the worker "
            "runs."
        )
    lacking: list[Unmet] = []
    commands: list[str] = []
    for install in wanted_by_layer:
        if missing := [found for requirement in install.requirements if (found := unmet(requirement)) is not None]:
            lacking += missing
            arguments = install.shown([found.requirement for found in missing])
            commands.append(shlex.join([sys.executable, "-m", "pip", "install", *arguments]))
    if not lacking:
        return None
    return (
        f"This interpreter does not have what the image asks for: {', '.join(map(str, lacking))}. Install it with "
        f"`{' && '.join(commands)}`, or serve the environment from packages of its own with `env worker {environment} "
        "--venv`."
    )


def _of_wheel(requirement: str) -> str:
    """The name and version of a wheel that is given by its path."""
    if not requirement.endswith(".whl"):
        return requirement
    try:
        name, version, _, _ = parse_wheel_filename(requirement.rpartition("/")[2])
    except InvalidWheelFilename:
        return requirement
    return f"{name}=={version}"
