"""What an image asks of an interpreter, and what is said when that does not have it."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from flyte_celery.image import Image
from flyte_celery.packages.check import Unmet, complaint, unmet
from flyte_celery.packages.wanted import by_other_tools, installs

CELERY = version("celery")
DEBIAN = Image.from_debian_base()


@pytest.mark.parametrize(
    "requirement",
    [
        "celery",
        "Celery",
        f"celery=={CELERY}",
        "celery[redis]>=5",
        "absent; sys_platform == 'win32'",
        "absent; extra == 'more'",
        "git+https://example.org/x.git",
        "./local",
        "-e .",
        "absent @ https://example.org/x.whl; sys_platform == 'win32'",
        f"wheels/celery-{CELERY}-py3-none-any.whl",
        "wheels/not-a-wheel.whl",
    ],
)
def test_these_are_met_or_cannot_be_judged(requirement: str) -> None:
    assert unmet(requirement) is None


@pytest.mark.parametrize(
    ("requirement", "installed"),
    [
        ("absent-package", None),
        ("absent-package>=2", None),
        ("absent @ https://example.org/x.whl", None),
        ("celery<5", CELERY),
        ("celery!=" + CELERY, CELERY),
        ("wheels/celery-4.0-py3-none-any.whl", CELERY),
    ],
)
def test_these_are_not_met(requirement: str, installed: str | None) -> None:
    assert unmet(requirement) == Unmet(requirement, installed)


def test_a_pre_release_that_is_installed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.0rc1")
    assert unmet("anything>=2") is None


def test_a_version_without_rules_is_taken_as_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2004d")
    assert unmet("anything>=2") is None


def test_arguments_that_cannot_be_read_are_a_complaint() -> None:
    said = complaint("shop", DEBIAN.with_pip_packages("absent", extra_args="--x 'open"))
    assert said is not None
    assert "cannot be checked (No closing quotation)" in said


def test_an_interpreter_that_has_everything_is_no_complaint() -> None:
    assert complaint("shop", DEBIAN) is None
    assert complaint("shop", DEBIAN.with_pip_packages("celery>=5").with_apt_packages("git")) is None
    assert complaint("shop", Image.from_base("x")) is None


def test_the_complaint_has_the_exact_command_with_a_part_for_each_layer() -> None:
    image = DEBIAN.with_pip_packages(
        "celery", "absent>=2", index_url="https://u:hidden@i.example/simple", pre=True
    ).with_pip_packages("celery<5", extra_index_urls=["https://x.example"], extra_args="--no-deps")
    said = complaint("shop", image)
    assert said is not None
    assert f"absent>=2 (not installed), celery<5 ({CELERY} is installed)" in said
    first = f"{sys.executable} -m pip install --index-url 'https://u:**@i.example/simple' --pre 'absent>=2'"
    second = f"{sys.executable} -m pip install --extra-index-url https://x.example --no-deps 'celery<5'"
    assert f"`{first} && {second}`" in said
    assert "env worker shop --venv" in said


def test_another_python_is_a_complaint() -> None:
    said = complaint("shop", Image.from_debian_base(python_version=(3, 8)))
    assert said is not None
    assert said.endswith("start it with Python 3.8.")


def test_a_requirements_file_is_read_with_those_that_it_includes(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "base.txt").write_text("celery>=5\n")
    (tmp_path / "all.txt").write_text(
        """
        # a comment
        -r more/base.txt
        --requirement=more/base.txt
        -c constraints.txt
        --index-url https://example.org
        absent==1.0 --hash=sha256:abc \\
            --hash=sha256:def
        other>=2 ; python_version > "3"  # why
        """
    )
    (install,) = installs(DEBIAN.with_requirements(tmp_path / "all.txt"))
    assert install.requirements == ("celery>=5", "celery>=5", "absent==1.0", 'other>=2 ; python_version > "3"')
    assert install.arguments() == ["--requirement", str(tmp_path / "all.txt")]
    said = complaint("shop", DEBIAN.with_requirements(tmp_path / "all.txt"))
    assert said is not None
    assert "absent==1.0 (not installed), other>=2" in said


def test_a_script_is_asked_for_its_dependencies(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text('# /// script\n# dependencies = [\n#     "absent>=1",\n# ]\n#\n# ///\nprint()\n')
    (install,) = installs(Image.from_uv_script(script, name="n", pre=True))
    assert (install.requirements, install.arguments()) == (("absent>=1",), ["--pre", "absent>=1"])
    script.write_text("print()\n")
    assert installs(Image.from_uv_script(script, name="n"))[0].requirements == ()


@pytest.mark.parametrize("content", [None, "# /// script\n# dependencies = [\n# ///\n"])
def test_a_file_that_is_not_here_or_makes_no_sense_is_a_complaint(tmp_path: Path, content: str | None) -> None:
    script = tmp_path / "s.py"
    if content is not None:
        script.write_text(content)
    said = complaint("shop", Image.from_uv_script(script, name="n"))
    assert said is not None
    assert said.startswith("The packages of its image cannot be checked")


def test_what_other_tools_install_is_told_apart() -> None:
    image = DEBIAN.with_uv_project("pyproject.toml").with_pip_packages("a").with_poetry_project("pyproject.toml")
    assert by_other_tools(image) == ["UVProject", "PoetryProject"]
    assert [install.requirements for install in installs(image)] == [("a",)]


@pytest.mark.parametrize(
    ("typed", "continued"),
    [
        (["-A", "proj", "env", "worker", "shop", "--venv", "-E"], ["-A", "proj", "env", "worker", "shop", "-E"]),
        (["--workdir", "proj", "-A", "proj", "--venv"], ["--workdir", ".", "-A", "proj"]),
        (["--workdir=sub/dir", "-A", "proj"], ["--workdir=.", "-A", "proj"]),
    ],
)
def test_a_command_goes_on_where_it_is(typed: list[str], continued: list[str]) -> None:
    """Celery has changed its directory already."""
    from flyte_celery.cli.venv import _arguments

    assert _arguments(typed) == continued
