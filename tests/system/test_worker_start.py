"""What a worker is asked to serve, and what it refuses: a sentence and a non-zero exit, before it takes any work."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.helpers.projects import Project
from tests.helpers.redis_server import find_redis_server, free_port
from tests.helpers.waiting import wait_until
from tests.helpers.workers import Worker

SOURCE = """
    import os

    import flyte_celery as flyte

    app = flyte.init()
    first = flyte.TaskEnvironment("first", reusable=flyte.ReusePolicy(replicas=(0, 1)))
    second = flyte.TaskEnvironment("second")


    @first.task
    async def pid() -> int:
        return os.getpid()


    @second.task
    async def nothing() -> None: ...


    @app.task
    def plain() -> int:
        return os.getpid()
"""

#: An environment of the same name at another place than in `proj`.
NAMESAKE = """
    import flyte_celery as flyte
    from proj import app, first

    other = flyte.TaskEnvironment("first")
"""

#: Two functions for one task name, at two places.
HOMONYM = """
    from proj import app, first


    @first.task
    async def pid() -> int:
        return 1
"""

#: A plain Celery app without a broker, extended.
BROKERLESS = """
    from celery import Celery

    import flyte_celery as flyte

    app = flyte.init(app=Celery("brokerless"))
    app.conf.broker_url = None
    lonely = flyte.TaskEnvironment("lonely")


    @lonely.task
    def work() -> None: ...
"""


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    shared.write(SOURCE)
    shared.write(NAMESAKE, "namesake")
    shared.write(HOMONYM, "homonym")
    shared.write(BROKERLESS, "brokerless")
    return shared


def refused(ended: subprocess.CompletedProcess[str]) -> str:
    """What a worker that did not start has said."""
    said = ended.stdout + ended.stderr
    assert ended.returncode != 0, said
    assert "Traceback" not in said
    assert "ready." not in said
    return said


@pytest.mark.parametrize("queues", ["first,second", "first,celery"])
def test_a_worker_serves_one_environment_and_nothing_besides(project: Project, queues: str) -> None:
    said = refused(project.celery("worker", "-Q", queues))
    assert f"asked for the queues {', '.join(sorted(queues.split(',')))}" in said
    assert "env worker first" in said, "what to do instead"


def test_an_app_without_a_broker_is_refused(project: Project) -> None:
    nothing = {"FLYTE_CELERY_BROKER_URL": ""}
    for arguments in (("env", "worker", "lonely"), ("worker", "-Q", "lonely")):
        assert "has no broker" in refused(project.celery(*arguments, app="brokerless", env=nothing))


def test_a_broker_that_is_not_there_is_named_soon_and_without_its_password(project: Project) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://:secret@127.0.0.1:{closed.getsockname()[1]}/0"
        # Its own deadline is the proof of "soon".
        said = refused(project.celery("env", "worker", "first", env={"FLYTE_CELERY_BROKER_URL": url}))
    assert f"The broker {url.replace('secret', '**')} does not answer" in said
    assert "secret" not in said


def test_a_redis_cluster_is_refused(project: Project, tmp_path: Path) -> None:
    """Its connections would be lost again and again otherwise, each with an error about slots."""
    with a_cluster_of_one(tmp_path) as url:
        said = refused(project.celery("env", "worker", "first", env={"FLYTE_CELERY_BROKER_URL": url}))
    assert f"The broker {url} is a Redis Cluster" in said


@contextmanager
def a_cluster_of_one(folder: Path) -> Iterator[str]:
    """The URL of a Redis server in cluster mode."""
    port = next(port for port in iter(free_port, 0) if port < 2**16 - 10_000)  # its second port is so much higher
    program = [find_redis_server(), "--port", str(port), "--cluster-enabled", "yes", "--dir", str(folder), "--save", ""]
    process = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            wait_until(lambda: answers(client), description="the cluster")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.mark.parametrize(
    ("module", "message"),
    [("namesake", "Two environments are named 'first'"), ("homonym", "Two tasks are named 'first.pid'")],
)
def test_two_definitions_of_one_name_stop_the_worker_and_both_places_are_named(
    project: Project, module: str, message: str
) -> None:
    said = refused(project.celery("worker", "-Q", "first", app=module))
    assert message in said
    assert f"{project.folder}/proj.py:" in said
    assert f"{project.folder}/{module}.py:" in said


@pytest.mark.parametrize(
    ("arguments", "node"),
    [
        (["env", "worker", "first"], "first@"),
        (["worker", "-Q", "first"], "first@"),
        (["env", "worker", "first", "-n", "given@%h"], "given@"),
    ],
    ids=["env worker ENV", "worker -Q ENV", "with a name"],
)
def test_both_commands_start_the_same_worker(project: Project, arguments: list[str], node: str) -> None:
    """The node is named after its environment, unless it was given a name."""
    worker = Worker(project.folder, ["-A", "proj", *arguments, "-l", "INFO"], project.variables, name="either")
    project.workers.append(worker)
    worker.wait_ready()
    status = project.status(node.rstrip("@")) if node == "first@" else project.ask("env_status", "given")
    assert (status["environment"], status["hostname"].startswith(node)) == ("first", True)
    assert (status["minimum"], status["maximum"]) == (0, 1)
    assert isinstance(project.call("first.pid"), int)
    worker.terminate()
    assert worker.wait() == 0


def test_a_plain_worker_of_the_same_app_stays_plain(project: Project) -> None:
    worker = Worker(project.folder, ["-A", "proj", "worker", "-c", "1", "-l", "INFO"], project.variables, name="plain")
    project.workers.append(worker)
    worker.wait_ready()
    sent = project.celery_app.send_task("proj.plain")
    assert isinstance(sent.get(timeout=20), int)
    assert "celery@" in worker.log()
    assert ".> first" not in worker.log()
    worker.destroy()
