"""The project of `tasks.py` with RabbitMQ as its broker, watched from outside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import pools

from tests.helpers.projects import Project
from tests.rabbitmq.server import RabbitServer

#: Celery settings by which every queue is a quorum queue, as Celery's documentation asks for.
QUORUM = {
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",
    # The default declares 28 quorum queues at each start of a worker, which takes the one node of these tests seconds.
    "broker_native_delayed_delivery_queue_type": "classic",
}

#: The same for clients that name the queues of environments without having imported them.
QUORUM_BY_NAME = {
    **QUORUM,
    "task_create_missing_queue_type": "quorum",
    "task_create_missing_queue_exchange_type": "topic",
}


class RabbitProject(Project):
    """`Project` with a virtual host of a RabbitMQ server as its broker.

    Args:
        folder: The project's directory.
        server: The RabbitMQ server.
        backend: URL of the result backend.
        settings: Celery settings of the project's app.
        by_name: Celery settings of the client, which has imported nothing of the project; None: the same.
    """

    def __init__(
        self,
        folder: Path,
        server: RabbitServer,
        backend: str,
        settings: dict[str, Any] | None = None,
        by_name: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(folder, server.new_vhost())
        self.server = server
        self._variables = {
            "FLYTE_CELERY_BROKER_URL": self.url,
            "FLYTE_CELERY_RESULT_BACKEND": backend,
            "SETTINGS": json.dumps(settings or {}),
        }
        self._client_settings = {"result_backend": backend, **(settings or {} if by_name is None else by_name)}
        self.connect_anew()
        shutil.copy(Path(__file__).parent / "tasks.py", folder / "proj.py")

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of every process of the project."""
        return self._variables

    def begun(self) -> list[tuple[int, int]]:
        """Every start of a task that notes it: its number, and the process id of the replica."""
        path = self.folder / "begun"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(number), int(pid)) for number, pid in map(str.split, lines)]

    def open(self, gate: str) -> None:
        """Let the tasks end that wait for this file."""
        (self.folder / gate).touch()

    def lose_connections(self) -> None:
        """Have the broker close every connection, that of this client too."""
        self.server.ctl("close_all_connections", "--vhost", self.url.rpartition("/")[2], "by a test")
        self.connect_anew()

    def connect_anew(self) -> None:
        """Begin with a client without connections: those that it had were lost."""
        self.celery_app.close()
        pools.reset()  # kombu shares connections between all apps of one URL
        self.celery_app = Celery("client", broker=self.url)
        self.celery_app.conf.update(self._client_settings)

    def close(self) -> None:
        """Kill every worker and let go of every connection."""
        super().close()
        pools.reset()

    # -- What the broker says ----------------------------------------------------------------------------------------

    def depth(self, queue: str) -> int:
        """Messages in a queue that no worker has; 0 for a queue that nobody has declared."""
        with self.celery_app.connection_for_read() as connection:
            try:
                return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
            except connection.channel_errors:
                return 0

    def unacknowledged(self, queue: str) -> int:
        """Messages of a queue that workers have and have not acknowledged, as the broker has counted lately."""
        return int(self._table("list_queues", "name", "messages_unacknowledged")[queue])

    def queue_type(self, queue: str) -> str:
        """`classic` or `quorum`."""
        return self._table("list_queues", "name", "type")[queue].removeprefix("rabbit_").removesuffix("_queue")

    def prefetch(self, queue: str) -> int:
        """How many messages the one consumer of a queue may have, by its own limit or by its channel's."""
        own = int(self._table("list_consumers", "queue_name", "prefetch_count")[queue])
        channels = self.server.ctl("list_channels", "vhost", "global_prefetch_count").splitlines()[1:]
        shared = [int(count) for vhost, count in map(str.split, channels) if vhost == self.url.rpartition("/")[2]]
        return own or max(shared)

    def _table(self, command: str, *columns: str) -> dict[str, str]:
        lines = self.server.ctl(command, "--vhost", self.url.rpartition("/")[2], *columns).splitlines()
        heading = lines[0].split("\t")
        first, second = (heading.index(column) for column in columns)
        return {row[first]: row[second] for row in (line.split("\t") for line in lines[1:])}
