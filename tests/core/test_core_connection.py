"""Connections over socket pairs: odd pieces, ends, order under concurrency, cancellation, closing."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest
import trio

from pyroxfer_core import Settings
from pyroxfer_core.errors import ConnectionClosedError, MessageTooLargeError, Outcome, ProtocolError, PyroError
from pyroxfer_core.transport import Connection, open_connection
from pyroxfer_core.wire import Decoder, codec_for
from pyroxfer_core.wire.message import BodyPart, End, Head, Message, MessageType

BIG = 8_000_000


def message(seq: int, body: bytes = b"body") -> Message:
    return Message(MessageType.INVOKE, seq, "serpent", 0, body, {"AAAA": b"note"})


def decoder(collect: int = 1 << 30, key: bytes | None = None, version: int = 502) -> Decoder:
    return Decoder(codec_for(version), collect=collect, hmac_key=key)


class Pair:
    """A connection and the plain socket at its other end."""

    def __init__(self, collect: int = 1 << 30) -> None:
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours, decoder(collect))
        self.sock = trio.socket.from_stdlib_socket(theirs)
        theirs.setblocking(False)

    async def read_messages(self, count: int, pause: float = 0) -> list[Message]:
        reader = decoder()
        found: list[Message] = []
        while len(found) < count:
            event = reader.next_event()
            if isinstance(event, Message):
                found.append(event)
                continue
            data = await self.sock.recv(65536)
            assert data, "closed before all messages had come"
            reader.feed(data)
            if pause:
                await trio.sleep(pause)
        return found


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    yield pair
    pair.connection.close()
    pair.sock.close()


@pytest.mark.parametrize("piece", [1, 2, 7, 39, 40, 41, 1000])
async def test_messages_in_odd_pieces(pair: Pair, piece: int) -> None:
    data = b"".join(codec_for(502).encode(message(seq, bytes([seq]) * seq * 10)) for seq in range(1, 6))

    async def send() -> None:
        for start in range(0, len(data), piece):
            await pair.sock.send(data[start : start + piece])
            if piece > 1:
                await trio.testing.wait_all_tasks_blocked()
        pair.sock.shutdown(socket.SHUT_WR)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        for seq in range(1, 6):
            event = await pair.connection.receive()
            assert isinstance(event, Message)
            assert (event.seq, bytes(event.body)) == (seq, bytes([seq]) * seq * 10)
        assert await pair.connection.receive() is None
        assert pair.connection.ended


@pytest.mark.parametrize("cut", [1, 20, 40, 45, -1])
async def test_an_end_inside_a_message(pair: Pair, cut: int) -> None:
    await pair.sock.send(codec_for(502).encode(message(1))[:cut])
    pair.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(ProtocolError, match="ended inside"):
        await pair.connection.receive()
    assert pair.connection.broken
    with pytest.raises(ConnectionClosedError):
        await pair.connection.send(message(1))


async def test_a_reset(pair: Pair) -> None:
    await pair.connection.send(message(1))
    pair.sock.close()
    with pytest.raises(ConnectionClosedError, match="lost"):
        await pair.connection.receive()
    with pytest.raises(ConnectionClosedError):
        await pair.connection.send(message(2))


async def test_rubbish_makes_it_good_for_a_last_word_only(pair: Pair) -> None:
    await pair.sock.send(b"rubbish " * 10)
    with pytest.raises(ProtocolError):
        await pair.connection.receive()
    assert pair.connection.broken
    pair.sock.shutdown(socket.SHUT_WR)
    await pair.connection.finish(b"last", b" words")
    assert await pair.sock.recv(100) == b"last words"
    assert await pair.sock.recv(100) == b""


async def test_finish_gives_up_on_a_peer_that_never_closes(
    pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    start = trio.current_time()
    await pair.connection.finish(b"bye")
    assert trio.current_time() - start == pytest.approx(1)
    assert pair.connection.sock.fileno() == -1
    assert await pair.sock.recv(100) == b"bye"


async def test_queued_messages_leave_together_and_in_order(pair: Pair) -> None:
    ends = [pair.connection.queue(message(seq)) for seq in range(1000)]
    assert ends == sorted(ends)
    assert pair.connection.unsent
    await pair.connection.flush()
    assert pair.connection.sent == pair.connection.queued == ends[-1]
    assert [found.seq for found in await pair.read_messages(1000)] == list(range(1000))


async def test_concurrent_senders_and_a_slow_reader(pair: Pair) -> None:
    """Each message arrives whole; those of one sender in their order."""
    async with trio.open_nursery() as nursery:

        async def sender(number: int) -> None:
            for index in range(20):
                await pair.connection.send(message(number * 100 + index, bytes([number]) * 30_000))

        for number in range(5):
            nursery.start_soon(sender, number)
        found = await pair.read_messages(100, pause=1e-4)
    for number in range(5):
        mine = [event for event in found if event.seq // 100 == number]
        assert [event.seq % 100 for event in mine] == list(range(20))
        assert all(bytes(event.body) == bytes([number]) * 30_000 for event in mine)


@pytest.mark.parametrize("size", [64 * 1024, 64 * 1024 + 1, BIG])
async def test_large_bodies_are_handed_over_as_they_are(pair: Pair, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    pair.connection.queue(message(1, body))
    assert any(part is body for part in pair.connection._out) is (size > 64 * 1024)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.connection.flush)
        (found,) = await pair.read_messages(1)
    assert bytes(found.body) == body
    assert found.annotations == {"AAAA": b"note"}


async def test_large_bodies_arrive_collected_or_in_pieces() -> None:
    for collect in (1 << 30, 1_000_000):
        pair = Pair(collect)
        body = bytes(range(256)) * (BIG // 256)
        async with trio.open_nursery() as nursery:
            stream = trio.SocketStream(pair.sock)
            nursery.start_soon(stream.send_all, codec_for(502).encode(message(1, body)))
            event = await pair.connection.receive()
            if isinstance(event, Head):
                collected = bytearray()
                while isinstance(part := await pair.connection.receive(), BodyPart):
                    assert len(part.data) <= 256 * 1024
                    collected += part.data
                assert isinstance(part, End)
                assert event.body_length == len(body)
            else:
                assert isinstance(event, Message)
                collected = bytearray(event.body)
            assert collected == body
            assert isinstance(event, Head) is (collect == 1_000_000)
        pair.connection.close()
        pair.sock.close()


async def test_a_cancelled_flush_leaves_the_stream_whole(pair: Pair) -> None:
    with trio.move_on_after(0.01) as scope:
        await pair.connection.send(message(1, bytes(BIG)))
    assert scope.cancelled_caught
    assert 0 < pair.connection.sent < pair.connection.queued
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.connection.send, message(2))
        found = await pair.read_messages(2)
    assert [(event.seq, len(event.body)) for event in found] == [(1, BIG), (2, 4)]


async def test_another_sender_goes_on_when_the_one_that_was_sending_is_cancelled(pair: Pair) -> None:
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def first() -> None:
            with scope:
                await pair.connection.send(message(1, bytes(BIG)))

        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(pair.connection.send, message(2))
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        assert [event.seq for event in await pair.read_messages(2)] == [1, 2]


async def test_a_cancelled_receive_loses_nothing(pair: Pair) -> None:
    data = codec_for(502).encode(message(1, bytes(BIG)))
    stream = trio.SocketStream(pair.sock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        event = None
        for _ in range(10_000):
            with trio.move_on_after(0.0002):
                event = await pair.connection.receive()
            if event is not None:
                break
    assert isinstance(event, Message)
    assert bytes(event.body) == bytes(BIG)


async def test_closing_wakes_everybody(pair: Pair) -> None:
    errors: list[str] = []

    async def wait(what: str) -> None:
        with pytest.raises(ConnectionClosedError):
            if what == "receive":
                await pair.connection.receive()
            else:
                await pair.connection.send(message(1, bytes(BIG)))
        errors.append(what)

    async with trio.open_nursery() as nursery:
        for what in ("receive", "send", "send again", "and again"):
            nursery.start_soon(wait, what)
        await trio.testing.wait_all_tasks_blocked()
        pair.connection.close()
        pair.connection.close()
    assert len(errors) == 4
    assert pair.connection.peek() is False
    assert pair.connection.fill_nowait() is False


async def test_closed_just_after_the_socket_became_writable(pair: Pair) -> None:
    """The sender has been woken already, finds nothing left to send, and must not take that for success."""
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(ConnectionClosedError):
                await pair.connection.send(message(1, bytes(BIG)))

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        while True:
            try:
                pair.sock._sock.recv(1 << 20)  # type: ignore[attr-defined]  # makes room at once, without a checkpoint
            except BlockingIOError:
                break

        class CloseFirst(trio.abc.Instrument):
            def after_io_wait(self, timeout: float) -> None:
                pair.connection._sock.close()
                pair.connection.broken = True
                pair.connection._out.clear()

        instrument = CloseFirst()
        trio.lowlevel.add_instrument(instrument)
        await trio.sleep(0.01)
        trio.lowlevel.remove_instrument(instrument)


async def test_what_waits_on_an_idle_connection(pair: Pair) -> None:
    assert pair.connection.peek() is None
    assert pair.connection.fill_nowait() is None
    await pair.sock.send(codec_for(502).encode(message(5)))
    assert pair.connection.peek() is True
    assert pair.connection.fill_nowait() is True
    event = pair.connection.receive_nowait()
    assert isinstance(event, Message)
    assert event.seq == 5
    assert pair.connection.receive_nowait() is None
    pair.sock.close()
    assert pair.connection.peek() is False
    assert pair.connection.fill_nowait() is False


async def test_messages_that_cannot_be_written_leave_nothing_behind(pair: Pair) -> None:
    bad = message(1)
    bad.annotations["TOO LONG"] = b""
    with pytest.raises(ProtocolError):
        await pair.connection.send(bad)
    with pytest.raises(ProtocolError):
        pair.connection.queue(message(70_000))
    assert not pair.connection.unsent
    await pair.connection.send(message(2))
    assert [event.seq for event in await pair.read_messages(1)] == [2]


async def test_the_protocol_is_unknown_before_six_bytes() -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, Decoder())
    with pytest.raises(ConnectionClosedError, match="not said"):
        _ = connection.codec
    theirs.send(b"PYRO\x00\x30")
    assert connection.fill_nowait()
    assert connection.receive_nowait() is None
    assert connection.codec.version == 48
    assert "unix" in repr(connection)
    connection.close()
    theirs.close()
    assert "broken" in repr(connection)


async def test_signed_messages() -> None:
    ours, theirs = socket.socketpair()
    first = Connection(ours, decoder(key=b"key", version=48), hmac_key=b"key")
    second = Connection(theirs, decoder(key=b"key", version=48), hmac_key=b"key")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.send, message(1, bytes(200_000)))
        event = await second.receive()
    assert isinstance(event, Message)
    assert bytes(event.body) == bytes(200_000)
    assert event.annotations == {"AAAA": b"note"}
    wrong = Connection(socket.socket(fileno=ours.detach()), decoder(version=48), hmac_key=b"other")
    await wrong.send(message(2))
    with pytest.raises(PyroError, match="hmac mismatch"):
        await second.receive()
    wrong.close()
    second.close()


async def test_an_announced_size_over_the_limit_is_refused_at_once() -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, Decoder(codec_for(502), max_message=1000))
    theirs.send(codec_for(502).encode_head(message(1), 1001))
    with pytest.raises(MessageTooLargeError):
        await connection.receive()
    assert connection.decoder.buffered == 0
    connection.close()
    theirs.close()


async def test_a_busy_connection_lets_others_run(pair: Pair) -> None:
    """Reads that never wait still give others a turn."""
    data = codec_for(502).encode(message(1, bytes(60_000)))
    turns = 0

    async def feed() -> None:
        for _ in range(200):
            await trio.SocketStream(pair.sock).send_all(data)

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        nursery.start_soon(count)
        for _ in range(200):
            assert await pair.connection.receive() is not None
        nursery.cancel_scope.cancel()
    assert turns > 5


async def test_connecting() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    connection = await open_connection(f"127.0.0.1:{port}", version=48)
    accepted, _ = listener.accept()
    assert connection.codec.version == 48
    assert connection.is_local
    assert connection.peer == f"127.0.0.1:{port}"
    assert isinstance(connection.sock, socket.socket)
    assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    connection.close()
    accepted.close()
    listener.close()
    with pytest.raises(ConnectionClosedError) as caught:
        await open_connection(f"127.0.0.1:{port}", settings=Settings(connect_timeout_s=1))
    assert caught.value.outcome is Outcome.NOT_SENT
