"""Sockets of the hub: what is written goes out in order, together where asked for, and a lost peer is told once.

Packets show how many writes it took: each arrives as one.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
import trio
import trio.testing
from doubles_dispatch import service_of

from pyroxfer_core import Uri
from pyroxfer_core.wire import STOCK, V502, Message, MessageType
from pyroxfer_dispatcher.backends import Backend
from pyroxfer_dispatcher.channel import Channel
from pyroxfer_dispatcher.hub import Hub
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
