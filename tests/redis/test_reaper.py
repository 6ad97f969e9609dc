"""Who is taken for dead and when, on a real Redis: not after an outage of it, and nothing of the buried is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from flyte_celery import names
from flyte_celery.fleet.claims import Claims, LeaseLostError
from flyte_celery.fleet.reaper import GRAVES_KEPT, reap, reap_patiently
from flyte_celery.fleet.scripts import script
from tests.conftest import wait_until
from tests.helpers.redis_server import RedisServer
from tests.helpers.tcp_proxy import TcpProxy

QUEUE = "predict"

#: Seconds; a lease that is over before anybody can look, and one that no slow machine outlives.
SHORT, LONG = 0.0, 600.0

#: Seconds for what takes a few.
PATIENCE = 30.0

MakeClaims = Callable[..., Claims]


@pytest.fixture
def claims_of(server: redis.Redis) -> MakeClaims:
    """Make a worker's claims, with a lease."""

    def make(worker: str, lease: float = LONG) -> Claims:
        made = Claims(server, QUEUE, names.PRIORITY_STEPS, worker, lease)
        made.take_lease()
        return made

    return make


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[TcpProxy]:
    """A network between a worker and the server."""
    proxy = TcpProxy(redis_server.port)
    yield proxy
    proxy.close()


def publish(client: redis.Redis, message: str) -> None:
    """Put a message into the queue as kombu does."""
    client.lpush(QUEUE, json.dumps({"properties": {"delivery_tag": message}}))


def lease(client: redis.Redis, worker: str) -> float | None:
    """The end of a worker's lease in ms, minus the moment when it was taken from it, None for one that is forgotten."""
    score: float | None = client.zscore(names.workers_key(), names.worker_member(QUEUE, worker))  # type: ignore[assignment]
    return score


def condemn(client: redis.Redis, worker: str) -> None:
    """Have a worker condemned whose lease is over."""
    reap(client)
    wait_until(lambda: reap(client) == [] and (lease(client, worker) or 0) < 0, PATIENCE, "doom")


def bury(client: redis.Redis, worker: str) -> None:
    """Have a worker buried whose lease is over."""
    wait_until(lambda: reap(client) == [] and lease(client, worker) is None, PATIENCE, "the burial")


def outlive_pulse(client: redis.Redis) -> None:
    """Wait until nobody has looked for so long that it must have been the server that was away."""

    def age() -> float:
        time: Any = client.time()
        looked = int(bytes(client.get(names.pulse_key()) or b"0").split()[0])  # type: ignore[arg-type]
        return float(time[0] + time[1] / 1e6 - looked / 1000)

    wait_until(lambda: age() > 3.1, PATIENCE, "an old pulse")


def test_after_an_outage_who_comes_back_has_what_he_had_and_who_does_not_is_condemned(
    claims_of: MakeClaims, server: redis.Redis
) -> None:
    """Everybody's lease is over then; the first one back must not take what the others have."""
    publish(server, "a")
    late, gone = claims_of("late", SHORT), claims_of("gone", SHORT)
    condemned_too_early = reap(server)  # nobody has ever looked here: that is an outage, too
    assert condemned_too_early == []
    outlive_pulse(server)
    first = claims_of("first")
    assert first.reap() == []
    assert (lease(server, "late") or 0) > 0 and (lease(server, "gone") or 0) > 0
    late.lease = LONG
    late.renew_lease()
    wait_until(lambda: first.reap() == [] and (lease(server, "gone") or 0) < 0, PATIENCE, "the end of one lease")
    late.renew_lease()
    with pytest.raises(LeaseLostError):
        gone.renew_lease()


def test_a_worker_that_looks_lives(claims_of: MakeClaims, server: redis.Redis) -> None:
    """Also when it was stopped for longer than its lease, and is the first one to notice."""
    reap_patiently(server)
    one = claims_of("one", SHORT)
    one.lease = LONG
    one.reap()
    assert (lease(server, "one") or 0) > 0
    condemned = claims_of("condemned", SHORT)
    condemn(server, "condemned")
    condemned.reap()
    assert (lease(server, "condemned") or 0) < 0


def test_who_looks_once_waits_until_everybody_could_have_come_back(claims_of: MakeClaims, server: redis.Redis) -> None:
    publish(server, "a")
    dead = claims_of("dead", SHORT)
    server.script_load(script("claim").text)
    dead.claimed(server.execute_command(*dead.claim_command(1)))  # type: ignore[no-untyped-call]
    assert [report.claims for report in reap_patiently(server)] == [1]
    assert server.llen(QUEUE) == 1


def test_a_wait_that_a_network_delivers_after_the_burial_of_its_worker_takes_no_message(
    claims_of: MakeClaims, server: redis.Redis, redis_url: str, proxy: TcpProxy
) -> None:
    """The worker has closed its connection long ago; the kernel, here the proxy, still has its last words."""
    worker = claims_of("cut-off", SHORT)
    server.script_load(script("claim").text)
    through = redis.Redis(port=proxy.port, db=redis.Redis.from_url(redis_url).get_connection_kwargs()["db"])
    connection = through.connection_pool.get_connection()
    connection.send_command("PING")
    connection.read_response()
    proxy.stall()
    connection.send_packed_command(connection.pack_commands([worker.wait_command(0.5), worker.claim_command(0)]))
    connection.disconnect()
    condemn(server, "cut-off")
    bury(server, "cut-off")
    publish(server, "a")
    seen = commands(server)
    proxy.heal()
    wait_until(lambda: commands(server) > seen, PATIENCE, "the last words")
    assert server.llen(names.inbox_key(QUEUE, "cut-off")) == 0
    assert server.llen(QUEUE) == 1


def commands(client: redis.Redis) -> int:
    """How many claims of a server's clients were run."""
    stats: dict[str, dict[str, int]] = client.info("commandstats")  # type: ignore[assignment]
    return stats["cmdstat_evalsha"]["calls"]


def test_a_wait_without_its_claim_takes_no_message_from_the_queue_for_good(
    claims_of: MakeClaims, server: redis.Redis
) -> None:
    """The connection was lost between the two, and its worker is buried when the server hears of the first one."""
    worker = claims_of("cut-off", SHORT)
    condemn(server, "cut-off")
    bury(server, "cut-off")
    publish(server, "a")
    server.execute_command(*worker.wait_command(1))  # type: ignore[no-untyped-call]
    assert server.llen(QUEUE) == 0
    wait_until(lambda: reap(server) == [] and server.llen(QUEUE) == 1, PATIENCE, "the message in the queue")


def test_a_grave_is_forgotten_when_nothing_can_come_any_more(claims_of: MakeClaims, server: redis.Redis) -> None:
    claims_of("w1").leave()
    bury(server, "w1")
    found: Any = server.zrange(names.graves_key(), 0, -1, withscores=True)
    ((member, over),) = found
    seconds = int(server.time()[0])  # type: ignore[index]
    assert GRAVES_KEPT * 1000 / 2 < over - seconds * 1000 <= GRAVES_KEPT * 1000
    server.zadd(names.graves_key(), {member: (seconds - 1) * 1000})
    wait_until(lambda: reap(server) == [] and not server.exists(names.graves_key()), PATIENCE, "a forgotten grave")
