"""Which Python packages an image asks for, layer by layer."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..image import Image
from ..image_layers import (
    Layer,
    PipOptions,
    PipPackages,
    PixiProject,
    PixiScript,
    PoetryProject,
    Requirements,
    UVProject,
    UVScript,
)
from ..urls import redacted

#: Layers of Python packages that pip alone cannot install.
_BY_OTHER_TOOLS = (UVProject, PoetryProject, PixiProject, PixiScript)

#: Inline metadata of a script, as its specification defines it.
_SCRIPT_BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


@dataclass(frozen=True, slots=True)
class Install:
    """What one command of an installer installs."""

    #: Requirements, as on pip's command line.
    requirements: tuple[str, ...]
    options: PipOptions
    #: The layer's own arguments for pip.
    extra: tuple[str, ...]
    #: The requirements file that they come from.
    file: Path | None = None

    def arguments(self) -> list[str]:
        """Behind `pip install`, without the index, whose URL may hold a password."""
        pre = ["--pre"] if self.options.pre else []
        what = list(self.requirements) if self.file is None else ["--requirement", str(self.file)]
        return [*pre, *self.extra, *what]

    def shown(self, requirements: list[str]) -> list[str]:
        """Behind `pip install`, for people, with these requirements in place of all."""
        index = [] if self.options.index_url is None else ["--index-url", redacted(self.options.index_url)]
        for url in self.options.extra_index_urls:
            index += ["--extra-index-url", redacted(url)]
        pre = ["--pre"] if self.options.pre else []
        return [*index, *pre, *self.extra, *requirements]


def installs(image: Image) -> list[Install]:
    """What pip has to install, in the order of the image's layers.

    Raises:
        OSError: A file that a layer names is not on this machine.
        ValueError: A script's metadata, or a layer's `extra_args`, cannot be read.
    """
    return [install for layer in image.layers if (install := _install(layer)) is not None]


def by_other_tools(image: Image) -> list[str]:
    """The kinds of those layers with Python packages that pip alone cannot install."""
    return [type(layer).__name__ for layer in image.layers if isinstance(layer, _BY_OTHER_TOOLS)]


def _install(layer: Layer) -> Install | None:
    if not isinstance(layer, PipPackages | Requirements | UVScript):
        return None
    extra = tuple(shlex.split(layer.extra_args or ""))
    match layer:
        case PipPackages():
            return Install(layer.packages, layer, extra)
        case Requirements():
            return Install(tuple(_lines(layer.file)), layer, extra, layer.file)
        case UVScript():
            return Install(tuple(_dependencies(layer.script)), layer, extra)


def _lines(file: Path) -> Iterator[str]:
    """The requirements of a file and of those that it includes, without pip's options."""
    text = file.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        content = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if included := re.match(r"(?:-r|--requirement)[ =]\s*(\S+)", content):
            yield from _lines(file.parent / included[1])
        elif content and not content.startswith("-"):
            yield re.split(r"\s--\w", content, maxsplit=1)[0].strip()


def _dependencies(script: Path) -> list[str]:
    found = _SCRIPT_BLOCK.search(script.read_text())
    if found is None:
        return []
    content = "".join(
        line[2:] if line.startswith("# ") else line[1:] for line in found["content"].splitlines(keepends=True)
    )
    dependencies = tomllib.loads(content).get("dependencies", [])
    return [str(dependency) for dependency in dependencies]
