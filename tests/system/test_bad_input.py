"""What does not fit: each has a clear error in the right place, hangs nobody, and loses nothing else."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from celery.exceptions import NotRegistered
from celery.utils.serialization import UnpickleableExceptionWrapper

from flyte_celery.errors import RuntimeSystemError
from tests.helpers.projects import Project
from tests.helpers.workers import run_python

SOURCE = """
    import asyncio
    import os
    import threading
    import time
    from typing import Any

    import flyte_celery as flyte

    app = flyte.init()
    typed = flyte.TaskEnvironment("typed", reusable=flyte.ReusePolicy(replicas=2, concurrency=1, idle_ttl=3600))


    class Awkward(Exception):
        def __init__(self, left: int, right: int) -> None:
            super().__init__(f"{left} and {right}")
            self.lock = threading.Lock()


    @typed.task
    def add(x: int, y: int = 0) -> int:
        return x + y


    @typed.task
    def anything(value: Any) -> Any:
        return value


    @typed.task
    def wrong_result() -> int:
        return "five"


    @typed.task
    async def unserialisable_result() -> Any:
        return object()


    @typed.task
    def awkward() -> int:
        raise Awkward(1, 2)


    @typed.task
    async def awkward_here() -> int:
        class Local(Exception):
            pass

        raise Local("made in the task")


    @typed.task
    def echo(data: bytes) -> bytes:
        return data


    picky = flyte.TaskEnvironment(
        "picky", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600), env_vars={"PICKY": "yes"}
    )
    picky_device = flyte.TaskEnvironment(
        "picky-device",
        reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600),
        env_vars={"PICKY": "yes"},
        resources=flyte.Resources(gpu=1),
    )
    if os.environ.get("PICKY") and not os.path.exists("satisfied"):
        raise RuntimeError("this module does not like its variables")


    def fine(x: int) -> int:
        return x


    picky.task(fine)
    picky_device.task(fine)
"""


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    shared.write(SOURCE)
    shared.start("typed")
    return shared


#: Calls that do not fit, and what their errors must name.
MISFITS = [
    ("proj.add.delay('five')", "Task 'typed.add' takes int for its parameter 'x', not 'five' (str)"),
    ("proj.add.delay(1, y=[])", "Task 'typed.add' takes int for its parameter 'y', not [] (list)"),
    ("proj.add.delay()", "Task 'typed.add' is missing a value for its parameter 'x'"),
    ("proj.add.delay(1, z=2)", "'z'"),
    ("proj.add.delay(1, 2, 3)", "Task 'typed.add' takes 2 positional arguments (x, y), but got 3"),
    ("proj.add.apply_async(('five',), countdown=1)", "parameter 'x'"),
    ("proj.anything.delay(object())", "Task 'typed.anything'"),
    ("proj.anything.delay(lambda: 1)", "parameter 'value'"),
]


@pytest.fixture(scope="module")
def refusals(project: Project) -> list[list[str]]:
    """For every misfit the error's class, its text, and the function whose line is the first of its traceback."""
    code = f"""
        import json
        import traceback

        import proj

        found = []
        for call in {[call for call, _ in MISFITS]!r}:
            try:
                eval(compile(call, "the caller's file", "eval"))
            except Exception as exc:
                frames = [frame.filename for frame in traceback.extract_tb(exc.__traceback__)]
                found.append([type(exc).__name__, str(exc), frames[1]])
            else:
                found.append(["nothing", "", ""])
        print(json.dumps(found))
    """
    refused: list[list[str]] = json.loads(run_python(project.folder, code, project.variables))
    return refused


@pytest.mark.parametrize(("index", "expected"), [(index, text) for index, (_, text) in enumerate(MISFITS)])
def test_arguments_that_do_not_fit_are_refused_where_they_are_given(
    refusals: list[list[str]], index: int, expected: str
) -> None:
    kind, text, frame = refusals[index]
    assert (kind, frame) == ("TypeError", "the caller's file")
    assert expected in text


def test_refused_calls_have_sent_nothing(project: Project, refusals: list[list[str]]) -> None:
    assert len(refusals) == len(MISFITS)
    assert project.depth("typed") == 0
    assert all(each["served"] == 0 for each in project.replicas("typed"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("five",), "Task 'typed.add' takes int for its parameter 'x', not 'five' (str)"),
        ((), "Task 'typed.add' is missing a value for its parameter 'x'"),
        ((1, 2, 3), "Task 'typed.add' takes 2 positional arguments (x, y), but got 3"),
    ],
)
def test_arguments_of_a_caller_who_does_not_know_the_task_fail_it(
    project: Project, arguments: tuple[Any, ...], expected: str
) -> None:
    """`app.send_task` in a process that has not imported the task has nothing to check by."""
    with pytest.raises(TypeError) as caught:
        project.call("typed.add", *arguments)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("typed.wrong_result", "Task 'typed.wrong_result' is annotated to return int, but returned 'five' (str)"),
        ("typed.unserialisable_result", "it holds an object, which JSON cannot carry unchanged"),
    ],
)
def test_a_result_that_does_not_fit_fails_the_task(project: Project, task: str, expected: str) -> None:
    with pytest.raises(TypeError) as caught:
        project.call(task)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("task", "expected"),
    [("typed.awkward", "Awkward('1 and 2')"), ("typed.awkward_here", "Local('made in the task')")],
)
def test_an_exception_that_does_not_pickle_arrives_as_its_description(
    project: Project, task: str, expected: str
) -> None:
    with pytest.raises(UnpickleableExceptionWrapper) as caught:
        project.call(task)
    assert str(caught.value) == expected


def test_an_exception_that_does_not_pickle_arrives_whole_on_flytes_face(project: Project) -> None:
    code = """
        import flyte_celery as flyte
        import proj

        try:
            flyte.run(proj.awkward).outputs()
        except proj.Awkward as exc:
            print(exc.code, "|", exc)
    """
    assert run_python(project.folder, code, project.variables).strip() == "Awkward | 1 and 2"


def test_five_megabytes_go_there_and_back(project: Project) -> None:
    data = bytes(range(256)) * (5_000_000 // 256)
    assert base64.b64decode(project.call("typed.echo", base64.b64encode(data).decode()), altchars=b"-_") == data


def test_a_task_that_nobody_defined_fails_at_once(project: Project) -> None:
    """Celery discards the message, says so in the log and stores the failure, so that its caller does not hang."""
    with pytest.raises(NotRegistered, match=r"typed\.nothing"):
        project.call("typed.nothing")
    assert "Received unregistered task of type 'typed.nothing'" in project.workers[0].log()


def message(body: Any = ([], {}, {}), content_type: str = "application/json", **headers: Any) -> dict[str, Any]:
    """A message as kombu writes it to Redis."""
    encoded = base64.b64encode(b"" if body is None else json.dumps(body).encode()).decode()
    return {
        "body": encoded,
        "content-encoding": "utf-8",
        "content-type": content_type,
        "headers": {"task": "typed.add", "id": "some-id", **headers},
        "properties": {
            "delivery_info": {"exchange": "", "routing_key": "typed"},
            "delivery_tag": "some-tag",
            "body_encoding": "base64",
        },
    }


@pytest.mark.parametrize(
    "malformed",
    [
        message(None),
        message([]),
        message([1, 2, 3]),
        message("text"),
        message([[], {}]),
        message(content_type="application/x-python-serialize"),
        message(content_type="application/unheard-of"),
        message(id=None),
        message(id=5),
        message(task=None),
        message(task=5),
        message(eta="no date"),
        message(expires="no date"),
        message(timelimit="no pair"),
        message(retries="many"),
        {},
    ],
    ids=lambda each: json.dumps({"body": each["body"], **each["headers"]} if each else {}),
)
def test_a_malformed_message_is_discarded_and_stops_nothing(project: Project, malformed: dict[str, Any]) -> None:
    worker = project.workers[0]
    project.send_raw("typed", malformed)
    assert project.call("typed.add", 1, 2) == 3
    project.wait(lambda: project.depth("typed") == 0 and project.status("typed")["running"] == 0)
    assert worker.process.poll() is None
    assert project.call("typed.add", 3, 4) == 7


@pytest.mark.parametrize("junk", ["no JSON", "[1, 2]", "null", '{"properties": 5}', "\\xff"])
def test_what_is_no_message_at_all_is_discarded_and_stops_nothing(project: Project, junk: str) -> None:
    """It would end a plain Celery worker."""
    worker = project.workers[0]
    project.send_raw("typed", junk)
    assert project.call("typed.add", 1, 2) == 3
    worker.wait_for_log("what is no message is discarded")
    assert worker.process.poll() is None


@pytest.mark.parametrize("environment", ["picky", "picky-device"])
def test_a_module_that_fails_in_replicas_alone_fails_callers_with_the_reason(
    project: Project, environment: str
) -> None:
    """The worker could import it; its replicas, with the environment's variables, cannot, until the cause is gone."""
    fast = {f"FLYTE_CELERY_{name}": "0.1" for name in ("START_BACKOFF", "START_BACKOFF_CAP", "AUTOSCALE_INTERVAL")}
    worker = project.start(environment, env={**fast, "FLYTE_CELERY_DEVICES": "L4:1"})
    with pytest.raises(RuntimeSystemError, match="RuntimeError: this module does not like its variables") as caught:
        project.call(f"{environment}.fine", 1)
    assert caught.value.code == "EnvironmentFailed"
    satisfied = project.folder / "satisfied"
    satisfied.touch()
    project.wait_for_replicas(environment, 1)
    assert project.call(f"{environment}.fine", 1) == 1
    satisfied.unlink()
    worker.destroy()


def test_a_sync_task_is_refused_where_one_replica_runs_several(project: Project) -> None:
    project.write(
        """
        import flyte_celery as flyte

        app = flyte.init()
        several = flyte.TaskEnvironment("several", reusable=flyte.ReusePolicy(replicas=1, concurrency=2))

        @several.task
        def blocking() -> None: ...
        """,
        name="mistaken",
    )
    ended = project.celery("env", "worker", "several", app="mistaken")
    assert ended.returncode != 0
    assert "concurrency=2, which is only supported for async tasks" in ended.stdout + ended.stderr
