"""Messages on a socket pair: cut anywhere, larger than the kernel's buffer, after the peer's end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyte_celery.supervisor.wire import Decoder, Line, encode

MESSAGES = st.lists(st.one_of(st.integers(), st.binary(), st.tuples(st.text(), st.integers())))


@pytest.fixture
def lines() -> Iterator[tuple[Line, Line]]:
    """Both ends of a connection."""
    ours, theirs = socket.socketpair()
    a, b = Line(ours), Line(theirs)
    yield a, b
    a.close()
    b.close()


@given(MESSAGES, st.integers(1, 50))
def test_messages_survive_any_cut_of_the_stream(messages: list[Any], size: int) -> None:
    stream = b"".join(encode(message) for message in messages)
    decoder = Decoder()
    got = [message for start in range(0, len(stream), size) for message in decoder.feed(stream[start : start + size])]
    assert got == messages


def test_what_the_kernel_does_not_take_at_once_waits_and_arrives_in_order(lines: tuple[Line, Line]) -> None:
    ours, theirs = lines
    large = b"x" * 5_000_000
    ours.send(large)
    ours.send("after")
    assert ours.pending
    got: list[Any] = []
    while len(got) < 2:
        got += theirs.receive()[0]
        ours.flush()
    assert got == [large, "after"]
    assert not ours.pending


def test_the_end_of_the_peer_is_reported_after_its_last_message(lines: tuple[Line, Line]) -> None:
    ours, theirs = lines
    ours.send("last")
    ours.close()
    messages, closed = theirs.receive()
    if not closed:
        more, closed = theirs.receive()
        messages += more
    assert messages == ["last"]
    assert closed


def test_sending_to_a_peer_that_is_gone_is_not_an_error(lines: tuple[Line, Line]) -> None:
    ours, theirs = lines
    theirs.close()
    ours.send("nobody reads this")
    assert not ours.pending
    ours.close()
    ours.send("nor this")
