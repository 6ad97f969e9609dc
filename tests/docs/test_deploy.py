"""The files of `deploy/` fit the digits example, this package's command line, and the tools that read them."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flyte_celery.settings import Settings
from tests.helpers.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEMD = REPOSITORY / "deploy" / "systemd"
COMPOSE = REPOSITORY / "deploy" / "compose"
DIGITS = REPOSITORY / "examples" / "digits"

#: The script that `pip install` makes, as opposed to `python -m celery`.
CELERY = str(Path(sys.executable).with_name("celery"))

#: Seconds that a worker may need to end after the grace period.
AFTER_GRACE = 2.0

ENVIRONMENTS = {"digits", "digits-cold"}


@pytest.fixture(scope="module")
def unit() -> configparser.SectionProxy:
    """The `[Service]` part of the unit; what it says twice does not matter here."""
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(SYSTEMD / "flyte-celery@.service")
    return parser["Service"]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The Compose file, with its aliases and merges resolved."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    document: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return document


def settings_file() -> dict[str, str]:
    """The example of `/etc/flyte-celery.env`."""
    lines = (SYSTEMD / "flyte-celery.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def understood(command: list[str]) -> None:
    """Have Celery parse a command line without running it.

    Raises:
        AssertionError: It does not know the command or one of its options.
    """
    answer = subprocess.run([CELERY, *command[1:], "--help"], cwd=DIGITS, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr


class TestSystemd:
    """`deploy/systemd`."""

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on PATH")
    def test_systemd_finds_no_fault_in_the_unit(self, tmp_path: Path) -> None:
        """Its program does not exist on this machine, so one that does takes its place."""
        source = (SYSTEMD / "flyte-celery@.service").read_text()
        path = tmp_path / "flyte-celery@digits-cold.service"
        path.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", source))
        verified = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60)
        faults = [line for line in verified.stderr.splitlines() if path.name in line]
        assert (verified.returncode, faults) == (0, [])

    def test_there_is_time_for_running_tasks_to_finish(self, unit: configparser.SectionProxy) -> None:
        grace = float(settings_file()["FLYTE_CELERY_GRACE"])
        assert float(unit["TimeoutStopSec"]) >= grace + AFTER_GRACE + 5
        assert (unit["KillMode"], unit["KillSignal"]) == ("mixed", "SIGTERM")

    def test_a_replica_out_of_memory_does_not_stop_the_worker(self, unit: configparser.SectionProxy) -> None:
        assert unit["OOMPolicy"] == "continue"

    def test_its_settings_are_settings(self) -> None:
        settings = Settings.from_environ(settings_file())
        assert settings.broker_url == "redis://127.0.0.1:6379/0"
        assert settings.grace == 25.0

    def test_its_command_serves_the_environment(
        self, unit: configparser.SectionProxy, tmp_path: Path, redis_url: str
    ) -> None:
        """As systemd would start it: the script, in the application's directory, with the unit's variables alone."""
        variables = {**settings_file(), "FLYTE_CELERY_BROKER_URL": redis_url, "LOGLEVEL": "INFO"}
        (tmp_path / "flyte-celery").mkdir()
        line = unit["ExecStart"].replace("%i", "digits").replace("%S", str(tmp_path))
        line = re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], line)
        log = tmp_path / "log"
        with log.open("wb") as output:
            worker = subprocess.Popen(
                [CELERY, *shlex.split(line)[1:]],
                cwd=DIGITS,
                env={"PATH": os.environ["PATH"], **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until(lambda: " ready." in log.read_text(), 90, "the worker")
            client = [sys.executable, "burst.py", "20"]
            environ = {**os.environ, "FLYTE_CELERY_BROKER_URL": redis_url}
            answer = subprocess.run(client, cwd=DIGITS, env=environ, capture_output=True, text=True, timeout=60)
            assert answer.returncode == 0, answer.stderr + log.read_text()
            assert answer.stdout.count("% right") == 2
            worker.terminate()
            assert worker.wait(timeout=30) == 0
        finally:
            worker.kill()
            worker.wait()


class TestCompose:
    """`deploy/compose`."""

    def test_each_environment_has_one_service(self, compose: dict[str, Any]) -> None:
        served = [
            service["command"][service["command"].index("worker") + 1]
            for service in compose["services"].values()
            if "worker" in service["command"]
        ]
        assert sorted(served) == sorted(ENVIRONMENTS)

    def test_celery_understands_every_command(self, compose: dict[str, Any]) -> None:
        commands = [service["command"] for service in compose["services"].values()]
        celery = [command for command in commands if command[0] == "celery"]
        assert len(celery) == 3
        for command in celery:
            understood(command)

    def test_images_have_fixed_tags(self, compose: dict[str, Any]) -> None:
        base = re.findall(r"(?m)^FROM (\S+)", (COMPOSE / "Dockerfile").read_text())
        images = {service["image"] for service in compose["services"].values()}
        for image in (*images, *base):
            _, _, tag = image.partition(":")
            assert tag and tag != "latest", image

    def test_what_runs_on_has_a_health_check(self, compose: dict[str, Any]) -> None:
        for name, service in compose["services"].items():
            assert ("healthcheck" in service) == (name != "burst"), name

    def test_there_is_time_for_running_tasks_to_finish(self, compose: dict[str, Any]) -> None:
        for name in ENVIRONMENTS:
            service = compose["services"][name]
            grace = float(service["environment"]["FLYTE_CELERY_GRACE"])
            assert float(service["stop_grace_period"].rstrip("s")) >= grace + AFTER_GRACE + 5

    def test_what_the_image_is_made_of_exists(self) -> None:
        """And the builder is sent it: the ignore file lets it through."""
        ignore = (COMPOSE / "Dockerfile.dockerignore").read_text().splitlines()
        through = [REPOSITORY.glob(line[1:]) for line in ignore if line.startswith("!")]
        sent = {path for paths in through for path in paths}
        for line in re.findall(r"(?m)^COPY (.+)$", (COMPOSE / "Dockerfile").read_text()):
            for source in line.split()[:-1]:
                assert REPOSITORY / source in sent, source

    def test_the_image_runs_as_nobody_special(self) -> None:
        (user,) = re.findall(r"(?m)^USER (\d+):(\d+)$", (COMPOSE / "Dockerfile").read_text())
        assert all(int(number) > 0 for number in user)

    def test_only_this_machine_reaches_flower(self, compose: dict[str, Any]) -> None:
        ports = {name: service.get("ports", []) for name, service in compose["services"].items()}
        assert {name: found for name, found in ports.items() if found} == {"flower": ["127.0.0.1:5555:5555"]}

    def test_the_health_check_of_a_worker_tells_whether_it_answers(
        self, compose: dict[str, Any], redis_url: str, tmp_path: Path
    ) -> None:
        """The check knows the worker by its node name, so any worker of that name stands for it."""
        kind, script = compose["services"]["digits"]["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        environ = {
            **os.environ,
            "PATH": f"{Path(CELERY).parent}{os.pathsep}{os.environ['PATH']}",
            "FLYTE_CELERY_BROKER_URL": redis_url,
            "ENVIRONMENT": "digits",
        }
        script = script.replace("$$", "$").replace("--timeout 5", "--timeout 2")

        def healthy() -> bool:
            return subprocess.run(["sh", "-c", script], env=environ, cwd=tmp_path, capture_output=True).returncode == 0

        assert not healthy()
        plain = [CELERY, "-b", redis_url, "worker", "-P", "solo", "-n", "digits@%h", "--without-mingle"]
        worker = subprocess.Popen(plain, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(healthy, 30, "a healthy worker")
        finally:
            worker.terminate()
            worker.wait(timeout=30)
