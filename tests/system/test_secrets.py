"""Planted secrets: every replica has them before user modules are imported, and nothing that leaves it shows them.

The values are looked for in Redis, in what is published through Redis, in the workers' logs, in Celery's events, in
Flower, in the command lines of all processes, and in the variables that processes were started with.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis

from tests.helpers import processes
from tests.helpers.projects import PATIENCE, Project
from tests.helpers.waiting import wait_until

#: By where they come from. Each has something that is written differently in JSON, in URLs and by `repr`.
PLANTED = {
    "provider": 'pro/vi"ded+Zu8wJ4kQ',
    "file": "from a\\file?Yt5rE1mN",
    "environment": "inherited&Hb7cV3xS",
}

SOURCE = """
    import base64, logging, os, sys, urllib.parse
    from pathlib import Path

    import flyte_celery as flyte

    HERE = Path(__file__).parent


    def provide(secret: flyte.Secret) -> str | None:
        with (HERE / "asked.txt").open("a") as asked:
            asked.write(f"{os.getpid()} {secret.key}\\n")
        return (HERE / "vault.txt").read_text() if secret.key == "provider-key" else None


    app = flyte.init(secret_provider=provide)
    SECRETS = [flyte.Secret("provider-key"), flyte.Secret("key", group="file"), "environment-key"]
    NAMES = ["PROVIDER_KEY", "FILE_KEY", "ENVIRONMENT_KEY", "PLAIN"]
    # What every replica has at the import of the first user module.
    AT_IMPORT = {name: os.environ.get(name) for name in NAMES}

    warm = flyte.TaskEnvironment(
        "warm", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600), secrets=SECRETS, env_vars={"PLAIN": 5}
    )
    once = flyte.TaskEnvironment("once", secrets=SECRETS, env_vars={"PLAIN": 5})
    fresh = flyte.TaskEnvironment(
        "fresh", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600), secrets=SECRETS, env_vars={"PLAIN": 5},
        resources=flyte.Resources(gpu=1),
    )
    needy = flyte.TaskEnvironment("needy", secrets=[flyte.Secret("nowhere", group="lost")])
    doubled = flyte.TaskEnvironment("doubled", secrets=["environment-key"], env_vars={"ENVIRONMENT_KEY": "x"})
    odd = flyte.TaskEnvironment("odd")
    odd.secrets = 5  # after it was checked
    broken = flyte.TaskEnvironment("broken", reusable=flyte.ReusePolicy(replicas=1), secrets=SECRETS)


    @broken.on_startup
    async def connect() -> None:
        raise ConnectionError(f"refused: {list(secrets().values())}")


    @broken.task
    async def never() -> None: ...


    def secrets() -> dict[str, str]:
        return {name: os.environ[name] for name in NAMES[:3]}


    class Hidden(Exception):
        def __init__(self, detail: object) -> None:
            super().__init__("hidden")
            self.detail = detail

        def __str__(self) -> str:
            return f"detail {vars(self.detail)}"


    class Holder:
        def __init__(self, value: str) -> None:
            self.value = value


    def seen() -> dict[str, bool]:
        # Whether the values are right is said, not the values: results are data, and are not redacted.
        right = {"PROVIDER_KEY": "provider", "FILE_KEY": "file", "ENVIRONMENT_KEY": "environment"}
        planted = eval((HERE / "planted.txt").read_text())
        found = {name: AT_IMPORT[name] == planted[source] == os.environ[name] for name, source in right.items()}
        return {**found, "PLAIN": AT_IMPORT["PLAIN"] == "5"}


    def fail(kind: str) -> None:
        for value in secrets().values():
            print(f"printed {value}")
            print(f"printed to stderr {value}", file=sys.stderr)
            logging.getLogger("theirs").warning("logged %s", value)
            logging.getLogger("theirs").warning(f"logged as URL {urllib.parse.quote(value, safe='')}")
        text = " and ".join(secrets().values())
        match kind:
            case "message":
                raise ValueError(text)
            case "encoded":
                header = base64.b64encode(("user:" + secrets()["PROVIDER_KEY"]).encode()).decode()
                raise ValueError(f"Authorization: Basic {header}; {urllib.parse.quote(text)}")
            case "chain":
                try:
                    raise KeyError(text)
                except KeyError as exc:
                    exc.add_note(text)
                    raise RuntimeError("outer") from exc
            case "hidden":
                raise Hidden(Holder(text))
            case "group":
                raise ExceptionGroup(text, [ValueError(text), Hidden(Holder(text))])
            case "exit":
                sys.exit(text)
            case "logged":
                try:
                    raise ValueError(text)
                except ValueError:
                    logging.getLogger("theirs").exception("caught %s", text)
                raise ValueError("logged")


    @warm.task
    async def warm_seen() -> dict[str, bool]:
        return seen()


    @once.task
    def once_seen() -> dict[str, bool]:
        return seen()


    @fresh.task
    async def fresh_seen() -> dict[str, bool]:
        return seen()


    @warm.task
    async def warm_fail(kind: str) -> None:
        fail(kind)


    @once.task
    def once_fail(kind: str) -> None:
        fail(kind)


    @warm.task(retries=1)
    async def warm_retry() -> None:
        fail("hidden")


    @warm.task
    async def warm_parent(kind: str) -> str:
        try:
            await warm_fail(kind)
        except Exception as exc:
            raise RuntimeError(f"the child said {exc}") from exc
        return "none"
"""

KINDS = ("message", "encoded", "chain", "hidden", "group", "exit", "logged")


def spellings(value: str) -> set[str]:
    """How a value may be written, found out here once more: the oracle must not be the code under test."""
    raw = value.encode()
    encoded = {base64.b64encode(bytes(shift) + raw).decode()[4:-4] for shift in range(3)}
    return {value, json.dumps(value)[1:-1], repr(value)[1:-1], quote(value), quote(value, safe=""), *encoded}


NEEDLES = {form: source for source, value in PLANTED.items() for form in spellings(value)}


def leaks(text: str) -> list[str]:
    """Which secrets a text shows, and where."""
    found = []
    for form, source in NEEDLES.items():
        if (at := text.find(form)) >= 0:
            found.append(f"{source}: ...{text[max(0, at - 120) : at + 80]}...")
    return found


class Wire:
    """Everything that is published through a Redis server, and everything that a database of it holds."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._subscription = self._client.pubsub()
        self._subscription.psubscribe("*")
        self.published: list[str] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._ends.is_set():
            message = self._subscription.get_message(timeout=0.1)
            if message is not None and message["type"] == "pmessage":
                self.published.append(_opened(message["data"]))

    def held(self) -> str:
        """All keys and all values."""
        readers: dict[bytes, Any] = {
            b"string": self._client.get,
            b"list": lambda key: self._client.lrange(key, 0, -1),
            b"hash": self._client.hgetall,
            b"set": self._client.smembers,
            b"zset": lambda key: self._client.zrange(key, 0, -1),
            b"stream": self._client.xrange,
        }
        held = []
        for key in self._client.scan_iter():
            value = readers.get(self._client.type(key), lambda _: b"")(key)
            parts = value.items() if isinstance(value, dict) else [value]
            held += [key.decode(), *(_opened(part) for part in _leaves([*parts]))]
        return "\n".join(held)

    def close(self) -> None:
        self._ends.set()
        self._thread.join()
        self._subscription.close()
        self._client.close()


def _leaves(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _leaves(part)


def _opened(data: bytes) -> str:
    """A message with its body, which kombu puts into base64."""
    text = data.decode(errors="replace")
    try:
        body = json.loads(text)["body"]
        return text + base64.b64decode(body).decode(errors="replace")
    except (ValueError, KeyError, TypeError):
        return text


class Events:
    """Celery's events, as Flower gets them."""

    def __init__(self, project: Project) -> None:
        self.seen: list[dict[str, Any]] = []
        self._connection = project.celery_app.connection_for_read()
        self._receiver = project.celery_app.events.Receiver(self._connection, handlers={"*": self.seen.append})
        # It looks once a second whether it should stop.
        self._thread = threading.Thread(target=self._receiver.capture, kwargs={"wakeup": False})
        self._thread.start()

    def close(self) -> None:
        self._receiver.should_stop = True
        self._thread.join()
        self._connection.release()


@pytest.fixture(scope="module")
def project(shared: Project) -> Project:
    shared.write(SOURCE)
    folder = shared.folder
    (folder / "planted.txt").write_text(repr(PLANTED))
    (folder / "vault.txt").write_text(PLANTED["provider"])
    (folder / "secrets" / "file").mkdir(parents=True)
    (folder / "secrets" / "file" / "key").write_text(PLANTED["file"] + "\n")
    return shared


def variables(project: Project) -> dict[str, str]:
    """What the operator gives to a worker."""
    return {
        "FLYTE_CELERY_SECRETS_DIR": str(project.folder / "secrets"),
        "ENVIRONMENT_KEY": PLANTED["environment"],
        "FLYTE_CELERY_START_BACKOFF": "0.05",
        "FLYTE_CELERY_DEVICES": "L4:1",
    }


@pytest.fixture(scope="module")
def wire(project: Project) -> Iterator[Wire]:
    wire = Wire(project.url)
    yield wire
    wire.close()


@pytest.fixture(scope="module")
def events(project: Project) -> Iterator[Events]:
    events = Events(project)
    yield events
    events.close()


@pytest.fixture(scope="module")
def flower(project: Project) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    project.start(
        f"--port={port}", "--address=127.0.0.1", env={"FLOWER_UNAUTHENTICATED_API": "true"}, command="flower",
        ready=False,
    )  # fmt: skip
    return f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def served(project: Project, wire: Wire, events: Events, flower: str) -> Project:
    """Three environments at work, watched from everywhere."""
    for name in ("warm", "once", "fresh"):
        project.start(name, "--task-events", env=variables(project))

    def knows() -> bool:
        try:
            return "fresh@" in fetch(f"{flower}/api/workers?refresh=true")
        except OSError:
            return False

    project.wait(knows, 30, "Flower's knowledge of the workers")
    return project


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        text: str = answer.read().decode(errors="replace")
    return text


@pytest.mark.parametrize("environment", ["warm", "once", "fresh"])
def test_every_source_reaches_a_replica_before_user_modules_are_imported(served: Project, environment: str) -> None:
    """Forks of a preloaded process, replicas for one task, and fresh interpreters."""
    expected = {"PROVIDER_KEY": True, "FILE_KEY": True, "ENVIRONMENT_KEY": True, "PLAIN": True}
    assert served.call(f"{environment}.{environment}_seen") == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("environment", ["warm", "once"])
def test_a_failure_shows_no_secret_to_its_caller(served: Project, environment: str, kind: str) -> None:
    result = served.send(f"{environment}.{environment}_fail", kind)
    with pytest.raises(Exception, match=r".") as failed:
        result.get(timeout=PATIENCE)
    assert not leaks(f"{failed.value!r} {failed.value} {result.traceback} {result.info!r}")
    if kind in ("message", "encoded"):
        assert "**" in str(failed.value)


def test_failures_through_retries_and_parents_show_none(served: Project) -> None:
    for sent in (served.send("warm.warm_retry"), served.send("warm.warm_parent", "message")):
        with pytest.raises(Exception, match=r"detail|the child said") as failed:
            sent.get(timeout=PATIENCE)
        assert not leaks(f"{failed.value!r} {sent.traceback}")


def test_a_start_up_that_fails_shows_none(served: Project) -> None:
    worker = served.start("broken", "--task-events", env=variables(served))
    result = served.send("broken.never")
    with pytest.raises(Exception, match="cannot start replicas") as failed:
        result.get(timeout=PATIENCE * 2)
    assert "refused: ['**', '**', '**']" in str(failed.value)
    assert not leaks(str(failed.value))
    assert not leaks(json.dumps(served.status("broken")))
    worker.terminate()
    worker.wait()


def test_nothing_that_anybody_can_look_at_has_a_secret(
    served: Project, wire: Wire, events: Events, flower: str
) -> None:
    """After everything above. Text that was printed and logged is there, without the values."""
    failures = [event for event in events.seen if event["type"] == "task-failed"]
    assert {event["type"] for event in events.seen} >= {"task-failed", "task-retried", "task-succeeded"}
    assert len(failures) >= 2 * len(KINDS)
    assert not leaks(json.dumps(events.seen, default=repr) + repr(events.seen))

    assert not leaks("\n".join(wire.published))
    assert "celery-task-meta-" in wire.held()
    assert not leaks(wire.held())

    for worker in served.workers:
        assert not leaks(worker.log()), worker.name
    for words in ("printed **", "logged **", "logged as URL **", "printed to stderr **", "ValueError: ** and **"):
        assert words in served.workers[1].log()

    def pages() -> str:
        return "\n".join(fetch(f"{flower}{path}") for path in ("/workers", "/tasks", "/broker", "/api/workers"))

    tasks = wait_until(
        lambda: len(found := json.loads(fetch(f"{flower}/api/tasks"))) >= len(failures) and found, 20, "Flower's tasks"
    )
    assert not leaks(pages() + json.dumps(tasks) + repr(tasks))
    for number in list(tasks)[:5]:
        assert not leaks(fetch(f"{flower}/task/{number}"))

    for pid in processes.everything():
        assert not leaks(processes.command_line(pid))


def test_only_the_worker_was_started_with_one(served: Project) -> None:
    """That which its operator set; what replicas are given is not in the variables that they were started with."""
    for worker in served.workers[1:4]:
        launcher, *replicas = processes.descendants(worker.pid)
        started_with = {
            pid: leaks(Path(f"/proc/{pid}/environ").read_text()) for pid in (worker.pid, launcher, *replicas)
        }
        assert [text[: len("environment")] for text in started_with.pop(worker.pid)] == ["environment"]
        assert not any(started_with.values()), started_with


def test_the_provider_is_asked_by_workers_alone(served: Project) -> None:
    """Once for each secret; a client, a replica and Flower import the same module and never ask."""
    asked = [line.split() for line in (served.folder / "asked.txt").read_text().splitlines()]
    workers = {worker.pid for worker in served.workers[1:]}
    assert {int(pid) for pid, _ in asked} <= workers
    assert len(asked) == 3 * len({pid for pid, _ in asked})
    served.celery("env", "list")
    assert len((served.folder / "asked.txt").read_text().splitlines()) == len(asked)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ("needy", ["'needy' cannot be served", "'nowhere' of group 'lost' is missing", "LOST_NOWHERE is not set"]),
        ("doubled", ["'doubled' has ENVIRONMENT_KEY in env_vars and as a secret"]),
    ],
)
def test_a_worker_that_cannot_give_a_secret_does_not_start(
    project: Project, environment: str, words: list[str]
) -> None:
    for command in (["env", "worker", environment], ["worker", "-Q", environment]):
        ended = project.celery(*command, env=variables(project))
        assert ended.returncode == 1
        said = ended.stdout + ended.stderr
        assert "Traceback" not in said
        assert all(word in said for word in words), said
        assert not leaks(said)


def test_a_worker_that_meets_the_unforeseen_does_not_start_as_a_plain_one(project: Project) -> None:
    """Celery logs what a signal's receiver raises, and goes on."""
    ended = project.celery("worker", "-Q", "odd")
    assert ended.returncode == 1
    assert "TypeError: secrets=5 is not possible" in ended.stderr
    assert "ready." not in ended.stdout + ended.stderr
