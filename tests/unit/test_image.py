"""`Image` as a value: how it is made, what its layers hold, and when it takes none."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flyte_celery import image as layers
from flyte_celery.image import Image
from flyte_celery.secret import Secret

DEBIAN = Image.from_debian_base()

Change = Callable[[Image], Image]

#: Every method that adds a layer, and the layer.
ADDITIONS: dict[str, tuple[Change, layers.Layer]] = {
    "pip": (lambda i: i.with_pip_packages("a", "b>=2"), layers.PipPackages(("a", "b>=2"))),
    "pip with options": (
        lambda i: i.with_pip_packages(
            "a", index_url="i", extra_index_urls="u", pre=True, extra_args="-v", secret_mounts=["k", Secret("z")]
        ),
        layers.PipPackages(
            ("a",),
            index_url="i",
            extra_index_urls=("u",),
            pre=True,
            extra_args="-v",
            secret_mounts=(Secret("k"), Secret("z")),
        ),
    ),
    "requirements": (
        lambda i: i.with_requirements("r.txt", extra_index_urls=["u", "v"]),
        layers.Requirements(Path("r.txt"), extra_index_urls=("u", "v")),
    ),
    "uv": (
        lambda i: i.with_uv_project("p/pyproject.toml"),
        layers.UVProject(Path("p/pyproject.toml"), Path("p/uv.lock"), "dependencies_only"),
    ),
    "poetry": (
        lambda i: i.with_poetry_project(Path("pyproject.toml"), "my.lock", project_install_mode="install_project"),
        layers.PoetryProject(Path("pyproject.toml"), Path("my.lock"), None, (), "install_project"),
    ),
    "pixi": (
        lambda i: i.with_pixi_project("pixi.toml", environment="gpu"),
        layers.PixiProject(Path("pixi.toml"), Path("pixi.lock"), "gpu", None, (), "dependencies_only"),
    ),
    "apt": (
        lambda i: i.with_apt_packages("git", "vim", secret_mounts="k"),
        layers.AptPackages(("git", "vim"), (Secret("k"),)),
    ),
    "commands": (lambda i: i.with_commands(["a", "b"]), layers.Commands(("a", "b"), ())),
    "env vars": (
        lambda i: i.with_env_vars({"B": "2", "A": "1"}),
        layers.EnvVars((("B", "2"), ("A", "1"))),
    ),
    "workdir": (lambda i: i.with_workdir("/srv"), layers.WorkDir("/srv")),
    "source file": (lambda i: i.with_source_file(Path("x.py")), layers.SourceFile(Path("x.py"), ".")),
    "source folder": (
        lambda i: i.with_source_folder(Path("d"), "/srv", copy_contents_only=True),
        layers.SourceFolder(Path("d"), "/srv", True),
    ),
    "dockerignore": (lambda i: i.with_dockerignore(Path(".dockerignore")), layers.DockerIgnore(Path(".dockerignore"))),
    "code bundle": (lambda i: i.with_code_bundle(), layers.CodeBundle("loaded_modules", ".")),
}
CHANGES = pytest.mark.parametrize("change", [change for change, _ in ADDITIONS.values()], ids=[*ADDITIONS])


@pytest.mark.parametrize("options", [{}, {"base_image": "x"}])
def test_an_image_is_not_made_directly(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"Image\.from_debian_base"):
        Image(**options)


# -- Bases -----------------------------------------------------------------------------------------------------------


def test_a_debian_base_has_the_running_python_and_takes_layers() -> None:
    assert DEBIAN.python_version == sys.version_info[:2]
    assert DEBIAN.base_image == f"python:{sys.version_info.major}.{sys.version_info.minor}-slim-bookworm"
    assert DEBIAN.platform == ("linux/amd64", "linux/arm64")
    assert DEBIAN.extendable
    assert DEBIAN.install_flyte
    assert DEBIAN.layers == ()


def test_a_debian_base_keeps_what_it_is_given() -> None:
    image = Image.from_debian_base(
        python_version=(3, 12),
        flyte_version="1.0",
        install_flyte=False,
        registry="r",
        registry_secret="k",
        name="n",
        platform="linux/arm64",
    )
    assert (image.base_image, image.python_version) == ("python:3.12-slim-bookworm", (3, 12))
    assert (image.flyte_version, image.install_flyte) == ("1.0", False)
    assert (image.registry, image.registry_secret, image.name) == ("r", Secret("k"), "n")
    assert image.platform == ("linux/arm64",)


@pytest.mark.parametrize(
    "options",
    [{"python": "3.12"}, {"python_version": "3.12"}, {"python_version": (3,)}, {"name": 5}, {"platform": (5,)}],
)
def test_a_debian_base_of_wrong_types_is_a_type_error(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Image.from_debian_base(**options)


def test_an_existing_image_is_used_as_it_is() -> None:
    image = Image.from_base("r/i:1")
    assert (image.base_image, image.extendable, image.install_flyte) == ("r/i:1", False, False)


@pytest.mark.parametrize(("uri", "error"), [("", ValueError), (" ", ValueError), (None, TypeError), (5, TypeError)])
def test_an_existing_image_needs_a_name(uri: Any, error: type[Exception]) -> None:
    """An environment variable that is not set is the usual reason."""
    with pytest.raises(error, match="image_uri="):
        Image.from_base(uri)


def test_a_dockerfile_is_the_whole_image() -> None:
    image = Image.from_dockerfile("d/Dockerfile", "r", "n")
    assert (image.dockerfile, image.registry, image.name) == (Path("d/Dockerfile"), "r", "n")
    with pytest.raises(TypeError, match="registry"):
        Image.from_dockerfile("d/Dockerfile")  # type: ignore[call-arg]


def test_an_image_may_be_known_by_a_name_alone() -> None:
    assert Image.from_ref_name("x").ref_name == "x"
    assert Image.from_ref_name().ref_name == "default"


def test_a_script_says_what_it_needs() -> None:
    image = Image.from_uv_script("s.py", name="n", registry="r", python_version=(3, 12), pre=True)
    assert image.layers == (layers.UVScript(Path("s.py"), pre=True),)
    assert (image.name, image.registry, image.python_version) == ("n", "r", (3, 12))
    image = Image.from_pixi_script(Path("s.py"), name="n", secret_mounts="k")
    assert image.layers == (layers.PixiScript(Path("s.py"), "default", None, (Secret("k"),)),)
    with pytest.raises(TypeError, match="name"):
        Image.from_uv_script("s.py")  # type: ignore[call-arg]


# -- Layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "layer"), [*ADDITIONS.values()], ids=[*ADDITIONS])
def test_each_method_adds_its_layer_to_a_new_image(change: Change, layer: layers.Layer) -> None:
    image = change(DEBIAN)
    assert image is not DEBIAN
    assert DEBIAN.layers == ()
    assert image.layers == (layer,)
    assert change(image).layers == (layer, layer)


@CHANGES
def test_images_equal_by_content_and_are_hashable(change: Change) -> None:
    assert change(DEBIAN) == change(Image.from_debian_base())
    assert hash(change(DEBIAN)) == hash(change(Image.from_debian_base()))
    assert change(DEBIAN) != DEBIAN
    assert pickle.loads(pickle.dumps(change(DEBIAN))) == change(DEBIAN)


@CHANGES
def test_an_image_that_is_not_extendable_takes_no_layers(change: Change) -> None:
    base = Image.from_base("r/i:1")
    for image in (base, base.clone(name="n"), Image.from_ref_name("x"), DEBIAN.clone(extendable=False)):
        with pytest.raises(ValueError, match=r"\.clone\(name=\.\.\., extendable=True\)"):
            change(image)
    assert len(change(base.clone(name="n", extendable=True)).layers) == 1


@CHANGES
def test_a_dockerfile_takes_no_layers_even_when_extendable(change: Change) -> None:
    with pytest.raises(ValueError, match="write them into that Dockerfile"):
        change(Image.from_dockerfile("Dockerfile", "r", "n").clone(name="z", extendable=True))


def test_an_image_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        DEBIAN.name = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i.with_pip_packages(["a"]),
        lambda i: i.with_pip_packages(5),
        lambda i: i.with_pip_packages("a", foo=1),
        lambda i: i.with_pip_packages("a", index_url=5),
        lambda i: i.with_apt_packages(["git"]),
        lambda i: i.with_commands("echo"),
        lambda i: i.with_commands(5),
        lambda i: i.with_commands([5]),
        lambda i: i.with_env_vars([("A", "1")]),
        lambda i: i.with_source_file(5),
        lambda i: i.with_requirements(5),
    ],
)
def test_a_layer_of_wrong_types_is_a_type_error(change: Callable[[Any], Image]) -> None:
    with pytest.raises(TypeError):
        change(DEBIAN)


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i.with_requirements("r.py"),
        lambda i: i.with_uv_project("pyproject.toml", project_install_mode="bogus"),
        lambda i: i.with_code_bundle("bogus"),
    ],
)
def test_a_layer_of_wrong_values_is_a_value_error(change: Callable[[Any], Image]) -> None:
    with pytest.raises(ValueError, match=r"r\.py|bogus"):
        change(DEBIAN)


def test_several_files_are_several_layers() -> None:
    image = DEBIAN.with_source_file([Path("x.py"), Path("y.py")], "/srv")
    assert image.layers == (layers.SourceFile(Path("x.py"), "/srv"), layers.SourceFile(Path("y.py"), "/srv"))


def test_values_of_variables_become_text() -> None:
    numbers: Any = {"N": 1}
    assert DEBIAN.with_env_vars(numbers).layers == (layers.EnvVars((("N", "1"),)),)


# -- Clones ----------------------------------------------------------------------------------------------------------


def test_a_clone_changes_what_it_is_told_and_nothing_else() -> None:
    original = DEBIAN.with_pip_packages("a")
    clone = original.clone(
        registry="r", registry_secret="k", name="n", python_version=(3, 12), base_image="b", platform="linux/arm64"
    )
    assert (clone.registry, clone.registry_secret, clone.name) == ("r", Secret("k"), "n")
    assert (clone.python_version, clone.base_image, clone.platform) == ((3, 12), "b", ("linux/arm64",))
    assert (clone.layers, clone.extendable) == (original.layers, True)
    assert original.clone() == original


def test_a_clone_may_have_one_more_layer() -> None:
    assert DEBIAN.clone(addl_layer=layers.WorkDir("/x")).layers == (layers.WorkDir("/x"),)
    with pytest.raises(ValueError, match="takes no layers"):
        Image.from_base("b").clone(addl_layer=layers.WorkDir("/x"))


def test_an_unknown_argument_of_a_clone_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="foo"):
        DEBIAN.clone(foo=1)  # type: ignore[call-arg]
