"""`Image`: what an environment's processes need installed, as a value that deploying renders.

An `Image` is a base and a tuple of layers; layers are plain frozen dataclasses. No file is read here: a worker imports
the same code on a machine where those files are not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypedDict, Unpack, get_args

from .image_layers import (
    AptPackages,
    CodeBundle,
    Commands,
    CopyStyle,
    DockerIgnore,
    EnvVars,
    Layer,
    PipPackages,
    PixiProject,
    PixiScript,
    PoetryProject,
    ProjectInstallMode,
    Requirements,
    SourceFile,
    SourceFolder,
    UVProject,
    UVScript,
    WorkDir,
)
from .secret import Secret, SecretRequest, secrets_of

Architecture = Literal["linux/amd64", "linux/arm64"]


class PipArguments(TypedDict, total=False):
    """Arguments of every method that installs Python packages."""

    #: In place of PyPI.
    index_url: str | None
    #: In addition to PyPI.
    extra_index_urls: str | Sequence[str] | None
    #: Whether pre-releases count.
    pre: bool
    #: Passed to the installer as written.
    extra_args: str | None
    #: Secrets that are at hand during the installation, and not in the image.
    secret_mounts: SecretRequest | None


@dataclass(frozen=True, init=False)
class Image:
    """What an environment's processes need installed. Equal by content, and hashable; every `with_` makes a new one.

    Made by `Image.from_debian_base()`, `Image.from_base(uri)` and the other `from_` methods, never directly.

    Raises:
        TypeError: It is instantiated directly.
    """

    #: The image to start from; None: a Dockerfile, or a name that deploying resolves, takes its place.
    base_image: str | None = None
    #: The Dockerfile that is the whole image.
    dockerfile: Path | None = None
    #: The name under which the configuration of a deployment knows the image.
    ref_name: str | None = None
    registry: str | None = None
    name: str | None = None
    registry_secret: Secret | None = None
    platform: tuple[str, ...] = ("linux/amd64",)
    #: Major and minor version.
    python_version: tuple[int, int] = (sys.version_info.major, sys.version_info.minor)
    #: Whether this package is installed, in the version `flyte_version` or, for None, the version that deploys.
    install_flyte: bool = False
    flyte_version: str | None = None
    #: Whether layers may be added.
    extendable: bool = False
    layers: tuple[Layer, ...] = ()

    def __init__(self, *_: object, **__: object) -> None:
        raise TypeError("An Image is not made directly: use Image.from_debian_base() or another from_ method.")

    @classmethod
    def _made(cls, **values: Any) -> Self:
        image = object.__new__(cls)
        for field in fields(cls):
            object.__setattr__(image, field.name, values.get(field.name, field.default))
        return image

    @classmethod
    def from_debian_base(
        cls,
        python_version: tuple[int, int] | None = None,
        flyte_version: str | None = None,
        install_flyte: bool = True,
        registry: str | None = None,
        registry_secret: str | Secret | None = None,
        name: str | None = None,
        platform: Architecture | Sequence[Architecture] | None = None,
    ) -> Self:
        """A slim Debian with Python and this package.

        Args:
            python_version: Major and minor version. None: those of the running interpreter.
            flyte_version: Version of this package in the image. None: the version that deploys.
            install_flyte: Whether this package is installed at all.
            registry: Where the built image is pushed.
            registry_secret: Secret to push and pull with.
            name: Name of the built image.
            platform: What it is built for. None: amd64 and arm64.

        Raises:
            TypeError: An argument has the wrong type.
        """
        python = _python_version(python_version)
        return cls._made(
            base_image=f"python:{python[0]}.{python[1]}-slim-bookworm",
            registry=_text("registry", registry),
            name=_text("name", name),
            registry_secret=_single_secret(registry_secret),
            platform=_platform(platform, default=get_args(Architecture)),
            python_version=python,
            install_flyte=install_flyte,
            flyte_version=_text("flyte_version", flyte_version),
            extendable=True,
        )

    @classmethod
    def from_base(cls, image_uri: str) -> Self:
        """An image that exists, used as it is. To add layers: `.clone(name=..., extendable=True)`.

        Raises:
            TypeError: `image_uri` is no string.
            ValueError: It is empty.
        """
        if not isinstance(image_uri, str):
            raise TypeError(f"image_uri={image_uri!r} is no string: use a name such as 'registry/name:tag'.")
        if not image_uri.strip():
            raise ValueError(f"image_uri={image_uri!r} is empty: use a name such as 'registry/name:tag'.")
        return cls._made(base_image=image_uri)

    @classmethod
    def from_dockerfile(
        cls,
        file: str | Path,
        registry: str,
        name: str,
        platform: Architecture | Sequence[Architecture] | None = None,
    ) -> Self:
        """What a Dockerfile builds. It cannot have layers: write them into the Dockerfile."""
        return cls._made(
            dockerfile=_path("file", file),
            registry=_text("registry", registry),
            name=_text("name", name),
            platform=_platform(platform),
        )

    @classmethod
    def from_ref_name(cls, name: str = "default") -> Self:
        """The image that the configuration of the deployment has under a name."""
        return cls._made(ref_name=_text("name", name), name=name)

    @classmethod
    def from_uv_script(
        cls,
        script: str | Path,
        *,
        name: str,
        registry: str | None = None,
        registry_secret: str | Secret | None = None,
        python_version: tuple[int, int] | None = None,
        platform: Architecture | Sequence[Architecture] | None = None,
        **pip: Unpack[PipArguments],
    ) -> Self:
        """A slim Debian with what the inline metadata of a script asks for (`# /// script`)."""
        base = cls.from_debian_base(python_version, None, False, registry, registry_secret, name, platform)
        return base._with(UVScript(_path("script", script), **_pip_options(**pip)))

    @classmethod
    def from_pixi_script(
        cls,
        script: str | Path,
        *,
        name: str,
        registry: str | None = None,
        registry_secret: str | Secret | None = None,
        environment: str = "default",
        extra_args: str | None = None,
        platform: Architecture | Sequence[Architecture] | None = None,
        secret_mounts: SecretRequest | None = None,
    ) -> Self:
        """A slim Debian with what the inline Pixi metadata of a script asks for."""
        base = cls.from_debian_base(None, None, False, registry, registry_secret, name, platform)
        return base._with(PixiScript(_path("script", script), environment, extra_args, secrets_of(secret_mounts)))

    def clone(
        self,
        registry: str | None = None,
        registry_secret: str | Secret | None = None,
        name: str | None = None,
        base_image: str | None = None,
        python_version: tuple[int, int] | None = None,
        addl_layer: Layer | None = None,
        extendable: bool | None = None,
        platform: Architecture | Sequence[Architecture] | None = None,
    ) -> Self:
        """The same image with changes; what is None stays.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: A layer is added to an image that is not extendable.
        """
        changes = {
            "registry": _text("registry", registry),
            "registry_secret": _single_secret(registry_secret),
            "name": _text("name", name),
            "base_image": _text("base_image", base_image),
            "python_version": None if python_version is None else _python_version(python_version),
            "extendable": extendable,
            "platform": None if platform is None else _platform(platform),
        }
        image = self._changed(**{field: value for field, value in changes.items() if value is not None})
        return image if addl_layer is None else image._with(addl_layer)

    # -- Layers ------------------------------------------------------------------------------------------------------

    def with_pip_packages(self, *packages: str, **pip: Unpack[PipArguments]) -> Self:
        """Install Python packages.

        Args:
            *packages: Requirements such as `"numpy>=2"`, one per argument.
            **pip: See `PipArguments`.

        Raises:
            TypeError: A package is no string, for instance a list of them.
            ValueError: The image is not extendable, as for every method that adds a layer.
        """
        return self._with(PipPackages(_texts("packages", packages), **_pip_options(**pip)))

    def with_requirements(self, file: str | Path, **pip: Unpack[PipArguments]) -> Self:
        """Install the Python packages that a requirements file, `*.txt`, lists."""
        path = _path("file", file)
        if path.suffix != ".txt":
            raise ValueError(f"file={str(path)!r} is no requirements file: use one whose name ends in .txt.")
        return self._with(Requirements(path, **_pip_options(**pip)))

    def with_uv_project(
        self,
        pyproject_file: str | Path,
        uvlock: str | Path | None = None,
        project_install_mode: ProjectInstallMode = "dependencies_only",
        **pip: Unpack[PipArguments],
    ) -> Self:
        """Install a project that uv manages. The lock file is `uv.lock` next to the project's file, or as given."""
        pyproject = _path("pyproject_file", pyproject_file)
        lock = pyproject.with_name("uv.lock") if uvlock is None else _path("uvlock", uvlock)
        mode = _choice("project_install_mode", project_install_mode, get_args(ProjectInstallMode))
        return self._with(UVProject(pyproject, lock, mode, **_pip_options(**pip)))

    def with_poetry_project(
        self,
        pyproject_file: str | Path,
        poetry_lock: str | Path | None = None,
        extra_args: str | None = None,
        secret_mounts: SecretRequest | None = None,
        project_install_mode: ProjectInstallMode = "dependencies_only",
    ) -> Self:
        """Install a project that Poetry manages. The lock file is `poetry.lock` next to it, or as given."""
        pyproject = _path("pyproject_file", pyproject_file)
        lock = pyproject.with_name("poetry.lock") if poetry_lock is None else _path("poetry_lock", poetry_lock)
        mode = _choice("project_install_mode", project_install_mode, get_args(ProjectInstallMode))
        return self._with(PoetryProject(pyproject, lock, extra_args, secrets_of(secret_mounts), mode))

    def with_pixi_project(
        self,
        manifest_file: str | Path,
        pixi_lock: str | Path | None = None,
        environment: str = "default",
        extra_args: str | None = None,
        secret_mounts: SecretRequest | None = None,
        project_install_mode: ProjectInstallMode = "dependencies_only",
    ) -> Self:
        """Install a project that Pixi manages. The lock file is `pixi.lock` next to the manifest, or as given."""
        manifest = _path("manifest_file", manifest_file)
        lock = manifest.with_name("pixi.lock") if pixi_lock is None else _path("pixi_lock", pixi_lock)
        mode = _choice("project_install_mode", project_install_mode, get_args(ProjectInstallMode))
        return self._with(PixiProject(manifest, lock, environment, extra_args, secrets_of(secret_mounts), mode))

    def with_apt_packages(self, *packages: str, secret_mounts: SecretRequest | None = None) -> Self:
        """Install system packages, one per argument.

        Raises:
            TypeError: A package is no string, for instance a list of them.
        """
        return self._with(AptPackages(_texts("packages", packages), secrets_of(secret_mounts)))

    def with_commands(self, commands: Sequence[str], secret_mounts: SecretRequest | None = None) -> Self:
        """Run shell commands.

        Raises:
            TypeError: `commands` is no list of strings.
        """
        if isinstance(commands, str) or not isinstance(commands, Sequence):
            raise TypeError(f"commands={commands!r} is no list: write with_commands(['first', 'second']).")
        return self._with(Commands(_texts("commands", commands), secrets_of(secret_mounts)))

    def with_env_vars(self, env_vars: Mapping[str, str]) -> Self:
        """Set environment variables; values become text.

        Raises:
            TypeError: `env_vars` is no dict.
        """
        if not isinstance(env_vars, Mapping):
            raise TypeError(f"env_vars={env_vars!r} is no dict: write with_env_vars({{'NAME': 'value'}}).")
        return self._with(EnvVars(tuple((str(name), str(value)) for name, value in env_vars.items())))

    def with_workdir(self, workdir: str) -> Self:
        """Work in a directory from here on."""
        return self._with(WorkDir(str(workdir)))

    def with_source_file(self, src: str | Path | Sequence[str | Path], dst: str = ".") -> Self:
        """Copy one or several files into the directory `dst` of the image."""
        sources = [src] if isinstance(src, str | Path) else src
        return self._with(*(SourceFile(_path("src", each), str(dst)) for each in sources))

    def with_source_folder(self, src: str | Path, dst: str = ".", copy_contents_only: bool = False) -> Self:
        """Copy a folder, or its contents alone, into the directory `dst` of the image."""
        return self._with(SourceFolder(_path("src", src), str(dst), copy_contents_only))

    def with_dockerignore(self, path: str | Path) -> Self:
        """Name the file that says what is never copied."""
        return self._with(DockerIgnore(_path("path", path)))

    def with_code_bundle(self, copy_style: CopyStyle = "loaded_modules", dst: str = ".") -> Self:
        """Copy the user's code into the image: the modules that are loaded, or all files of the project."""
        return self._with(CodeBundle(_choice("copy_style", copy_style, get_args(CopyStyle)), str(dst)))

    def _changed(self, **values: Any) -> Self:
        return self._made(**{field.name: getattr(self, field.name) for field in fields(self)} | values)

    def _with(self, *layers: Layer) -> Self:
        if self.dockerfile is not None:
            raise ValueError(f"The image of {self.dockerfile} takes no layers: write them into that Dockerfile.")
        if not self.extendable:
            raise ValueError(
                f"The image {self.base_image or self.ref_name} takes no layers: "
                "make an extendable one with .clone(name=..., extendable=True) first."
            )
        return self._changed(layers=(*self.layers, *layers))


# -- Arguments -------------------------------------------------------------------------------------------------------


def _pip_options(
    index_url: str | None = None,
    extra_index_urls: str | Sequence[str] | None = None,
    pre: bool = False,
    extra_args: str | None = None,
    secret_mounts: SecretRequest | None = None,
) -> dict[str, Any]:
    urls = [extra_index_urls] if isinstance(extra_index_urls, str) else extra_index_urls or ()
    return {
        "index_url": _text("index_url", index_url),
        "extra_index_urls": _texts("extra_index_urls", urls),
        "pre": pre,
        "extra_args": _text("extra_args", extra_args),
        "secret_mounts": secrets_of(secret_mounts),
    }


def _wrong(field: str, value: object, advice: str) -> NoReturn:
    raise TypeError(f"{field}={value!r} of an Image is not possible: {advice}.")


def _text(field: str, value: str | None) -> str | None:
    return value if isinstance(value, str | None) else _wrong(field, value, "use a string")


def _texts(field: str, values: Sequence[str]) -> tuple[str, ...]:
    for value in values:
        if not isinstance(value, str):
            _wrong(field, value, "give strings, each as an argument of its own: 'first', 'second'")
    return tuple(values)


def _path(field: str, value: str | Path) -> Path:
    return Path(value) if isinstance(value, str | Path) else _wrong(field, value, "use a path")


def _choice(field: str, value: Any, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise ValueError(f"{field}={value!r} of an Image is not possible: use one of {', '.join(choices)}.")
    return value


def _platform(value: str | Sequence[str] | None, default: tuple[str, ...] = ("linux/amd64",)) -> tuple[str, ...]:
    return default if value is None else _texts("platform", [value] if isinstance(value, str) else value)


def _python_version(value: tuple[int, int] | None) -> tuple[int, int]:
    match value:
        case None:
            return sys.version_info.major, sys.version_info.minor
        case (int(major), int(minor)):
            return major, minor
    _wrong("python_version", value, "use two numbers, such as (3, 12)")


def _single_secret(value: str | Secret | None) -> Secret | None:
    return Secret(value) if isinstance(value, str) else value
