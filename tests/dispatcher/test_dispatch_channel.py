"""Sockets of the hub: what is written goes out in order, together where asked for, and a lost peer is told once.

Packets show how many writes it took: each arrives as one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import trio
import trio.testing
from doubles_dispatch import service_of

from pyroxfer_core import Uri
from pyroxfer_core.wire import STOCK, V502, Message, MessageType
from pyroxfer_dispatcher.backends import Backend
from pyroxfer_dispatcher.channel import Channel
from pyroxfer_dispatcher.hub import LATELY_S, Hub
from pyroxfer_dispatcher.pinned import Pinned


@pytest.fixture
def hub() -> Iterator[Hub]:
    with closing(Hub()) as hub:
        yield hub


def pair(kind: int = socket.SOCK_SEQPACKET) -> tuple[socket.socket, socket.socket]:
    """The end for a channel, and the peer's."""
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    near.setblocking(False)
    far.setblocking(False)
    return near, far


class Said:
    """Keeps what a channel reports."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.lost: list[str] = []
        self.drained = 0

    def channel(self, hub: Hub, sock: socket.socket) -> Channel:
        return Channel(hub, sock, self.data.append, self.lost.append)

    def on_drained(self) -> None:
        self.drained += 1


def received(peer: socket.socket) -> list[bytes]:
    packets = []
    try:
        while data := peer.recv(1 << 20):
            packets.append(data)
    except BlockingIOError:
        pass
    return packets


def test_what_is_written_leaves_at_once(hub: Hub) -> None:
    near, far = pair()
    with closing(Said().channel(hub, near)) as channel, far:
        channel.write(b"one")
        channel.write_both(b"two", b"three")
        assert received(far) == [b"one", b"twothree"]
        assert (channel.queued, channel.pending) == (11, 0)


def test_of_two_buffers_that_are_too_much_the_rest_follows_in_order(hub: Hub) -> None:
    near, far = pair(socket.SOCK_STREAM)
    said = Said()
    head, body = b"h" * 100_000, b"b" * 2_000_000
    with closing(said.channel(hub, near)) as channel, far:
        channel.write_both(head, body)
        channel.on_drained(said.on_drained)
        assert 0 < channel.pending < len(head) + len(body)
        channel.write_both(b"last ", b"words")
        got = b""
        while channel.pending:
            got += b"".join(received(far))
            hub.turn()
        assert got + b"".join(received(far)) == head + body + b"last words"
        assert (channel.queued, said.drained, said.lost) == (len(head) + len(body) + 10, 1, [])


def test_of_two_buffers_for_nobody_the_hub_tells(hub: Hub) -> None:
    near, far = pair(socket.SOCK_STREAM)
    said = Said()
    channel = said.channel(hub, near)
    far.close()
    channel.write_both(b"nobody ", b"reads this")
    assert (channel.pending, said.lost) == (17, [])
    hub.turn()
    assert channel.closed
    assert len(said.lost) == 1


class Stopped:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Stopped:
    stopped = Stopped()
    monkeypatch.setattr("pyroxfer_dispatcher.hub.monotonic", stopped)
    return stopped


class Asked:
    """Notes within the turn of the hub what another channel's silence looks like, after doing something before.

    Args:
        other: the channel that is looked at.
        before: done first; what it causes comes after the hub's look.
    """

    def __init__(self, hub: Hub, other: Channel, before: Callable[[], object]) -> None:
        self._other = other
        self._before = before
        self.found: list[bool] = []
        self.near, self.far = pair(socket.SOCK_STREAM)
        self.channel = Channel(hub, self.near, self._said, lambda reason: None)

    def _said(self, data: bytes) -> None:
        self._before()
        self.found.append(self._other.is_silent)


def silence(hub: Hub, before: Callable[[Channel, socket.socket], object], first: bytes = b"") -> tuple[bool, bool]:
    """Whether a channel looks silent within a turn, to whom that does ``before`` with it and its peer, and after it.

    Args:
        first: what had come at it at the hub's look.
    """
    near, far = pair(socket.SOCK_STREAM)
    with closing(Channel(hub, near, lambda data: None, lambda reason: None)) as channel, far:
        asked = Asked(hub, channel, lambda: before(channel, far))
        with closing(asked.channel), asked.far:
            far.send(first)
            asked.far.send(b"go on")
            hub.turn()
            return asked.found[0], channel.is_silent


def test_within_a_turn_silence_is_what_the_hub_has_just_seen(hub: Hub, clock: Stopped) -> None:
    assert silence(hub, lambda channel, peer: None) == (True, True)
    assert silence(hub, lambda channel, peer: peer.send(b"late")) == (True, False)


def test_a_socket_at_which_something_had_come_is_asked_itself(hub: Hub, clock: Stopped) -> None:
    assert silence(hub, lambda channel, peer: peer.send(b"more"), b"first") == (False, False)


def test_what_the_hub_has_seen_holds_for_a_moment(hub: Hub, clock: Stopped) -> None:
    def late(channel: Channel, peer: socket.socket) -> None:
        peer.send(b"late")
        clock.now += LATELY_S

    assert silence(hub, late) == (False, False)


def test_a_look_without_room_for_all_says_nothing_of_the_others(
    hub: Hub, clock: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyroxfer_dispatcher.hub.MAX_EVENTS", 1)
    assert silence(hub, lambda channel, peer: peer.send(b"late")) == (False, False)


@pytest.mark.parametrize("goes_on", [False, True])
def test_of_a_channel_that_was_paused_the_hub_knows_nothing(hub: Hub, clock: Stopped, goes_on: bool) -> None:
    near, far = pair(socket.SOCK_STREAM)
    with closing(Channel(hub, near, lambda data: None, lambda reason: None)) as channel, far:
        asked = Asked(hub, channel, channel.resume if goes_on else lambda: None)
        with closing(asked.channel), asked.far:
            channel.pause()
            far.send(b"before the look")
            asked.far.send(b"go on")
            hub.turn()
            assert asked.found == [False]


@pytest.mark.parametrize("size", [3, 50_000])
def test_what_is_gathered_leaves_together_and_counts_as_waiting_until_then(hub: Hub, size: int) -> None:
    near, far = pair()
    said = Said()
    parts = [bytes([number]) * size for number in range(2)]
    with closing(said.channel(hub, near)) as channel, far:
        channel.hold()
        for part in parts:
            channel.write(part)
        channel.on_drained(said.on_drained)
        assert received(far) == []
        assert channel.pending == 2 * size
        channel.let_go()
        assert received(far) == [b"".join(parts)]
        assert (channel.queued, channel.pending, said.drained) == (2 * size, 0, 1)
        channel.let_go()
        channel.write(b"at once again")
        assert received(far) == [b"at once again"]


def test_a_full_socket_gets_the_rest_in_order_when_it_has_room(hub: Hub) -> None:
    near, far = pair(socket.SOCK_STREAM)
    said = Said()
    parts = [bytes([number % 251]) * (7 if number % 2 else 9_000) for number in range(600)]
    with closing(said.channel(hub, near)) as channel, far:
        for first in range(0, len(parts), 100):
            channel.hold()
            for part in parts[first : first + 100]:
                channel.write(part)
            channel.let_go()
        channel.on_drained(said.on_drained)
        assert channel.is_clogged
        assert not said.drained
        got = b""
        while channel.pending:
            got += b"".join(received(far))
            hub.turn()
        assert got + b"".join(received(far)) == b"".join(parts)
        assert (said.drained, said.lost) == (1, [])


def test_a_peer_that_is_gone_is_told_by_the_hub_and_never_within_a_write(hub: Hub) -> None:
    near, far = pair(socket.SOCK_STREAM)
    said = Said()
    channel = said.channel(hub, near)
    far.close()
    channel.hold()
    channel.write(b"nobody")
    channel.write(b"reads this")
    channel.let_go()
    assert not said.lost
    hub.turn()
    assert channel.closed
    assert len(said.lost) == 1


@pytest.fixture
def unheard(hub: Hub) -> Iterator[tuple[Channel, Said]]:
    """A paused channel whose peer has said something and is gone."""
    near, far = pair(socket.SOCK_STREAM)
    said = Said()
    with closing(said.channel(hub, near)) as channel:
        channel.pause()
        far.send(b"last words")
        far.close()
        hub.turn()
        yield channel, said


def test_a_peer_that_is_gone_before_it_was_heard_keeps_nobody_busy(hub: Hub, unheard: tuple[Channel, Said]) -> None:
    """Nobody can choose not to be told of the end of a connection; but it has not to be told again and again."""
    hub.turn()
    assert not hub.turn()
    channel, said = unheard
    assert (said.data, said.lost) == ([], [])
    channel.resume()
    hub.turn()
    assert (said.data, said.lost) == ([b"last words"], [])
    hub.turn()
    assert (said.data, len(said.lost)) == ([b"last words"], 1)


def test_of_a_peer_that_is_gone_before_it_was_heard_who_writes_is_told(
    hub: Hub, unheard: tuple[Channel, Said]
) -> None:
    channel, said = unheard
    hub.turn()
    channel.write(b"nobody reads this")
    hub.turn()
    assert channel.closed
    assert len(said.lost) == 1


def test_a_closed_channel_lets_go_of_nothing(hub: Hub) -> None:
    near, far = pair()
    said = Said()
    with far:
        channel = said.channel(hub, near)
        channel.hold()
        channel.write(b"too late")
        channel.on_drained(said.on_drained)
        channel.close()
        channel.let_go()
        assert received(far) == []
        assert not said.drained


async def test_what_came_with_one_read_leaves_in_parts_of_what_is_under_way(hub: Hub) -> None:
    calls = [V502.encode(Message(MessageType.INVOKE, seq, "serpent", 0, b"()")) for seq in range(1, 17)]
    answers = [V502.encode(Message(MessageType.RESULT, seq, "serpent", 0, b"3")) for seq in range(1, 17)]
    client_sock, client = pair()
    backend_sock, backend = pair()
    home = Backend("b", Uri("PYRO:x@h:1"))
    pinned = Pinned(
        hub,
        service_of(home),
        home,
        V502,
        "client",
        signed=False,
        agreed=STOCK,
        goodbye=lambda backend: None,
        first_seq=0,
        records=None,
        peer="client:1",
        stall_s=60,
        limit=1 << 20,
    )
    with client, backend:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pinned.run, (client_sock, b""), (backend_sock, b""))
            await trio.testing.wait_all_tasks_blocked()
            try:
                client.send(b"".join(calls[:8]))
                hub.turn()
                assert received(backend) == calls[:8]
                client.send(b"".join(calls[8:]))
                hub.turn()
                assert received(backend) == [b"".join(calls[at : at + 2]) for at in range(8, 16, 2)]
                assert home.in_flight == 16
                backend.send(b"".join(answers))
                hub.turn()
                assert received(client) == [b"".join(answers[at : at + 3]) for at in range(0, 16, 3)]
                assert home.in_flight == 0
            finally:
                pinned.abort()
