"""A RabbitMQ server of a test run's own: on the loopback interface alone, with all of its files in one folder.

It shares nothing with a RabbitMQ of the machine: node name, ports, cookie, configuration and port mapper (epmd) are
its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

import amqp

from tests.helpers import processes

#: Every process of one server carries it, the port mapper too, which is nobody's child.
_MARK = "FLYTE_CELERY_TEST_RABBITMQ"

#: Where Debian keeps the programs themselves; those in /usr/sbin change to the user `rabbitmq` first.
_DEBIAN = Path("/usr/lib/rabbitmq/bin")

#: Seconds for a start or an orderly stop, on a machine that does something else as well.
PATIENCE = 60.0

#: Seconds that one attempt to connect may take while the node starts.
_HANDSHAKE = 5.0


def find_programs() -> Path:
    """The folder of `rabbitmq-server` and `rabbitmqctl`.

    Raises:
        FileNotFoundError: There is none; the message says how to get it.
    """
    if (_DEBIAN / "rabbitmq-server").exists():
        return _DEBIAN
    if found := shutil.which("rabbitmq-server", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])):
        return Path(found).resolve().parent
    raise FileNotFoundError("There is no rabbitmq-server: run `make test-rabbitmq`, which installs it.")


class RabbitServer:
    """One node with its data in `folder`; it keeps them, and its port, over `stop()` and `start()`.

    Args:
        folder: For everything that it writes.
        configuration: Its `advanced.config`, which is an Erlang term.
    """

    def __init__(self, folder: Path, configuration: str = "[].") -> None:
        self._folder = folder
        self._programs = find_programs()
        self._process: subprocess.Popen[bytes] | None = None
        self._mark = uuid.uuid4().hex
        self.port, distribution, mapper = _free_ports(3)
        (folder / "rabbitmq.conf").touch()
        (folder / "advanced.config").write_text(f"{configuration}\n")
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "rabbitmq-env.conf").touch()
        self._variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))},
            _MARK: self._mark,
            "HOME": str(folder),  # for the cookie
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(mapper),
            "RABBITMQ_NODENAME": f"flyte-{self._mark[:12]}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CTL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        }

    def url(self, vhost: str = "") -> str:
        """The `amqp://` URL of a virtual host; the default one without a name."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def start(self) -> None:
        """Start the node and return when it takes connections.

        Raises:
            AssertionError: It ended, or does not answer; the message has what it wrote.
        """
        with (self._folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                [self._programs / "rabbitmq-server"],
                cwd=self._folder,
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            ended = self._process.poll() is not None
            assert not ended and time.monotonic() < deadline, f"RabbitMQ does not answer.\n{self._written()}"
            time.sleep(0.1)

    def stop(self) -> None:
        """End the node in good order; durable queues keep their messages."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(PATIENCE)
            self._process = None

    def destroy(self) -> None:
        """Kill the node and its port mapper, each by its id."""
        processes.kill_carrying(_MARK, self._mark)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` and return what it printed; its start takes a second or two."""
        done = subprocess.run(
            [self._programs / "rabbitmqctl", "--quiet", *arguments],
            cwd=self._folder,
            env=self._variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def new_vhost(self) -> str:
        """Make an empty virtual host and return its URL."""
        name = uuid.uuid4().hex[:12]
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "--vhost", name, "guest", ".*", ".*", ".*")
        return self.url(name)

    def _answers(self) -> bool:
        try:
            connection = amqp.Connection(f"127.0.0.1:{self.port}", connect_timeout=_HANDSHAKE)
            connection.connect()
            connection.close()
        except (OSError, amqp.AMQPError):
            return False
        return True

    def _written(self) -> str:
        logs = [self._folder / "output.log", *(self._folder / "log").glob("*.log")]
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in logs if path.exists())


def _free_ports(number: int) -> list[int]:
    """So many different ports of 127.0.0.1 that nobody uses now."""
    probes = [socket.socket() for _ in range(number)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
