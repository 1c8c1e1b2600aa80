"""Large bodies in pieces: whole at the other end, in turns with small calls, bounded, and droppable in the middle."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from doubles import run, until
from facade_doubles import serving
from hypothesis import given, settings
from hypothesis import strategies as st
from own_doubles import OwnServer, own_client, own_server

from pyroxfer_core import Daemon, Proxy, Settings, blocking, expose
from pyroxfer_core.errors import (
    CommunicationError,
    MessageTooLargeError,
    Outcome,
    ProtocolError,
    RefusedError,
    SerializeError,
)
from pyroxfer_core.server.large import LargeMessages
from pyroxfer_core.wire import Decoder, codec_for
from pyroxfer_core.wire.assembly import AHEAD, Assembly
from pyroxfer_core.wire.features import DEADLINE_KEY, Feature, Grant
from pyroxfer_core.wire.message import Flags, Message, MessageType
from pyroxfer_core.wire.pieces import MAX_BODIES, MAX_PIECE, MAX_SEGMENTS, Incoming, Outgoing, segments_of
from pyroxfer_core.wire.scattered import Scattered, joined

CODEC = codec_for(502)
BIG = bytes(range(256)) * 8192
"""2 MiB: eight pieces."""
HUGE = bytes(48 * 1024 * 1024)
"""More than the buffers of two sockets."""
CALLS = frozenset({MessageType.INVOKE})


def incoming(limit: int = 1 << 24, total: int = 1 << 24) -> Incoming:
    return Incoming(limit, total, CALLS)


def call(body: bytes | Scattered, serializer: str = "msgpack", flags: int = 0) -> Message:
    data = body.as_body() if isinstance(body, Scattered) else body
    return Message(MessageType.INVOKE, 7, serializer, flags, data, {"USER": b"x"}, bytes(range(16)))


def begin(number: int, size: int, *segments: int, kind: int = MessageType.INVOKE, seq: int = 7) -> Message:
    body = struct.pack("!BBHI", kind, 0, number, size) + b"".join(map(struct.Struct("!I").pack, segments or (size,)))
    return Message(MessageType.BEGIN, seq, "msgpack", 0, body)


def piece(number: int, data: bytes) -> Message:
    return Message(MessageType.PIECE, number, "ping", 0, data)


def on_the_wire(outgoing: Outgoing, number: int) -> bytes:
    data = outgoing.begin(number)
    while not outgoing.complete:
        data += b"".join(outgoing.next())
    return data


@given(
    st.lists(st.sampled_from([0, 1, 5000, 100_000, MAX_PIECE, MAX_PIECE + 1]), min_size=1, max_size=5),
    st.sampled_from(["msgpack", "serpent"]),
    st.sampled_from([0, Flags.COMPRESSED, Flags.KEEPSERIALIZED]),
    st.sampled_from([997, 65536, 300_000]),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_what_arrives_is_what_was_sent(
    sizes: list[int], serializer: str, flags: int, step: int, direct: bool
) -> None:
    """Header, annotations and every byte, however the network cuts it; each buffer in an object of its own."""
    buffers: list[Any] = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    message = call(Scattered([*buffers, b"end"]), serializer, flags)
    data = on_the_wire(Outgoing(message, CODEC), 3)
    decoder, bodies = Decoder(CODEC, collect=1 << 30), incoming()
    decoder.place_of = bodies.place_of if direct else None
    found: list[Message] = []
    for start in range(0, len(data), step):
        decoder.feed(data[start : start + step])
        while (event := decoder.next_event()) is not None:
            assert isinstance(event, Message)
            assert not found
            if (arrival := bodies.take(event)) is not None:
                found.append(arrival.message)
    (arrived,) = found
    assert joined(arrived.body) == joined(message.body)
    assert (arrived.type, arrived.seq, arrived.flags, arrived.annotations, arrived.correlation_id) == (
        message.type, message.seq, flags, {"USER": b"x"}, bytes(range(16))
    )  # fmt: skip
    if isinstance(arrived.body, Scattered):
        assert list(map(len, arrived.body.buffers)) == segments_of(message.body)
    else:
        assert serializer == "serpent" or flags
    assert not len(bodies)


def test_what_is_announced_is_checked_before_it_comes() -> None:
    """Types, sizes, segments, numbers, and how many at once."""
    bad = [
        begin(1, 10, kind=MessageType.PING),
        begin(1, 0),
        begin(1, 10, 4, 5),
        Message(MessageType.BEGIN, 7, "msgpack", 0, b""),
        Message(MessageType.BEGIN, 7, "msgpack", 0, begin(1, 10).body[:-1]),
        Message(MessageType.BEGIN, 7, "msgpack", 0, begin(1, 10).body[:8]),
        begin(1, MAX_SEGMENTS + 1, *[1] * (MAX_SEGMENTS + 1)),
    ]
    for message in bad:
        with pytest.raises(ProtocolError):
            incoming().take(message)
    bodies = incoming()
    bodies.take(begin(1, 10))
    for message in (begin(1, 10), piece(2, b"x"), piece(1, bytes(11))):
        with pytest.raises(ProtocolError):
            bodies.take(message)
    for number in range(2, MAX_BODIES + 1):
        bodies.take(begin(number, 1))
    with pytest.raises(ProtocolError, match="bodies were begun"):
        bodies.take(begin(99, 1))


def test_what_is_too_large_is_refused_and_dropped_as_it_comes() -> None:
    """One body over its limit, and one that goes over the limit of all; the next one is welcome again."""
    bodies = incoming(limit=100, total=150)
    refused = bodies.take(begin(1, 101))
    assert refused is not None
    assert "too large" in str(refused.refusal)
    assert bodies.take(begin(2, 100)) is None
    crowded = bodies.take(begin(3, 60))
    assert crowded is not None
    assert "busy" in str(crowded.refusal)
    assert bodies.take(piece(1, bytes(101))) is None
    assert bodies.take(piece(3, b"")) is None
    whole = bodies.take(piece(2, bytes(100)))
    assert whole is not None
    assert len(whole.message.body) == 100
    assert bodies.take(begin(3, 60)) is None
    dropped = bodies.take(piece(3, b""))
    assert dropped is not None
    assert dropped.dropped
    assert bodies.take(begin(3, 100)) is None
    assert len(bodies) == 1


def test_a_segment_grows_with_what_arrives_when_it_is_large() -> None:
    """Nothing is taken ahead for it, and it is put together all the same."""
    large = Assembly([AHEAD + 1, 3])
    data = bytes(range(256)) * (AHEAD // 256) + b"xyz."
    for start in range(0, len(data), MAX_PIECE):
        large.add(data[start : start + MAX_PIECE])
        assert not large._is_ahead or start + MAX_PIECE > AHEAD
    assert [bytes(buffer) for buffer in large.buffers] == [data[:-3], data[-3:]]


SEGMENTS = """
import resource
from pyroxfer_core.wire.assembly import Assembly

def receive() -> bytes:
    assembly = Assembly([1 << 20])
    place = assembly.place(1 << 20)
    place[:] = bytes(1 << 20)
    assembly.add(place)
    return assembly.buffers[0]

for turn in range(10):
    several = [receive() for _ in range(6)]
    if turn == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del several
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_segments_are_made_of_memory_that_was_used_before() -> None:
    """48 MiB in new pages would be 12288 of them."""
    done = subprocess.run([sys.executable, "-c", SEGMENTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1500


BLOCKS = """
import resource, socket, threading, trio
from pyroxfer_core.transport.connection import Connection
from pyroxfer_core.wire import Decoder, codec_for

def drop(sock: socket.socket) -> None:
    buffer = bytearray(1 << 16)
    while sock.recv_into(buffer):
        pass

async def main() -> None:
    ours, theirs = socket.socketpair()
    threading.Thread(target=drop, args=(theirs,)).start()
    connection = Connection(ours, Decoder(codec_for(502), max_message=1, max_annotations=1, collect=1))
    for turn in range(10):
        await connection.send_encoded(*[b"x" * (1 << 20) for _ in range(6)])
        if turn == 1:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    connection.close()

trio.run(main)
"""


def test_blocks_that_are_sent_are_made_of_memory_that_was_used_before() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1500


def test_memory_that_is_taken_ahead_is_given_back() -> None:
    """Bodies that never come cannot use up what others get."""
    for _ in range(20):
        Assembly([AHEAD]).add(b"x")
    first = Assembly([AHEAD])
    first.add(b"x")
    assert first._is_ahead


@expose
class Service:
    def __init__(self) -> None:
        self.received = 0

    async def echo(self, value: Any) -> Any:
        self.received += 1
        return value

    async def size(self, value: Any) -> int:
        self.received += 1
        return len(value)

    async def huge(self) -> bytes:
        return HUGE

    def plain(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize("compression", [False, True])
@pytest.mark.parametrize("serializer", [None, "serpent", "marshal"])
async def test_large_values_there_and_back(serializer: str | None, compression: bool) -> None:
    """Through both proxies' kinds of handlers, several at once on one connection."""
    options = Settings(serializer=serializer, compression=compression)
    value: Any = "text" * 100_000 if serializer == "serpent" else BIG
    async with Daemon(port=0, settings=options) as daemon:
        uri = daemon.register(Service(), "service")
        async with Proxy(uri, settings=options) as proxy:
            results: list[Any] = []

            async def one(method: str) -> None:
                results.append(await getattr(proxy, method)(value))

            async with trio.open_nursery() as nursery:
                for method in ("echo", "plain", "echo", "plain"):
                    nursery.start_soon(one, method)
            assert results == [value] * 4


async def test_more_large_calls_than_may_be_incomplete() -> None:
    """They wait for a number, and all arrive."""
    async with Daemon(port=0) as daemon:
        service = Service()
        uri = daemon.register(service, "service")
        async with Proxy(uri) as proxy, trio.open_nursery() as nursery:
            for _ in range(2 * MAX_BODIES):
                nursery.start_soon(run, proxy.echo, BIG)
        assert service.received == 2 * MAX_BODIES


async def test_a_small_request_overtakes_a_large_one() -> None:
    """It leaves between two pieces of it, while the peer reads nothing."""
    order: list[int] = []
    begun, go = trio.Event(), trio.Event()

    async def play(server: OwnServer) -> None:
        await server.expect(MessageType.BEGIN)
        begun.set()
        await go.wait()
        while (message := await server.hear()) is not None:
            order.append(message.type)
            if message.type == MessageType.INVOKE:
                await server.answer(message, "small")

    async with own_server(play, {"take", "small"}) as uri, Proxy(uri) as proxy, trio.open_nursery() as nursery:
        nursery.start_soon(run, proxy.take, HUGE)
        await begun.wait()
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            nursery.start_soon(release, go)
            assert await proxy.small() == "small"
            scope.cancel()
        place = order.index(MessageType.INVOKE)
        assert place < len(HUGE) // MAX_PIECE
        nursery.cancel_scope.cancel()


async def release(event: trio.Event) -> None:
    await trio.testing.wait_all_tasks_blocked()
    event.set()


async def test_a_small_answer_overtakes_a_large_one() -> None:
    """The daemon reads and answers on while a large answer leaves, whether its client reads or not."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(Service(), "service")
        async with own_client(uri) as client:
            large, small = client.invoke("huge"), client.invoke("size", [1, 2])
            await client.say(large)
            await client.expect(MessageType.BEGIN)
            await client.say(small)
            pieces = 0
            while (message := await client.hear()) is not None and message.type != MessageType.RESULT:
                pieces += message.type == MessageType.PIECE
            assert message is not None
            assert message.seq == small.seq
            assert pieces < len(HUGE) // MAX_PIECE


async def test_cancelling_in_the_middle_of_a_request() -> None:
    """The rest does not leave, the connection goes on, and the daemon never saw the call."""
    async with Daemon(port=0) as daemon:
        service = Service()
        uri = daemon.register(service, "service")
        async with Proxy(uri) as proxy:
            assert await proxy.size(b"1") == 1
            link = proxy._pyroLink
            assert link is not None
            for pieces in (0, 1, 5):
                with trio.CancelScope() as scope:
                    watch = link.connection.queued + pieces * MAX_PIECE
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(run, proxy.size, HUGE)
                        while link.connection.queued <= watch:
                            await trio.lowlevel.checkpoint()
                        scope.cancel()
                assert await proxy.size(b"12") == 2
            assert proxy._pyroLink is link
            await until(lambda: not link.session.pending)
        assert service.received == 4


async def test_cancelling_a_call_whose_large_answer_is_leaving() -> None:
    """The daemon stops sending it and answers otherwise; the number is free again."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(Service(), "service")
        async with own_client(uri) as client:
            large = client.invoke("huge")
            await client.say(large)
            await client.expect(MessageType.BEGIN)
            await client.say(client.session.cancel(large.seq))
            pieces = 0
            while (message := await client.hear()) is not None and message.type == MessageType.PIECE:
                pieces += 1
                last = message
            assert len(last.body) == 0
            assert pieces < len(HUGE) // MAX_PIECE
            assert message is not None
            assert (message.type, message.seq, message.flags) == (MessageType.RESULT, large.seq, Flags.EXCEPTION)
            assert await client.call("size", "abc") == 3


async def test_a_cancelled_client_call_with_a_large_answer_leaves_a_good_connection() -> None:
    """The proxy tells the daemon, drops what comes, and the next call is right."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(Service(), "service")
        async with Proxy(uri) as proxy:
            assert await proxy.size("a") == 1
            link = proxy._pyroLink
            for _ in range(3):
                with trio.move_on_after(0.003):
                    await proxy.huge()
                assert await proxy.size("ab") == 2
            assert proxy._pyroLink is link


async def test_a_refused_large_call_did_not_run_and_the_rest_of_it_is_dropped() -> None:
    """Beyond the daemon's limit of a message it is NotSent, and the connection stays."""
    async with Daemon(port=0, settings=Settings(max_message_bytes=3_000_000)) as daemon:
        service = Service()
        uri = daemon.register(service, "service")
        async with Proxy(uri) as proxy:
            with pytest.raises(RefusedError, match="too large") as caught:
                await proxy.size(BIG * 2)
            assert caught.value.outcome is Outcome.NOT_SENT
            assert await proxy.size(BIG) == len(BIG)
            assert service.received == 1


async def test_an_answer_beyond_the_clients_limit() -> None:
    """It is refused when it is announced."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(Service(), "service")
        async with Proxy(uri, settings=Settings(max_message_bytes=1_000_000)) as proxy:
            with pytest.raises(MessageTooLargeError):
                await proxy.huge()
            assert await proxy.size("a") == 1


async def test_the_deadline_of_a_large_request_counts_from_its_beginning(mock_clock: trio.testing.MockClock) -> None:
    """What it took to come is not given to the handler."""
    grant = Grant(Feature.ALL, b"nonce" + bytes(11))
    peer: Any = SimpleNamespace(
        settings=Settings(),
        session=SimpleNamespace(grant=grant),
        connection=SimpleNamespace(codec=CODEC, decoder=Decoder(CODEC)),
    )
    async with trio.open_nursery() as nursery:
        large = LargeMessages(peer, nursery.start_soon)
        start = begin(0, 3)
        start.annotations[DEADLINE_KEY] = grant.deadline(1000)
        assert large.take(start) is None
        mock_clock.jump(0.9)
        request = large.take(piece(0, b"abc"))
        assert request is not None
        assert grant.read_deadline(request.annotations[DEADLINE_KEY]) == 100


async def test_only_whole_requests_run_when_the_connection_breaks() -> None:
    """A client that goes in the middle of a body leaves nothing behind."""
    async with Daemon(port=0) as daemon:
        service = Service()
        uri = daemon.register(service, "service")
        async with own_client(uri) as client:
            outgoing = Outgoing(client.invoke("size", BIG), CODEC)
            await client.stream.send_all(outgoing.begin(0) + b"".join(outgoing.next()))
        async with own_client(uri) as client:
            assert await client.call("size", "ab") == 2
        await until(lambda: not daemon.peers)
        assert service.received == 1


async def test_outcomes_when_the_connection_breaks_in_the_middle() -> None:
    """NotSent before the last piece left, Unknown after it."""

    async def play(server: OwnServer) -> None:
        await server.expect(MessageType.PIECE)

    async with own_server(play, {"take"}) as uri, Proxy(uri) as proxy:
        with pytest.raises(CommunicationError) as caught:
            await proxy.take(HUGE)
        assert caught.value.outcome is Outcome.NOT_SENT

    async def play_on(server: OwnServer) -> None:
        for _ in range(len(BIG) // MAX_PIECE + 1):
            await server.expect(MessageType.PIECE)

    async with own_server(play_on, {"take"}) as uri, Proxy(uri) as proxy:
        with pytest.raises(CommunicationError) as caught:
            await proxy.take(BIG)
        assert caught.value.outcome is Outcome.UNKNOWN


async def test_pieces_stay_off_where_they_were_not_agreed_on() -> None:
    """A client of ours that was not granted them sends one message; BEGIN without the grant ends the connection."""

    async def play(server: OwnServer) -> None:
        request = await server.hear()
        assert request is not None
        assert request.type == MessageType.INVOKE
        await server.answer(request, len(request.body))

    async with own_server(play, {"take"}, Feature.ALL & ~Feature.PIECES) as uri, Proxy(uri) as proxy:
        assert await proxy.take(BIG) > len(BIG)
    async with Daemon(port=0) as daemon:
        async with own_client(daemon.register(Service(), "service")) as client:
            client.session._confirm = None
            await client.say(client.invoke("size", "a"), begin(0, 10))
            await client.hear()
            assert await client.hear() is None


messages = st.one_of(
    st.builds(
        lambda kind, seq, number, size, segments: begin(number, size, *segments, kind=kind, seq=seq),
        st.sampled_from([4, 5, 6]), st.integers(0, 3), st.integers(0, 20), st.integers(0, 2**32 - 1),
        st.lists(st.integers(0, 2**20), max_size=3),
    ),
    st.builds(begin, st.integers(0, 3), st.integers(1, 99)),
    st.builds(piece, st.integers(0, 3), st.binary(max_size=60)),
    st.builds(Message, st.sampled_from([69, 70]), st.just(1), st.just("msgpack"), st.just(0), st.binary(max_size=30)),
)  # fmt: skip


@given(st.lists(messages, min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
async def test_any_pieces_against_a_live_daemon(talk: list[Message]) -> None:
    """Whatever comes, the daemon answers or hangs up, keeps nothing, and serves others."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(Service(), "service")
        async with own_client(uri) as client, own_client(uri) as other:
            await client.call("size", "confirm")
            try:
                await client.say(*talk)
                await client.stream.send_eof()
            except trio.BrokenResourceError:
                pass
            while (answer := await client.hear()) is not None:
                assert answer.type == MessageType.RESULT
                assert answer.flags & Flags.EXCEPTION
            assert await other.call("size", "ab") == 2


@given(st.lists(messages, min_size=1, max_size=8), st.sampled_from([1, 9]))
@settings(max_examples=40, deadline=None)
async def test_any_pieces_against_a_live_client(talk: list[Message], seq: int) -> None:
    """Whatever a daemon answers with, the call ends with one of our errors, or with what it sent."""

    async def play(server: OwnServer) -> None:
        await server.expect(MessageType.INVOKE)
        await server.say(*talk)
        await server.stream.send_eof()
        while await server.hear() is not None:
            pass

    async with own_server(play, {"take"}) as uri, Proxy(uri) as proxy:
        with pytest.raises((CommunicationError, SerializeError)):
            await proxy.take(1)


def test_the_facade_sends_and_receives_in_pieces() -> None:
    """From several threads at once on one connection, with and without a deadline."""
    daemon = blocking.Daemon()
    uri = daemon.register(Service(), "service")
    with serving(daemon), blocking.Proxy(uri) as proxy:
        for timeout in (None, 20.0):
            proxy._pyroTimeout = timeout
            with ThreadPoolExecutor(20) as pool:
                assert list(pool.map(proxy.echo, [BIG] * 20)) == [BIG] * 20
        link = proxy._pyroLink
        assert link is not None
        assert link.large is not None
        assert not link.large.active
        assert sorted(link.large._free) == list(range(MAX_BODIES))


async def test_a_small_call_of_the_facade_overtakes_a_large_one() -> None:
    """Another thread's call leaves between two pieces, while the peer reads slowly."""
    order: list[int] = []
    begun = threading.Event()

    async def play(server: OwnServer) -> None:
        large = await server.expect(MessageType.BEGIN)
        begun.set()
        while (message := await server.hear()) is not None:
            order.append(message.type)
            if message.type == MessageType.INVOKE:
                await server.answer(message, "small")
            if order.count(MessageType.PIECE) >= len(HUGE) / MAX_PIECE:
                await server.answer(large, "large")
            if MessageType.INVOKE not in order:
                await trio.sleep(0.002)

    def use(uri: str) -> list[Any]:
        with blocking.Proxy(uri) as proxy, ThreadPoolExecutor(1) as pool:
            proxy._pyroBind()
            large = pool.submit(proxy.take, HUGE)
            begun.wait(60)
            return [proxy.small(), large.result()]

    async with own_server(play, {"take", "small"}) as uri:
        assert await trio.to_thread.run_sync(use, uri) == ["small", "large"]
    assert order.index(MessageType.INVOKE) < len(HUGE) // MAX_PIECE


async def test_a_deadline_in_the_middle_of_a_request_of_the_facade() -> None:
    """It is NotSent, also when the peer stops reading."""
    stop = trio.Event()

    async def play(server: OwnServer) -> None:
        await server.expect(MessageType.PIECE)
        await stop.wait()

    def use(uri: str) -> Any:
        with blocking.Proxy(uri) as proxy:
            proxy._pyroBind()
            proxy._pyroMaxRetries = 0
            proxy._pyroTimeout = 0.2
            with pytest.raises(CommunicationError) as caught:
                proxy.take(HUGE)
            return caught.value.outcome

    async with own_server(play, {"take"}) as uri:
        assert await trio.to_thread.run_sync(use, uri) is Outcome.NOT_SENT
        stop.set()


async def test_a_deadline_in_the_middle_of_a_request_of_the_facade_leaves_a_good_connection() -> None:
    """The piece that is leaving is sent to its end, and the rest is called off: others' calls go on."""

    async def play(server: OwnServer) -> None:
        await server.expect(MessageType.PIECE)
        await trio.sleep(0.4)
        while (message := await server.hear()) is not None:
            if message.type == MessageType.INVOKE:
                await server.answer(message, "small")

    def use(uri: str) -> Any:
        with blocking.Proxy(uri) as proxy:
            proxy._pyroBind()
            link = proxy._pyroLink
            with pytest.raises(CommunicationError):
                proxy.take.options(deadline=0.2)(HUGE)
            assert proxy._pyroLink is link
            return proxy.small()

    async with own_server(play, {"take", "small"}) as uri:
        assert await trio.to_thread.run_sync(use, uri) == "small"


@expose
class Echo:
    async def echo(self, value: bytes) -> bytes:
        return value


async def test_the_first_call_of_a_connection_may_be_large_while_small_ones_come() -> None:
    """What the first message confirms is confirmed before anything that relies on it, whatever overtakes what."""
    async with Daemon() as daemon:
        uri = daemon.register(Echo(), "echo")
        for _ in range(3):
            async with Proxy(uri) as proxy, trio.open_nursery() as nursery:

                async def call_with(value: bytes, proxy: Proxy = proxy) -> None:
                    assert await proxy.echo(value) == value

                for value in (BIG, b"small", BIG, b"small"):
                    nursery.start_soon(call_with, value)


async def test_the_first_call_of_a_blocking_connection_may_be_large_while_small_ones_come() -> None:
    """The same for threads that share a proxy."""

    def call_together(uri: str) -> None:
        with blocking.Proxy(uri) as proxy, ThreadPoolExecutor(4) as threads:
            values = (BIG, b"small", BIG, b"small")
            assert tuple(threads.map(proxy.echo, values)) == values

    async with Daemon() as daemon:
        uri = daemon.register(Echo(), "echo")
        for _ in range(3):
            await trio.to_thread.run_sync(call_together, str(uri))
