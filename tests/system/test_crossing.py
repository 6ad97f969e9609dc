"""What a task raises on its way through real workers: to a client, a parent, and a client without flyte-celery."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.utils.serialization import UnpickleableExceptionWrapper

from tests.helpers.projects import PATIENCE, Project
from tests.helpers.redis_server import RedisServer
from tests.helpers.workers import run_python

SOURCE = """
    import asyncio
    import json
    import os
    import sys
    import urllib.error

    import pydantic

    import flyte_celery as flyte

    app = flyte.init()
    env = flyte.TaskEnvironment(
        "raising",
        resources=flyte.Resources(memory="400Mi"),
        reusable=flyte.ReusePolicy(replicas=1, concurrency=1, idle_ttl=3600),
    )


    class Odd(Exception):
        kind = "system"

        def __init__(self, first, *, second):
            super().__init__(f"{first}-{second}")
            self.code = 404
            self.first, self.second = first, second


    class Model(pydantic.BaseModel):
        x: int


    def boom(kind: str) -> None:
        match kind:
            case "odd":
                raise Odd(1, second=2)
            case "pydantic":
                Model(x="no")
            case "json":
                json.loads("{")
            case "http":
                raise urllib.error.HTTPError("http://host", 503, "Unavailable", {}, None)
            case "file":
                open("/no/such/file")
            case "group":
                raise ExceptionGroup("many", [ValueError("a"), Odd(1, second=2)])
            case "cause":
                try:
                    raise Odd(1, second=2)
                except Odd as exc:
                    raise ValueError("outer") from exc
            case "local":
                class Local(KeyError):
                    pass
                raise Local("l")
            case "base":
                class Base(BaseException):
                    pass
                raise Base("b")
            case "interrupt":
                raise KeyboardInterrupt
            case "huge":
                raise ValueError("x" * 30_000_000)


    @env.task
    async def afails(kind: str) -> int:
        boom(kind)
        return os.getpid()


    @env.task
    def fails(kind: str) -> int:
        boom(kind)
        return os.getpid()


    @env.task
    async def in_a_group(kind: str) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(afails(kind))


    @env.task
    async def passes_on(kind: str) -> int:
        return await afails(kind)


    @env.task
    def catches(kind: str) -> list[str]:
        try:
            fails(kind)
        except (Odd, pydantic.ValidationError, OSError, ExceptionGroup, KeyError) as exc:
            return [type(exc).__name__, exc.code, str(exc)]
        return []


    @env.task
    async def forever(n: int) -> int:
        return await forever(n + 1)


    def told(exc: BaseException) -> dict:
        return {
            "classes": [cls.__name__ for cls in type(exc).__mro__],
            "code": getattr(exc, "code", None),
            "kind": getattr(exc, "kind", None),
            "text": str(exc),
            "second": getattr(exc, "second", None),
            "filename": getattr(exc, "filename", None),
            "members": [told(each) for each in getattr(exc, "exceptions", ())],
            "cause": None if exc.__cause__ is None else told(exc.__cause__),
        }


    def outcomes(*kinds: str, task="fails") -> None:
        found = {}
        for kind in kinds:
            for face, value in (
                ("celery", lambda: getattr(sys.modules[__name__], task).delay(kind).get(timeout=60)),
                ("flyte", lambda: flyte.run(getattr(sys.modules[__name__], task), kind).outputs(timeout=60)),
            ):
                try:
                    found[f"{kind} {face}"] = {"value": value()}
                except BaseException as exc:
                    found[f"{kind} {face}"] = told(exc)
        print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def project(
    redis_server: RedisServer, _redis_databases: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """A project with one replica."""
    project = Project(tmp_path_factory.mktemp("crossing"), redis_server.url(next(_redis_databases)))
    project.write(SOURCE)
    project.start("raising", env={"FLYTE_CELERY_MAX_SUSPENDED": "100"})
    yield project
    project.close()


def outcomes(project: Project, *kinds: str, task: str = "fails") -> dict[str, Any]:
    """What both faces raise in a process that has imported the project."""
    code = f"from proj import outcomes; outcomes(*{kinds!r}, task={task!r})"
    found: dict[str, Any] = json.loads(run_python(project.folder, code, project.variables, timeout=5 * PATIENCE))
    return found


#: What is raised: the classes that must catch it, the code, and the text.
RAISED = {
    "odd": (["Odd"], "Odd", "1-2"),
    "pydantic": (["ValidationError", "ValueError"], "ValidationError", "1 validation error for Model\nx\n"),
    "json": (["JSONDecodeError", "ValueError"], "JSONDecodeError", "Expecting property name"),
    "http": (["HTTPError", "OSError"], "HTTPError", "HTTP Error 503: Unavailable"),
    "file": (["FileNotFoundError"], "FileNotFoundError", "[Errno 2] No such file or directory: '/no/such/file'"),
    "group": (["ExceptionGroup"], "ExceptionGroup", "many (2 sub-exceptions)"),
    "cause": (["ValueError"], "ValueError", "outer"),
    "local": (["Local", "KeyError"], "Local", "'l'"),
}


@pytest.mark.parametrize("task", ["fails", "afails", "passes_on"])
def test_both_faces_raise_what_the_task_raised(project: Project, task: str) -> None:
    found = outcomes(project, *RAISED, task=task)
    for kind, (classes, code, text) in RAISED.items():
        celery, flyte = found[f"{kind} celery"], found[f"{kind} flyte"]
        assert {*classes} <= {*celery["classes"]}, kind
        assert celery["text"].startswith(text), kind
        assert {*classes, "RuntimeUserError"} <= {*flyte["classes"]}, kind
        assert (flyte["code"], flyte["kind"]) == (code, "user"), kind
        assert flyte["text"].startswith(text), kind
        assert flyte["cause"]["classes"][0] == classes[0]
    assert found["odd celery"]["code"] == 404
    assert found["odd celery"]["second"] == found["odd flyte"]["second"] == 2
    assert found["file flyte"]["filename"] == "/no/such/file"
    for members in (found["group celery"]["members"], found["group flyte"]["members"]):
        assert [(each["classes"][0], each["text"]) for each in members] == [("ValueError", "a"), ("Odd", "1-2")]
    assert found["cause celery"]["cause"]["second"] == found["cause flyte"]["cause"]["cause"]["second"] == 2


def test_a_group_of_children(project: Project) -> None:
    found = outcomes(project, "odd", task="in_a_group")
    for face in ("celery", "flyte"):
        assert "ExceptionGroup" in found[f"odd {face}"]["classes"]
        [member] = found[f"odd {face}"]["members"]
        assert (member["classes"][0], member["second"]) == ("Odd", 2)


def test_a_parent_catches_by_class(project: Project) -> None:
    for kind in ("odd", "pydantic", "http", "file", "group", "local"):
        name, code, text = project.call("raising.catches", kind)
        assert (name, code) == (RAISED[kind][1], RAISED[kind][1])
        assert text.startswith(RAISED[kind][2])


def test_any_celery_client_reads_celerys_fields(project: Project) -> None:
    """This one has imported nothing of the project."""
    with pytest.raises(ValueError, match="outer"):
        project.call("raising.fails", "cause")
    with pytest.raises(UnpickleableExceptionWrapper, match="1-2"):
        project.call("raising.fails", "odd")
    result = project.send("raising.fails", "file")
    with pytest.raises(FileNotFoundError):
        result.get(timeout=PATIENCE)
    with redis.Redis.from_url(project.url) as client:
        stored = json.loads(client.get(f"celery-task-meta-{result.id}"))  # type: ignore[arg-type]
    celerys = {name: value for name, value in stored["result"].items() if name != "flyte_celery"}
    assert celerys == {
        "exc_type": "FileNotFoundError",
        "exc_message": [2, "No such file or directory"],
        "exc_module": "builtins",
    }


def test_what_is_no_exception_for_celery_has_its_name_and_text(project: Project) -> None:
    found = outcomes(project, "base", "interrupt")
    assert (found["base flyte"]["code"], found["base flyte"]["text"]) == ("Base", "b")
    assert found["interrupt flyte"]["code"] == "KeyboardInterrupt"
    assert "raised KeyboardInterrupt" in found["interrupt flyte"]["text"]


@pytest.mark.parametrize("task", ["fails", "afails", "passes_on"])
def test_a_huge_message_is_cut(project: Project, task: str) -> None:
    """It fills neither the replica's memory, nor the log, nor Redis."""
    before = [project.call(f"raising.{each}", "no") for each in ("fails", "afails")]
    found = outcomes(project, "huge", task=task)
    for face in ("celery", "flyte"):
        assert "ValueError" in found[f"huge {face}"]["classes"]
        assert len(found[f"huge {face}"]["text"]) < 100_000
        assert "characters left out" in found[f"huge {face}"]["text"]
    assert [project.call(f"raising.{each}", "no") for each in ("fails", "afails")] == before, "the replica lives"
    assert len(project.workers[0].log()) < 20_000_000


def test_the_failure_of_a_deep_recursion_is_of_a_bounded_size(project: Project) -> None:
    result = project.send("raising.forever", 0)
    with pytest.raises(Exception, match="tasks of its replica wait already"):
        result.get(timeout=3 * PATIENCE)
    with redis.Redis.from_url(project.url) as client:
        sizes = [client.strlen(key) for key in client.scan_iter("celery-task-meta-*")]
    assert max(sizes) < 1_000_000
    assert sum(sizes) < 40_000_000
    log = Path(project.workers[0].log_path).stat().st_size
    assert log < 40_000_000
    print(max(sizes), sum(sizes), log)
