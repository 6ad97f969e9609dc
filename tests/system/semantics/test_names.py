"""Tasks are reached by their names: from processes that never imported them, and by the beat."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.helpers.projects import PATIENCE, Project
from tests.helpers.waiting import wait_until
from tests.helpers.workers import run_python
from tests.system.semantics.notes import notes


def test_a_plain_app_sends_by_name_and_queue(project: Project) -> None:
    assert project.celery_app.send_task("aio.add", (1, 2), queue="aio").get(timeout=PATIENCE) == 3
    assert project.celery_app.send_task("snc.add_sync", kwargs={"x": 1, "y": 2}, queue="snc").get(timeout=PATIENCE) == 3


def test_a_plain_app_chains_by_name(project: Project) -> None:
    app = project.celery_app
    first = app.signature("aio.add", (1, 2), queue="aio")
    assert (first | app.signature("snc.add_sync", (10,), queue="snc"))().get(timeout=PATIENCE) == 13


def test_arguments_that_do_not_fit_fail_in_the_replica(project: Project) -> None:
    with pytest.raises(TypeError, match=r"'aio\.add' takes int for its parameter 'x'"):
        project.send("aio.add", "one", 2).get(timeout=PATIENCE)


@pytest.mark.parametrize("definition", ["", "flyte.TaskEnvironment('aio')"], ids=["nothing", "the environment alone"])
def test_an_app_with_init_needs_no_queue(project: Project, tasks: ModuleType, definition: str) -> None:
    """Neither one that has imported nothing of the project, nor one that has defined an environment of that name."""
    printed = run_python(
        project.folder,
        f"""
        import flyte_celery as flyte
        app = flyte.init()
        {definition}
        print(app.send_task("aio.add", (1, 2)).get(timeout=20))
        """,
        project.variables,
    )
    assert printed == "3\n"


def test_beat_sends_by_name(project: Project, tasks: ModuleType) -> None:
    schedule = str(project.folder / "schedule")
    beat = project.start("--schedule", schedule, app=tasks.__name__, command="beat", ready=False)
    wait_until(lambda: len(notes("beat")) >= 2, PATIENCE, "two beats")
    beat.destroy()
