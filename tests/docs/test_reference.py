"""The reference pages say what the code says: every parameter, setting, option and error, with its default."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flyte_celery as flyte
from flyte_celery.options import CELERY_OPTIONS, TASK_OPTIONS
from flyte_celery.settings import Settings
from flyte_celery.task import TaskTemplate
from tests.docs.pages import REPOSITORY
from tests.helpers.workers import project_environment, write_module

REFERENCE = REPOSITORY / "docs" / "reference"

#: Which headings of the parameter table describe what.
CALLABLES: dict[str, Any] = {
    **{
        name: getattr(flyte, name)
        for name in (
            "ReusePolicy", "Resources", "GPU", "TPU", "Neuron", "AMD_GPU", "HABANA_GAUDI", "Device", "TaskEnvironment",
            "RetryStrategy", "Backoff", "Timeout", "Cache", "Secret", "init",
        )
    },
    "clone_with": flyte.TaskEnvironment.clone_with,
    "override": TaskTemplate.override,
    "map": flyte.map.__call__,
}  # fmt: skip

#: Options of the decorator that are ours or Celery's.
_NOT_FLYTES = CELERY_OPTIONS | {"bind", "max_attempts"}


def section(page: str, heading: str) -> str:
    """The text under a heading of a page, up to the next one."""
    text = (REFERENCE / page).read_text()
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no heading {heading!r}"
    return found[1]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of a table by the code in their first cells."""
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:3] == "| `"]
    return {name: row for row in table for name in re.findall(r"`([^`]+)`", row[0])}


@pytest.mark.parametrize("heading", CALLABLES)
def test_the_table_has_every_parameter_and_no_other(heading: str) -> None:
    """In the order of the signature, so that the table can be read beside it."""
    parameters = [
        name
        for name, parameter in inspect.signature(CALLABLES[heading]).parameters.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    shown = list(rows(section("parameters.md", heading)))
    if heading == "clone_with":
        parameters += ["cache", "reusable", "max_attempts", "grace", "buffer", "labels"]
    assert shown == parameters


def test_the_table_of_the_decorator_is_complete() -> None:
    """`@env.task` takes its options by a typed dict."""
    assert set(rows(section("parameters.md", "task"))) == TASK_OPTIONS - _NOT_FLYTES


@pytest.mark.parametrize("heading", ["ReusePolicy", "Resources", "TaskEnvironment", "RetryStrategy", "Backoff", "map"])
def test_the_table_has_the_defaults(heading: str) -> None:
    """Where a default is a plain value."""
    shown = rows(section("parameters.md", heading))
    for name, parameter in inspect.signature(CALLABLES[heading]).parameters.items():
        default = parameter.default
        if default is inspect.Parameter.empty or not isinstance(default, int | float | str | bool | None):
            continue
        written = shown[name][1].strip("`").removesuffix(" s")
        assert written in (str(default), f'"{default}"'), name


def test_the_table_has_every_method_of_image() -> None:
    """Methods are listed by name; their parameters are Flyte's."""
    methods = {name for name in dir(flyte.Image) if name.startswith(("from_", "with_")) or name == "clone"}
    assert set(rows(section("parameters.md", "Image"))) == methods


def test_the_page_names_every_public_name() -> None:
    """What is exported is documented."""
    text = (REFERENCE / "parameters.md").read_text()
    named = {"Environment", "CachePolicy", "SecretRequest", "errors", "__version__"}  # types, and pages of their own
    missing = [name for name in flyte.__all__ if name not in named and not re.search(rf"\b{name}\b", text)]
    assert not missing


#: What the page says of the kinds in `setting_kinds`.
UNITS = {
    "BrokerUrl": "URL",
    "Url": "URL",
    "Text": "text",
    "Directory": "path",
    "Switch": "1 or 0",
    "Count": "count",
    "Bytes": "bytes",
    "Cores": "cores",
    "Seconds": "seconds",
    "SecondsOrZero": "seconds",
}


def test_the_settings_page_has_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its variables, which really set it, its default and its unit."""
    shown = rows((REFERENCE / "settings.md").read_text())
    samples = {
        "project_dir": "/srv",
        "secrets_dir": "/srv",
        "device_locks": "/run/locks",
        "broker_url": "redis://there/1",
        "result_backend": "redis://there/2",
        "progress": "0",
    }
    assert {name for name in shown if not name.startswith(("FLYTE", "."))} == {
        field.name for field in dataclasses.fields(Settings)
    }
    for field in dataclasses.fields(Settings):
        _, variables, default, unit, meaning = shown[field.name]
        for variable in re.findall(r"`([A-Z_]+)`", variables):
            value = samples.get(field.name, "7")
            read = getattr(Settings.from_environ({variable: value}), field.name)
            assert read == (Path(value) if unit == "path" else int(value) if unit in ("count", "bytes") else read)
            assert read != getattr(Settings.from_environ({}), field.name), variable
        if field.default is not dataclasses.MISSING:
            assert default == str(field.default), field.name
        assert unit == UNITS[str(field.type).removesuffix(" | None")], field.name
        assert meaning


def test_the_error_page_has_the_tree_of_the_code() -> None:
    """And the tree has every class."""
    page = (REFERENCE / "errors.md").read_text()
    assert flyte.errors.__doc__ is not None
    tree = flyte.errors.__doc__.split("```")[1].strip("\n")
    assert tree in page
    classes = [
        name
        for name, value in vars(flyte.errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException) and not name.startswith("_")
    ]
    missing = [name for name in classes if value_is_ours(name) and not re.search(rf"\b{name}\b", tree)]
    assert not missing


def value_is_ours(name: str) -> bool:
    """Whether a class of the module is defined in it."""
    return bool(getattr(flyte.errors, name).__module__ == "flyte_celery.errors")


COMMANDS = (
    "up",
    "down",
    "worker",
    "list",
    "status",
    "explain",
    "scale",
    "pause",
    "drain",
    "resume",
    "prewarm",
    "reap",
    "dead list",
    "dead requeue",
    "dead drop",
    "elsewhere list",
    "elsewhere drop",
    "later list",
    "later now",
    "later drop",
    "cache show",
    "cache clear",
)


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `celery -A proj env COMMAND --help` prints, by command; `""` is the group itself."""
    folder = tmp_path_factory.mktemp("cli")
    write_module(folder, "import flyte_celery as flyte\napp = flyte.init()\n")
    code = f"""
import sys
from click.testing import CliRunner
from celery.bin.celery import celery
from flyte_celery.cli import env
for command in {["", *COMMANDS]!r}:
    line = ["-A", "proj", "env", *command.split(), "--help"]
    print(chr(0) + command + chr(1) + CliRunner().invoke(celery, line).output)
"""
    done = subprocess.run(
        [sys.executable, "-c", "from celery.bin.celery import main; import sys\n" + code],
        cwd=folder,
        env=project_environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return dict(part.split("\1", 1) for part in done.stdout.split("\0")[1:])


def test_the_command_line_page_has_every_command(helps: dict[str, str]) -> None:
    """A heading for each command of the group."""
    listed = re.findall(r"^  (\w+) ", helps[""].split("Commands:")[1], re.MULTILINE)
    headings = re.findall(r"^## `celery -A PROJ env ([a-z ]+[a-z])", (REFERENCE / "cli.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(COMMANDS)
    assert sorted(listed) == sorted({command.split()[0] for command in COMMANDS})


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_page_has_every_option(command: str, helps: dict[str, str]) -> None:
    """And none that does not exist."""
    known = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", helps[command])) - {"--help"}
    page = (REFERENCE / "cli.md").read_text()
    found = re.search(rf"^## `celery -A PROJ env {command}.*?\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found
    shown = {name for name in rows(found[1]) if name.startswith("--")}
    # Celery gives some options several names; the page has the first.
    aliases = {"--events", "--discard"}
    assert shown == known - aliases
