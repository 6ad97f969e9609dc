"""Images and interpreters: what is missing is said, refused, or installed into a virtual environment.

Packages come from wheels that are made here, so nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import flyte_celery as flyte
from flyte_celery.packages.venv import CannotBuild, ensure
from tests.helpers.projects import Project
from tests.helpers.wheels import make_wheel
from tests.helpers.workers import Worker, project_environment

#: Two environments that need two versions of one package.
SMALL = """
    import os, sys
    from pathlib import Path

    import flyte_celery as flyte

    app = flyte.init()
    HERE = Path(__file__).parent
    OFFLINE = f"--no-index --find-links {HERE / 'wheels'}"
    POLICY = flyte.ReusePolicy(replicas=1, idle_ttl=3600)


    def image(*packages: str, **options: object) -> flyte.Image:
        return flyte.Image.from_debian_base().with_pip_packages(*packages, extra_args=OFFLINE, **options)


    older = flyte.TaskEnvironment("older", image=image("clashing==1.0"), reusable=POLICY)
    newer = flyte.TaskEnvironment("newer", image=image("clashing==2.0"))


    def look() -> dict[str, object]:
        import celery
        import clashing

        return {
            "version": clashing.VERSION,
            "prefix": sys.prefix,
            "base": celery.__file__,
            "venv": os.environ["VIRTUAL_ENV"],
        }


    @older.task
    async def older_look() -> dict[str, object]:
        return look()


    @newer.task
    def newer_look() -> dict[str, object]:
        return look()
"""

#: And environments that are not served as they are asked for.
SOURCE = (
    SMALL
    + """
    nothing = flyte.TaskEnvironment("nothing", image="auto", reusable=POLICY)
    wrong = flyte.TaskEnvironment("wrong", image=image("clashing==3.0"), reusable=POLICY)
    vital = flyte.TaskEnvironment("vital", image=image("needs_old_celery"), reusable=POLICY)
    project = flyte.TaskEnvironment("project", image=flyte.Image.from_debian_base().with_uv_project("pyproject.toml"))


    @nothing.task
    def where() -> str:
        return sys.prefix
"""
)


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    shared.write(SOURCE)
    for version in ("1.0", "2.0"):
        make_wheel(shared.folder / "wheels", "clashing", version)
    make_wheel(shared.folder / "wheels", "needs_old_celery", "1.0", requires=("celery<5",))
    return shared


def kept(project: Project) -> list[Path]:
    """The virtual environments that are there, or half there."""
    folder = project.folder / ".flyte-celery" / "venvs"
    return [path for path in folder.glob("*") if path.is_dir()]


@pytest.fixture(scope="module")
def older(project: Project) -> Worker:
    """A worker in a virtual environment of its own, and beside it another one in another."""
    older, newer = (project.start(name, "--venv", ready=False) for name in ("older", "newer"))
    older.wait_ready(90)
    newer.wait_ready(90)
    return older


@pytest.fixture
def start(project: Project) -> Iterator[Callable[..., Worker]]:
    """Start workers that end with the test."""
    before = len(project.workers)
    yield project.start
    for worker in project.workers[before:]:
        worker.destroy()


def test_two_versions_of_one_package_serve_on_one_machine_at_the_same_time(project: Project, older: Worker) -> None:
    looks = {name: project.call(f"{name}.{name}_look") for name in ("older", "newer")}
    assert {name: look["version"] for name, look in looks.items()} == {"older": "1.0", "newer": "2.0"}
    homes = {look["prefix"] for look in looks.values()}
    assert homes == {str(path) for path in kept(project)}
    assert [look["venv"] for look in looks.values()] == [look["prefix"] for look in looks.values()]
    # The worker's own packages are those of the interpreter that it was started with.
    import celery

    assert {look["base"] for look in looks.values()} == {celery.__file__}
    assert "Building the virtual environment" in older.log()
    assert "does not have what the image asks for" not in older.log()
    assert project.call("older.older_look")["version"] == "1.0"


@pytest.mark.usefixtures("older")
def test_the_second_start_builds_nothing(start: Callable[..., Worker]) -> None:
    again = start("older", "--venv", "-n", "again@%h")
    assert "Building" not in again.log()
    again.terminate()
    assert again.wait() == 0


def test_an_environment_without_packages_is_served_from_where_it_was_started(
    project: Project, start: Callable[..., Worker]
) -> None:
    worker = start("nothing", "--venv")
    assert f"nothing: its image names no Python packages, so it is served from {sys.executable}" in worker.log()
    assert project.call("nothing.where") == sys.prefix


def test_missing_packages_are_a_warning_with_the_command(project: Project, start: Callable[..., Worker]) -> None:
    worker = start("wrong")
    wheels = project.folder / "wheels"
    worker.wait_for_log("wrong: This interpreter does not have what the image asks for: clashing==3.0 (not installed).")
    command = f"{sys.executable} -m pip install --no-index --find-links {wheels} clashing==3.0"
    assert f"Install it with `{command}`" in worker.log()
    assert "env worker wrong --venv" in worker.log()


@pytest.mark.parametrize("command", [["env", "worker", "wrong"], ["worker", "-Q", "wrong"]])
def test_a_strict_worker_does_not_start_without_them(project: Project, command: list[str]) -> None:
    ended = project.celery(*command, "--strict-image")
    assert ended.returncode == 1
    assert "Error: Environment 'wrong' cannot be served. This interpreter does not have" in ended.stderr
    assert "clashing==3.0 (not installed)" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ("wrong", ["could not install the image's packages", "clashing==3.0"]),
        ("vital", ["could not install the image's packages", "celery"]),
        ("project", ["pip cannot install the image's UVProject"]),
    ],
)
def test_what_cannot_be_built_is_said_and_leaves_nothing(project: Project, environment: str, words: list[str]) -> None:
    before = kept(project)
    ended = project.celery("env", "worker", environment, "--venv")
    assert ended.returncode == 1
    assert all(word in ended.stderr for word in words), ended.stderr
    assert "Traceback" not in ended.stderr
    assert kept(project) == before


def test_env_up_passes_both_options_on(project: Project, older: Worker, start: Callable[..., Worker]) -> None:
    """With one option that the other makes succeed: strict workers start where their packages were installed."""
    project.write(SMALL, "small")
    for worker in project.workers:
        worker.destroy()
    up = start("--no-flower", "--venv", "--strict-image", app="small", command="env up", ready=False)
    project.wait(lambda: up.log().count(" ready.") == 2, 60, "both workers")
    assert {name: project.call(f"{name}.{name}_look")["version"] for name in ("older", "newer")} == {
        "older": "1.0",
        "newer": "2.0",
    }
    up.terminate()
    assert up.wait() == 0


# -- Building --------------------------------------------------------------------------------------------------------

INSTALLERS = ["pip", pytest.param("uv", marks=pytest.mark.skipif(shutil.which("uv") is None, reason="no uv on PATH"))]


@pytest.fixture
def image(tmp_path: Path) -> flyte.Image:
    make_wheel(tmp_path / "wheels", "clashing", "1.0", requires=("helping",))
    make_wheel(tmp_path / "wheels", "helping", "0.5")
    options = f"--no-index --find-links {tmp_path / 'wheels'}"
    return flyte.Image.from_debian_base().with_pip_packages("clashing", extra_args=options)


def ask(python: Path, code: str) -> str:
    """What an interpreter of a virtual environment prints."""
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("installer", INSTALLERS)
def test_both_installers_build_the_same(
    image: flyte.Image, tmp_path: Path, installer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installer == "pip":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    said: list[str] = []
    python = ensure(image, tmp_path / "venvs", os.environ, said.append)
    assert python is not None
    assert ask(python, "import clashing, helping; print(clashing.VERSION, helping.VERSION)") == "1.0 0.5"
    assert f"with {installer}" in said[0]
    assert said[-1].startswith("Built in ")
    assert ask(python, "import pytest; print(pytest.__file__)") == pytest.__file__, "the base, behind"
    assert json.loads((python.parent.parent / "built.json").read_text()) == {"requirements": ["clashing"]}
    said.clear()
    assert ensure(image, tmp_path / "venvs", os.environ, said.append) == python
    assert said == []


def test_the_images_packages_come_before_those_of_the_base(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "iniconfig", "0.1")
    options = f"--no-index --find-links {tmp_path / 'wheels'}"
    shadowing = flyte.Image.from_debian_base().with_pip_packages("iniconfig==0.1", extra_args=options)
    python = ensure(shadowing, tmp_path / "venvs", os.environ)
    assert python is not None
    assert ask(python, "import iniconfig; print(iniconfig.VERSION)") == "0.1"
    code = "from importlib.metadata import version; print(version('iniconfig'), version('celery'))"
    import celery

    assert ask(python, code) == f"0.1 {celery.__version__}"


def test_a_requirements_file_is_part_of_what_is_kept(image: flyte.Image, tmp_path: Path) -> None:
    """And what changes in it makes another one."""
    make_wheel(tmp_path / "wheels", "clashing", "2.0")
    file = tmp_path / "requirements.txt"
    options = f"--no-index --find-links {tmp_path / 'wheels'}"
    listed = flyte.Image.from_debian_base().with_requirements(file, extra_args=options)
    homes = set()
    for version in ("1.0", "2.0"):
        file.write_text(f"clashing=={version}  # pinned\n")
        python = ensure(listed, tmp_path / "venvs", os.environ)
        assert python is not None
        assert ask(python, "import clashing; print(clashing.VERSION)") == version
        homes.add(python)
    assert len(homes) == 2


def test_one_builds_and_the_other_waits(image: flyte.Image, tmp_path: Path) -> None:
    said: dict[int, list[str]] = {0: [], 1: []}
    made: list[Path | None] = []
    # In processes of their own: signals and the lock belong to a process.
    code = f"""
import os, sys
from pathlib import Path
import flyte_celery as flyte
from flyte_celery.packages.venv import ensure
image = flyte.Image.from_debian_base().with_pip_packages(
    "clashing", extra_args="--no-index --find-links {tmp_path / "wheels"}"
)
print(ensure(image, Path({str(tmp_path / "venvs")!r}), os.environ, print))
"""

    def build(number: int) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=project_environment(tmp_path)
        )
        said[number] = done.stdout.splitlines()
        made.append(Path(said[number][-1]))

    threads = [threading.Thread(target=build, args=(number,)) for number in said]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert made[0] == made[1]
    assert sum("Building" in line for lines in said.values() for line in lines) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_builder_that_is_ended_leaves_nothing_that_counts(tmp_path: Path, signum: signal.Signals) -> None:
    """SIGKILL leaves a folder, which the next builder replaces."""
    make_wheel(tmp_path / "wheels", "clashing", "1.0")
    code = f"""
import os, signal
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import flyte_celery as flyte
from flyte_celery.packages.venv import ensure
image = flyte.Image.from_debian_base().with_pip_packages(
    "clashing", extra_args="--no-index --find-links {tmp_path / "wheels"}"
)
print(ensure(image, Path({str(tmp_path / "venvs")!r}), os.environ, lambda line: print(line, flush=True)))
"""
    environment = project_environment(tmp_path)
    builder = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert builder.stdout is not None
    assert b"Building" in builder.stdout.readline()
    builder.send_signal(signum)
    said, errors = builder.communicate(timeout=30)
    assert builder.returncode != 0, (said, errors)
    homes = [path for path in (tmp_path / "venvs").iterdir() if path.is_dir()]
    assert not homes or signum is signal.SIGKILL
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert again.returncode == 0, again.stderr
    assert ask(Path(again.stdout.splitlines()[-1]), "import clashing; print(clashing.VERSION)") == "1.0"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (flyte.Image.from_debian_base((3, 8)).with_pip_packages("x"), "The image has Python 3.8"),
        (flyte.Image.from_debian_base().with_requirements("/nowhere/r.txt"), "No such file .*/nowhere/r.txt"),
        (flyte.Image.from_debian_base().with_poetry_project("p.toml"), "pip cannot install the image's PoetryProject"),
    ],
)
def test_what_cannot_be_installed_here_is_refused_at_once(image: flyte.Image, words: str, tmp_path: Path) -> None:
    with pytest.raises(CannotBuild, match=words):
        ensure(image, tmp_path, os.environ)
    assert list(tmp_path.iterdir()) == []


def test_an_image_without_packages_needs_nothing(tmp_path: Path) -> None:
    image = flyte.Image.from_debian_base((3, 8)).with_apt_packages("git").with_env_vars({"A": "1"})
    assert ensure(image, tmp_path, os.environ) is None


def test_a_folder_that_may_not_be_written_to_is_named(image: flyte.Image, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotBuild, match="FLYTE_CELERY_HOME"):
        ensure(image, tmp_path / "file" / "venvs", os.environ)


def test_index_urls_and_secrets_are_no_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user of a machine can read arguments."""
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / "uv"))
    told = tmp_path / "told.txt"
    (tmp_path / "uv").write_text(
        f'#!/bin/sh\nprintf "%s|" "$@" "$UV_INDEX_URL" "$PIP_EXTRA_INDEX_URL" >> {told}\n'
        f"mkdir -p {tmp_path}/venvs; for d in {tmp_path}/venvs/*/; do :; done\n"
        'case "$1" in venv) mkdir -p "$5/bin" "$5/lib/python3/site-packages";; esac\n'
    )
    (tmp_path / "uv").chmod(0o755)
    index = "https://user:hidden@index.example/simple"
    image = flyte.Image.from_debian_base().with_pip_packages(
        "a", "b>=2", index_url=index, extra_index_urls=["https://one.example", "https://two.example"], pre=True
    )
    ensure(image, tmp_path / "venvs", os.environ)
    arguments = told.read_text().split("|")
    assert arguments[-4:-1] == ["b>=2", index, "https://one.example https://two.example"]
    assert arguments.count(index) == 1
    assert "--pre" in arguments
