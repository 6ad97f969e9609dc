"""What the worker writes to replicas that do not read: nobody waits for them, whatever else the event loop does."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from kombu.asynchronous.hub import Hub

from flyte_celery.supervisor.wire import Line, encode
from flyte_celery.worker.outbox import Outbox

LARGE = b"x" * 5_000_000


@pytest.fixture
def lines() -> Iterator[tuple[Line, Line]]:
    """Both ends of a connection."""
    ours, theirs = socket.socketpair()
    a, b = Line(ours), Line(theirs)
    yield a, b
    a.close()
    b.close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Celery's event loop."""
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def outbox(hub: Hub) -> Outbox:
    """On that event loop."""
    outbox = Outbox()
    outbox.watch(hub)
    return outbox


def _timers(hub: Hub) -> int:
    return sum(not scheduled.entry.canceled for scheduled in hub.timer.queue)


def _read(hub: Hub, theirs: Line, count: int) -> list[object]:
    got: list[object] = []
    while len(got) < count:
        messages, _ = theirs.receive()
        got += messages
        hub.run_once()
    return got


def test_one_timer_waits_for_all_that_do_not_read(lines: tuple[Line, Line], outbox: Outbox, hub: Hub) -> None:
    """However much more they are sent meanwhile: kombu fires ten timers in a turn, and then waits."""
    ours, theirs = lines
    outbox.send(ours, LARGE)
    for number in range(100):
        outbox.keep(ours, encode(number))
        hub.run_once()
        assert _timers(hub) <= 1
    assert _read(hub, theirs, 101) == [LARGE, *range(100)]
    hub.run_once()
    assert not _timers(hub)


def test_what_is_kept_goes_with_its_turn(lines: tuple[Line, Line], outbox: Outbox, hub: Hub) -> None:
    ours, theirs = lines
    outbox.keep(ours, encode("a"))
    outbox.keep(ours, encode("b"))
    assert theirs.receive() == ([], False)
    hub.run_once()
    assert theirs.receive() == (["a", "b"], False)


def test_a_new_event_loop_goes_on(lines: tuple[Line, Line], outbox: Outbox, hub: Hub) -> None:
    """With what was noted, and with what was not taken."""
    ours, theirs = lines
    outbox.send(ours, LARGE)
    outbox.keep(ours, encode("after"))
    following = Hub()
    outbox.watch(following)
    assert _read(following, theirs, 2) == [LARGE, "after"]
    assert not _timers(following)
    following.close()
