"""`celery -A proj env up`: everything that one machine needs, in one command and one terminal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flyte_celery.cli.services import LONG_ENOUGH, RESTART_CAP, SAME_WISH, Service, restart_delay, serve
from tests.helpers import processes
from tests.helpers.waiting import wait_until
from tests.helpers.workers import Worker, project_environment, run_module, run_python, write_module

APP = """
    import asyncio, os, pathlib
    import flyte_celery as flyte

    app = flyte.init()
    one = flyte.TaskEnvironment(name="one", reusable=flyte.ReusePolicy(replicas=(1, 2), concurrency=2))
    two = flyte.TaskEnvironment(name="two")
    vision = flyte.TaskEnvironment(name="vision", resources=flyte.Resources(gpu="H200:8"))

    @one.task
    async def replica() -> int:
        return os.getpid()

    @one.task
    async def nap(seconds: float, mark: str) -> None:
        pathlib.Path(mark).with_suffix(".began").touch()
        await asyncio.sleep(seconds)
        pathlib.Path(mark).touch()

    @two.task
    def double(x: int) -> int:
        return 2 * x

    @vision.task
    def see() -> None: ...
"""

#: One replica, and nothing that the tests of signals do not need.
SMALL = APP.replace('"two")', '"two", resources=flyte.Resources(gpu="H200:8"))')

#: What a process that does not end in order prints.
DISORDER = ("Traceback", "Exception ignored", "never awaited")


def celery(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a `celery` command to its end."""
    return run_module(folder, "celery", *arguments, env=env)


def status(folder: Path) -> dict[str, Any]:
    """What `env status --json` says of environments that a worker serves, by environment."""
    answer = celery(folder, "-A", "proj", "env", "status", "--json")
    return {each["environment"]: each for each in json.loads(answer.stdout or "[]") if each["hostname"]}


def workers_below(pid: int) -> list[int]:
    """The main processes of the workers that an `env up` has started."""
    return [child for child in processes.descendants(pid) if "env worker" in processes.command_line(child)]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """An `env up` of a package with its app in `proj/celery.py`, on the bundled Redis of its directory."""
    folder = tmp_path_factory.mktemp("up")
    write_module(folder, APP, "proj.celery")
    up = Worker(folder, ["-A", "proj", "env", "up", "--no-flower"], name="up")
    try:
        wait_until(lambda: up.log().count(" ready.") == 2, 30, "both workers")
        yield up
    finally:
        celery(folder, "-A", "proj", "env", "down")
        up.destroy()


@pytest.fixture(scope="module")
def folder(up: Worker) -> Path:
    """The project's directory."""
    return up.log_path.parent


class TestOneThatRuns:
    """One `env up` of a package with its app in `proj/celery.py`, on the bundled Redis."""

    def test_it_says_what_it_runs_and_what_this_machine_cannot(self, up: Worker) -> None:
        assert "vision: not served here, it needs 8 x H200" in up.log()
        assert "Environments one, two" in up.log()
        assert "bundled Redis of" in up.log()

    def test_every_line_of_a_worker_has_its_name(self, up: Worker) -> None:
        ready = [line for line in up.log().splitlines() if " ready." in line]
        assert sorted(line.split(" | ")[0] for line in ready) == ["one", "two"]

    def test_app_code_of_the_directory_shares_its_redis(self, folder: Path) -> None:
        code = "from proj.celery import double; print(double.delay(21).get(timeout=30))"
        assert run_python(folder, code).strip() == "42"

    def test_status_tells_of_every_environment(self, folder: Path) -> None:
        shown = celery(folder, "-A", "proj", "env", "status").stdout
        assert "one  on one@" in shown
        assert "1 ready (between 1 and 2)" in shown
        assert "vision  no worker answers" in shown

    def test_status_returns_when_all_have_answered(self, folder: Path) -> None:
        """Celery alone waits for the whole timeout, as it cannot know that nobody else will answer."""
        code = """
            import time
            from proj.celery import app
            from flyte_celery.cli.show import ANSWER_TIMEOUT, ask
            start = time.monotonic()
            assert len(ask(app, "env_status")) == 2
            print(time.monotonic() - start < ANSWER_TIMEOUT)
        """
        assert run_python(folder, code).strip() == "True"

    def test_an_unknown_environment_is_named_with_those_that_exist(self, folder: Path) -> None:
        for command in ("status", "explain"):
            refused = celery(folder, "-A", "proj", "env", command, "three")
            assert refused.returncode != 0
            assert "no environment 'three'. It has one, two, vision." in refused.stderr

    def test_explain_gives_the_reason_of_each_decision(self, folder: Path) -> None:
        explained = celery(folder, "-A", "proj", "env", "explain", "one").stdout
        assert "Goes to 1 replica: the policy asks for 1 to 2." in explained

    def test_a_second_one_is_refused(self, up: Worker, folder: Path) -> None:
        refused = celery(folder, "-A", "proj", "env", "up", "--no-flower")
        assert refused.returncode == 1
        assert f"already runs in {folder}, as process {up.pid}" in refused.stderr

    def test_watching_ends_with_ctrl_c_and_without_a_word(self, folder: Path) -> None:
        watch = Worker(folder, ["-A", "proj", "env", "status", "--watch", "--interval", "0.1"], name="watch")
        wait_until(lambda: watch.log().count("one  on one@") >= 2, 30, "two looks")
        watch.process.send_signal(signal.SIGINT)
        assert watch.wait() == 0
        assert not [word for word in (*DISORDER, "Aborted") if word in watch.log()]
        watch.destroy()

    def test_a_killed_worker_comes_back_and_its_replicas_go(self, up: Worker, folder: Path) -> None:
        before = status(folder)["one"]
        (killed,) = [pid for pid in workers_below(up.pid) if "env worker one" in processes.command_line(pid)]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: up.log().count("one@") and up.log().count(" ready.") == 3, 30, "the next worker")
        assert "was ended by SIGKILL (out of memory?)" in up.log()
        for replica in before["replicas"]:
            assert not processes.alive(replica["pid"])
        code = "from proj.celery import replica; print(replica.delay().get(timeout=30))"
        assert int(run_python(folder, code)) not in [replica["pid"] for replica in before["replicas"]]

    def test_a_killed_redis_comes_back_and_down_stops_everything(self, up: Worker, folder: Path) -> None:
        """The last test of this class: nothing runs after it."""
        os.kill(int((folder / ".flyte-celery" / "redis" / "redis.pid").read_text()), signal.SIGKILL)
        up.wait_for_log("has ended; starting it again")
        code = "from proj.celery import double; print(double.delay(4).get(timeout=30))"
        wait_until(lambda: status(folder).keys() == {"one", "two"}, 30, "the workers' return")
        assert run_python(folder, code).strip() == "8"
        below = processes.descendants(up.pid)
        answer = celery(folder, "-A", "proj", "env", "down")
        assert "The bundled Redis has been stopped." in answer.stdout
        assert up.wait() == 0
        assert not [pid for pid in below if processes.alive(pid)]
        assert "Nothing runs here" in celery(folder, "-A", "proj", "env", "status").stderr


class Terminal:
    """A terminal in which one `celery` command runs."""

    def __init__(self, folder: Path, arguments: list[str], env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self._screen, theirs = os.openpty()
        os.set_blocking(self._screen, False)
        # The new process makes the terminal its own, as a shell's window does, and becomes the command.
        program = "import os, sys; os.login_tty(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "-m", "celery", *arguments],
            cwd=folder,
            env=project_environment(folder, env),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._shown = b""

    def shown(self) -> str:
        """Everything that the terminal has shown so far."""
        while self._screen is not None:
            try:
                chunk = os.read(self._screen, 65536)
            except (BlockingIOError, OSError):  # nothing new, or the command has ended
                break
            if not chunk:
                break
            self._shown += chunk
        return self._shown.decode(errors="replace")

    def press_ctrl_c(self) -> None:
        """What the key sends."""
        os.write(self._screen, b"\x03")

    def close(self) -> None:
        """Close the window."""
        os.close(self._screen)

    def wait(self) -> int:
        """The command's exit status; its terminal is read meanwhile, as a full one would hold it up."""
        wait_until(lambda: (self.shown() or True) and self.process.poll() is not None, 40, "the end of the command")
        return self.process.returncode


@pytest.fixture
def terminal(tmp_path: Path, redis_url: str) -> Iterator[Terminal]:
    """A terminal in which `env up` serves one environment, on a broker that the environment names."""
    write_module(tmp_path, SMALL)
    os.environ.pop("FLYTE_CELERY_BROKER_URL", None)
    terminal = Terminal(
        tmp_path, ["-A", "proj.app", "env", "up", "--no-flower"], {"FLYTE_CELERY_BROKER_URL": redis_url}
    )
    try:
        wait_until(lambda: "is ready after" in terminal.shown(), 30, "the worker")
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()


def begin_nap(terminal: Terminal, redis_url: str, seconds: float) -> Path:
    """Submit a task, wait until it runs, and return the file that it makes at its end."""
    mark = terminal.folder / "nap.ended"
    code = f"from proj import nap; nap.delay({seconds}, {str(mark)!r})"
    run_python(terminal.folder, code, {"FLYTE_CELERY_BROKER_URL": redis_url})
    wait_until(mark.with_suffix(".began").exists, description="the task's begin")
    return mark


def assert_gone_in_order(terminal: Terminal, below: list[int]) -> None:
    """It ended with status 0, took everything with it, and nothing was said that alarms."""
    assert terminal.wait() == 0
    assert not [pid for pid in below if processes.alive(pid)]
    assert not [word for word in DISORDER if word in terminal.shown()], terminal.shown()


def test_ctrl_c_lets_running_tasks_finish(terminal: Terminal, redis_url: str) -> None:
    """A second `env up` on the same broker would have the same node names, and is refused meanwhile."""
    refused = celery(
        terminal.folder, "-A", "proj:app", "env", "up", "--no-flower", env={"FLYTE_CELERY_BROKER_URL": redis_url}
    )
    assert refused.returncode == 1
    assert "already runs on this broker" in refused.stderr
    mark = begin_nap(terminal, redis_url, 1.0)
    below = processes.descendants(terminal.process.pid)
    terminal.press_ctrl_c()
    assert_gone_in_order(terminal, below)
    assert mark.exists()


def test_a_second_ctrl_c_does_not_wait_for_them(terminal: Terminal, redis_url: str) -> None:
    mark = begin_nap(terminal, redis_url, 60.0)
    below = processes.descendants(terminal.process.pid)
    terminal.press_ctrl_c()
    pressed = time.monotonic()
    wait_until(lambda: "Warm shutdown" in terminal.shown(), description="the first one's effect")
    wait_until(lambda: time.monotonic() > pressed + SAME_WISH, description="a second wish to be one")
    terminal.press_ctrl_c()
    assert_gone_in_order(terminal, below)
    assert not mark.exists()


def test_a_terminal_that_is_closed_stops_it_like_ctrl_c(terminal: Terminal, redis_url: str) -> None:
    mark = begin_nap(terminal, redis_url, 1.0)
    below = processes.descendants(terminal.process.pid)
    terminal.close()
    wait_until(lambda: terminal.process.poll() is not None, 40, "its end")
    assert terminal.process.returncode == 0
    assert not [pid for pid in below if processes.alive(pid)]
    assert mark.exists()


def test_workers_end_with_an_env_up_that_is_killed(terminal: Terminal) -> None:
    below = processes.descendants(terminal.process.pid)
    assert len(below) >= 3  # a worker, its launcher, a replica
    terminal.process.kill()
    wait_until(lambda: not [pid for pid in below if processes.alive(pid)], 20, "the end of the workers")


def test_flower_does_not_start_on_a_port_that_is_taken(tmp_path: Path) -> None:
    """It says so before anything runs, with what to do."""
    write_module(tmp_path, APP)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = celery(tmp_path, "-A", "proj", "env", "up", "--flower-port", str(port))
    assert refused.returncode == 1
    assert f"Flower cannot have port {port} on 127.0.0.1" in refused.stderr
    assert "--no-flower" in refused.stderr


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import flyte_celery\napp = flyte_celery.init()", "defines no environment"),
        (APP.replace('"two")', '"two", resources=flyte.Resources(gpu="T4:1"))').replace(
            'name="one",', 'name="one", resources=flyte.Resources(gpu="H200:8"),'
        ), "This machine can serve none of the environments"),
        ("import celery\napp = celery.Celery('proj')", "call flyte_celery.init(app=app)"),
    ],
    ids=["no environment", "no device", "a plain Celery app"],
)  # fmt: skip
def test_nothing_to_serve_is_an_error(tmp_path: Path, source: str, words: str) -> None:
    write_module(tmp_path, source)
    refused = celery(tmp_path, "-A", "proj", "env", "up", "--no-flower")
    assert refused.returncode == 1
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr


class TestServices:
    """What keeps processes alive, with processes that are quicker than workers."""

    def test_restarts_become_rarer(self) -> None:
        assert [restart_delay(failures) for failures in (1, 2, 3, 4)] == [1, 2, 4, 8]
        assert restart_delay(1000) == RESTART_CAP
        assert RESTART_CAP <= LONG_ENOUGH  # else one that lives as long as it waits would never count as healthy

    def test_one_that_ends_at_once_shows_its_error_and_does_not_loop_fast(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        script = "echo the broker URL is wrong >&2; exit 3"
        shown = run_services(capsys, Service("bad", ["sh", "-c", script], width=5), until="starting it again in 2 s")
        assert shown.count("bad   | the broker URL is wrong") == 2
        assert "ended with status 3 after" in shown

    def test_lines_of_any_length_and_bytes_of_any_kind_are_shown(self, capsys: pytest.CaptureFixture[str]) -> None:
        script = r"head -c 300000 /dev/zero | tr '\0' x; printf 'end\n\377\nlast\n'; exec sleep 60"
        shown = run_services(capsys, Service("long", ["sh", "-c", script]), until="last")
        assert shown.count("x") == 300000
        assert "end\n" in shown
        assert "long | �\n" in shown

    def test_one_that_ignores_every_wish_is_killed(self, capsys: pytest.CaptureFixture[str]) -> None:
        script = "trap '' TERM QUIT; echo up; while :; do sleep 0.1; done"
        run_services(capsys, Service("deaf", ["sh", "-c", script]), until="up", grace=0.1)


def run_services(capsys: pytest.CaptureFixture[str], service: Service, until: str, grace: float = 10.0) -> str:
    """Serve until something is shown, then stop as by Ctrl-C, and return all that was shown."""
    shown: list[str] = []

    async def watch() -> None:
        serving = asyncio.ensure_future(serve([service], grace))
        while until not in "".join(shown):
            await asyncio.sleep(0.01)
            shown.append(capsys.readouterr().out)
        while not serving.done():
            signal.raise_signal(signal.SIGINT)
            await asyncio.wait({serving}, timeout=SAME_WISH + 0.1)
        await serving

    asyncio.run(asyncio.wait_for(watch(), 30))
    return "".join(shown) + capsys.readouterr().out
