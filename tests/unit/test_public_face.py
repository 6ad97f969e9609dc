"""The public names change only on purpose."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import flyte_celery
from flyte_celery import _NEEDS_CELERY
from tests.helpers.workers import run_python

SOURCE = Path(flyte_celery.__file__)


def type_checking_imports() -> dict[str, str]:
    """Name and module of each import that only type checkers follow."""
    blocks = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_all_names_everything_that_is_exported() -> None:
    """Submodules, and what the module needs for itself, are not exported; `errors` is."""
    own = {"annotations", "TYPE_CHECKING", "Any", "import_module"}
    defined = {
        name
        for name, value in vars(flyte_celery).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name not in own
    }
    assert defined | {*_NEEDS_CELERY} | {"errors", "__version__"} == set(flyte_celery.__all__)


def test_no_name_is_exported_twice() -> None:
    assert len(flyte_celery.__all__) == len(set(flyte_celery.__all__))


@pytest.mark.parametrize("name", flyte_celery.__all__)
def test_every_exported_name_exists_and_is_listed(name: str) -> None:
    assert hasattr(flyte_celery, name)
    assert name in dir(flyte_celery)


def test_type_checkers_see_the_names_that_are_imported_on_demand() -> None:
    assert type_checking_imports() == _NEEDS_CELERY


def test_a_name_imported_on_demand_is_the_same_object_each_time() -> None:
    assert flyte_celery.run is flyte_celery.run
    assert "run" in vars(flyte_celery)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'flyte_celery' has no attribute 'spawn'"):
        getattr(flyte_celery, "spawn")  # noqa: B009 - type checkers know that it does not exist


def test_the_package_says_that_it_is_typed() -> None:
    assert SOURCE.with_name("py.typed").is_file()


def test_celery_finds_the_command_of_the_project(tmp_path: Path) -> None:
    """`celery env` comes from the entry point, so what it names must exist."""
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())
    module, _, attribute = project["project"]["entry-points"]["celery.commands"]["env"].partition(":")
    assert run_python(tmp_path, f"from {module} import {attribute} as command; print(command.name)").strip() == "env"
