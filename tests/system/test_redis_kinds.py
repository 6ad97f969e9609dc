"""An environment's worker on every way to reach a Redis that kombu has: claims work through each."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from flyte_celery import names
from tests.helpers.projects import PATIENCE
from tests.helpers.redis_server import RedisServer, find_redis_server, free_port
from tests.helpers.tls import TlsProxy
from tests.helpers.waiting import wait_until
from tests.helpers.workers import Worker, run_python, write_module

SOURCE = """
    from celery import Celery

    import flyte_celery as flyte

    app = flyte.init(app=Celery("proj"))
    app.conf.update({settings})
    env = flyte.TaskEnvironment("snc", reusable=flyte.ReusePolicy(replicas=1, idle_ttl=3600))


    @env.task
    def double(n: int) -> int:
        return 2 * n


    @env.task(cache="auto")
    def triple(n: int) -> int:
        return 3 * n
"""

CALL = """
    import proj
    print(proj.double.delay(21).get(timeout=20))
"""

CALL_CACHED = """
    import proj
    print(proj.triple.delay(14).get(timeout=20), proj.triple.delay(14).hit)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis for one test alone."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    yield server
    server.stop()


def serves_with_claims(folder: Path, settings: dict[str, object], client: redis.Redis) -> Worker:
    """Start a worker, call its tasks, and see that it holds a lease and tells what it serves."""
    text = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    write_module(folder, SOURCE.replace("{settings}", text))
    worker = Worker(folder, ["-A", "proj", "env", "worker", "snc", "--loglevel", "INFO"])
    try:
        worker.wait_ready()
        assert run_python(folder, CALL, timeout=60).strip() == "42", worker.log_tail()
        assert run_python(folder, CALL_CACHED, timeout=60).split() == ["42", "True"], worker.log_tail()
        leases = client.zrange(names.workers_key(), 0, -1, withscores=True)
        assert [score > 0 for member, score in leases] == [True], leases  # type: ignore[union-attr]
        assert client.exists(names.environment_key("snc"), names.offers_key()) == 2, worker.log_tail()
        assert "fencing is off" not in worker.log()
        assert "Error in timer" not in worker.log(), worker.log_tail()
    except BaseException:
        worker.destroy()
        raise
    return worker


@pytest.mark.parametrize("how", ["url", "broker_use_ssl"])
def test_tls(tmp_path: Path, server: RedisServer, how: str) -> None:
    proxy = TlsProxy(tmp_path, server.port)
    if how == "url":
        url = f"rediss://127.0.0.1:{proxy.port}/0?ssl_cert_reqs=required&ssl_ca_certs={proxy.ca_path}"
        settings: dict[str, object] = {"broker_url": url, "result_backend": url}
    else:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        trust = {"ssl_cert_reqs": "required", "ssl_ca_certs": str(proxy.ca_path)}
        settings = {
            "broker_url": url,
            "broker_use_ssl": trust,
            "result_backend": url.replace("redis", "rediss"),
            "redis_backend_use_ssl": trust,
        }
    worker = serves_with_claims(tmp_path, settings, redis.Redis.from_url(server.url()))
    worker.destroy()
    proxy.close()
    assert proxy.connections > 3


def test_a_unix_socket(tmp_path: Path, server: RedisServer) -> None:
    client = redis.Redis.from_url(server.url())
    path = tmp_path / "redis.sock"
    program = [find_redis_server(), "--port", "0", "--unixsocket", str(path), "--save", ""]
    process = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(unix_socket_path=str(path))
        wait_until(path.exists, timeout=PATIENCE)
        url = f"redis+socket://{path}"
        settings: dict[str, object] = {"broker_url": url, "result_backend": url}
        serves_with_claims(tmp_path, settings, client).destroy()
    finally:
        process.kill()
        process.wait()


def test_sentinels_and_a_failover(tmp_path: Path, server: RedisServer) -> None:
    """The worker finds the new master by itself, and serves on."""
    folder = tmp_path / "replica"
    folder.mkdir()
    replica = RedisServer(folder)
    replica.start()
    redis.Redis.from_url(replica.url()).execute_command("REPLICAOF", "127.0.0.1", server.port)  # type: ignore[no-untyped-call]
    port = free_port()
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor flyte 127.0.0.1 {server.port} 1\n"
        "sentinel down-after-milliseconds flyte 1000\nsentinel failover-timeout flyte 5000\n"
    )
    program = [find_redis_server(), str(configuration), "--sentinel"]
    sentinel = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    asked = redis.Redis(port=port)
    try:
        wait_until(lambda: _replicas(asked) == 1, timeout=30, description="the sentinel to know the replica")
        url = f"sentinel://127.0.0.1:{port}/0"
        settings: dict[str, object] = {
            "broker_url": url,
            "broker_transport_options": {"master_name": "flyte"},
            "result_backend": url,
            "result_backend_transport_options": {"master_name": "flyte"},
        }
        worker = serves_with_claims(tmp_path, settings, redis.Redis.from_url(server.url()))
        server.stop()
        wait_until(lambda: _master(asked) == replica.port, timeout=30, description="the failover")
        try:
            wait_until(lambda: _called(tmp_path), timeout=60, description="a call on the new master")
        finally:
            print(worker.log_tail())
            worker.destroy()
    finally:
        sentinel.kill()
        sentinel.wait()
        replica.stop()


def _replicas(asked: redis.Redis) -> int:
    try:
        return len(asked.execute_command("SENTINEL", "REPLICAS", "flyte"))  # type: ignore[no-untyped-call]
    except redis.RedisError:
        return 0


def _master(asked: redis.Redis) -> int:
    found = asked.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "flyte")  # type: ignore[no-untyped-call]
    return int(found[1])


def _called(folder: Path) -> bool:
    try:
        return run_python(folder, CALL, timeout=60).strip() == "42"
    except AssertionError:
        return False
