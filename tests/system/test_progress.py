"""The progress bar of `flyte.map`: on a terminal, and nowhere else."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest

from tests.helpers.projects import Project
from tests.helpers.redis_server import RedisServer
from tests.helpers.workers import project_environment

SOURCE = """
    import asyncio

    import flyte_celery as flyte

    app = flyte.init()
    env = flyte.TaskEnvironment("naps", reusable=flyte.ReusePolicy(replicas=1, concurrency=1, idle_ttl=3600))


    @env.task
    async def nap(n: int) -> int:
        await asyncio.sleep(0.1)
        return n
"""

#: A map that takes longer than the bar's delay, two at once.
LONG = "values = list(flyte.map(nap, range(20)))"


@pytest.fixture(scope="module")
def project(
    redis_server: RedisServer, _redis_databases: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """A project with a worker."""
    project = Project(tmp_path_factory.mktemp("progress"), redis_server.url(next(_redis_databases)))
    project.write(SOURCE)
    try:
        project.start("naps")
        yield project
    finally:
        project.close()


def on_a_terminal(project: Project, code: str, **env: str) -> tuple[str, str]:
    """Run Python code whose standard error is a terminal; returns what it wrote there, and to its standard output."""
    ours, its = pty.openpty()
    written: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # its end is an error
            while data := os.read(ours, 65536):
                written.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        result = subprocess.run(
            [sys.executable, "-c", f"import flyte_celery as flyte\nfrom proj import nap\n{textwrap.dedent(code)}"],
            cwd=project.folder,
            env=project_environment(project.folder, {**project.variables, "TERM": "xterm", **env}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=its,
            text=True,
            timeout=60,
        )
    finally:
        os.close(its)
        reader.join()
        os.close(ours)
    terminal = b"".join(written).decode()
    assert result.returncode == 0, terminal
    return terminal, result.stdout


def test_a_long_map_has_a_bar_on_standard_error(project: Project) -> None:
    terminal, output = on_a_terminal(project, f"{LONG}\nprint(values == list(range(20)))")
    assert output == "True\n"
    assert terminal.count("naps.nap_map  [") > 1, "it is drawn more than once"
    last = terminal.rstrip().rpartition("\r")[2]
    assert "[####################################]  20/20" in last
    assert terminal.rindex("\033[?25h") > terminal.rindex("\033[?25l"), "the cursor is shown again"


def test_the_group_name_is_its_label_and_coroutines_have_one_too(project: Project) -> None:
    terminal, output = on_a_terminal(
        project,
        """
        import asyncio

        async def main():
            return [value async for value in flyte.map.aio(nap, range(20), group_name="children")]

        print(asyncio.run(main()) == list(range(20)))
        """,
    )
    assert output == "True\n"
    assert "naps.nap_children  [" in terminal
    assert "20/20" in terminal


def test_a_map_that_is_left_early_ends_its_bar(project: Project) -> None:
    terminal, _ = on_a_terminal(
        project,
        """
        for value in flyte.map(nap, range(200), concurrency=1):
            if value == 15:
                break
        """,
    )
    assert "/200" in terminal
    assert "200/200" not in terminal
    assert terminal.endswith("\033[?25h\r\n")


def test_two_maps_at_once_have_one_bar(project: Project) -> None:
    terminal, _ = on_a_terminal(
        project,
        """
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(2) as executor:
            for each in [executor.submit(lambda n: list(flyte.map(nap, range(20), group_name=n)), n) for n in "ab"]:
                each.result()
        """,
    )
    assert ("naps.nap_a " in terminal) != ("naps.nap_b " in terminal)


@pytest.mark.parametrize(
    ("code", "env"),
    [
        (LONG, {"FLYTE_CELERY_PROGRESS": "0"}),
        (LONG, {"TERM": "dumb"}),
        ("values = list(flyte.map(nap, (n for n in range(20))))", {}),
        ("values = list(flyte.map(nap, []))", {}),
        # The same delay on any machine, however slow: what is done by then shows none.
        ("from flyte_celery.client import progress\nprogress.DELAY = 60\nvalues = list(flyte.map(nap, range(3)))", {}),
        (
            "from flyte_celery.context import RunContext, current_run\n"
            "current_run.set(RunContext.of_task(task_id='1', root_id='1', environment='naps'))\n" + LONG,
            {},
        ),
        (
            "@nap.parent_env().task\ndef parent() -> list[int]:\n    return list(flyte.map(nap, range(20)))\n"
            "flyte.with_runcontext(mode='local').run(parent)",
            {},
        ),
    ],
    ids=["switched off", "dumb terminal", "no total", "nothing", "short", "in a task", "local"],
)
def test_where_there_is_none(project: Project, code: str, env: dict[str, str]) -> None:
    terminal, _ = on_a_terminal(project, code, **env)
    assert "\033" not in terminal
    assert "[" not in terminal.replace("[INFO]", "")


def test_a_pipe_gets_none(project: Project) -> None:
    code = f"import flyte_celery as flyte\nfrom proj import nap\n{LONG}"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.folder,
        env=project_environment(project.folder, project.variables),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (0, "")
    assert "\033" not in result.stderr
    assert "20/20" not in result.stderr
