"""Pushed item streams: as much as there is credit for, in order, each item at once, errors after the items."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
import trio.testing
from doubles import until
from facade_doubles import serving
from hypothesis import given, settings
from hypothesis import strategies as st
from own_doubles import OWN, OwnServer, own_client, own_server, result

from pyroxfer_core import Daemon, Proxy, Settings, blocking, current_call, expose
from pyroxfer_core.errors import CommunicationError, ProtocolError, PyroError, SerializeError
from pyroxfer_core.wire.features import Feature
from pyroxfer_core.wire.message import Body, Flags, Message, MessageType
from pyroxfer_core.wire.streaming import (
    MAX_WINDOW,
    Credit,
    EndOfItems,
    Inbox,
    Inboxes,
    credit_message,
    end_message,
    stop_message,
)


def items(number: int, values: list[Any]) -> Message:
    return Message(MessageType.ITEMS, number, "msgpack", 0, OWN.dumps(values))


def read(message: Message) -> Any:
    return OWN.loads(message.body)


class Pipe:
    """A sender that uses up its credit at once, and the inbox it sends to."""

    def __init__(self, window: int | None) -> None:
        self.inbox = Inbox(5, window)
        self.credit = Credit()
        self.sent = 0

    def pump(self, batch: int) -> None:
        if (message := self.inbox.credit_due()) is not None:
            self.credit.add(message)
        while self.credit:
            count = min(batch, self.credit.items)
            message = items(5, list(range(self.sent, self.sent + count)))
            self.credit.use(count, len(message.body))
            self.inbox.take(message)
            self.sent += count


@given(st.sampled_from([None, 1, 2, 7, 300]), st.integers(1, 50), st.integers(1, 600))
@settings(max_examples=60)
def test_credit_flows_and_is_never_overdrawn(window: int | None, batch: int, count: int) -> None:
    """Every item arrives in order; never more are on their way than the window allows."""
    pipe = Pipe(window)
    for expected in range(count):
        pipe.pump(batch)
        assert pipe.inbox.ready
        assert pipe.inbox.pop(read) == expected
        assert pipe.sent - expected <= (window or MAX_WINDOW)
    pipe.inbox.take(end_message(5))
    with pytest.raises(EndOfItems):
        while True:
            pipe.inbox.pop(read)


def test_what_was_not_asked_for_is_refused() -> None:
    """Items before credit, more messages or more bytes than were granted, more items in one, or no list."""
    fresh = Inbox(1)
    with pytest.raises(ProtocolError, match="unasked"):
        fresh.take(items(1, [1]))
    fresh.credit_due()
    fresh.take(items(1, [1, 2]))
    with pytest.raises(ProtocolError, match="asked for"):
        fresh.take(items(1, [1]))
    with pytest.raises(ProtocolError, match="asked for"):
        fresh.pop(read)
    other = Inbox(1)
    other.credit_due()
    other.take(Message(MessageType.ITEMS, 1, "msgpack", 0, OWN.dumps("no list")))
    with pytest.raises(ProtocolError):
        other.pop(read)
    with pytest.raises(ProtocolError, match="CREDIT"):
        Credit().add(Message(MessageType.CREDIT, 1, "ping", 0, b"1234567"))
    inboxes = Inboxes()
    inboxes.add(other)
    with pytest.raises(ProtocolError, match="belongs"):
        inboxes.add(other)
    assert inboxes.take(items(9, [1])) is None


@expose
class Source:
    def __init__(self) -> None:
        self.made = 0
        self.log: list[str] = []
        self.gate = trio.Event()
        self.release = threading.Event()

    async def numbers(self, count: int) -> AsyncIterator[Any]:
        try:
            for number in range(count):
                self.made += 1
                yield number
        finally:
            self.log.append("closed")

    def plain(self, count: int) -> Iterator[int]:
        try:
            for number in range(count):
                self.made += 1
                yield number
        finally:
            self.log.append("closed")

    async def fails(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number
        raise ValueError("in the middle")

    async def unwritable(self) -> AsyncIterator[Any]:
        yield 1
        yield 2
        yield object()
        yield 4

    async def waits(self) -> AsyncIterator[str]:
        yield "first"
        await self.gate.wait()
        yield "second"

    def blocks(self) -> Iterator[str]:
        yield "first"
        self.release.wait(60)
        yield "second"

    async def large(self, count: int, size: int) -> AsyncIterator[bytes]:
        try:
            for number in range(count):
                self.made += 1
                yield bytes([number % 256]) * size
        finally:
            self.log.append("closed")

    async def mixed(self) -> AsyncIterator[Any]:
        for number in range(30):
            yield bytes([number]) * (400_000 if number % 7 == 0 else 10)

    async def context(self) -> AsyncIterator[Any]:
        yield bytes(current_call.annotations["USER"])
        await trio.lowlevel.checkpoint()
        yield bytes(current_call.annotations["USER"])

    async def double(self, value: int) -> int:
        return 2 * value

    async def take(self, data: bytes) -> int:
        return len(data)


@pytest.fixture
def source() -> Source:
    return Source()


async def collected(stream: Any) -> list[Any]:
    return [item async for item in stream]


@pytest.mark.parametrize("method", ["numbers", "plain"])
@pytest.mark.parametrize("read_ahead", [None, 1, 3, 1024])
@pytest.mark.parametrize("serializer", [None, "serpent", "json", "marshal"])
async def test_all_items_arrive_in_order(
    source: Source, method: str, read_ahead: int | None, serializer: str | None
) -> None:
    """From generators of both kinds, with every serializer; nothing is left of the stream."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(source, "source")
        async with Proxy(uri, settings=Settings(serializer=serializer)) as proxy:
            assert await proxy.double(1) == 2
            stream = await getattr(proxy, method).options(read_ahead=read_ahead)(700)
            assert await collected(stream) == list(range(700))
            assert await collected(stream) == []
            link = proxy._pyroLink
            assert link is not None
            assert not len(link.readers.inboxes)
            assert await proxy.double(2) == 4
        assert daemon.statistics().streams == 0
        assert source.log == ["closed"]


async def test_no_more_is_made_than_was_asked_for(source: Source) -> None:
    """With ``read_ahead`` exactly so many ahead of the reader, also when the reader waits for long."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(source, "source")
        async with Proxy(uri) as proxy, await proxy.numbers.options(read_ahead=5)(1000) as stream:
            for expected in range(20):
                assert await anext(stream) == expected
                await proxy.double(1)
                assert source.made <= expected + 1 + 5


async def test_a_slow_reader_bounds_what_is_made_by_bytes(source: Source) -> None:
    """Items of 100 kB: what was made and not read stays near one MiB, however many items there is credit for."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(source, "source")
        async with Proxy(uri) as proxy, await proxy.large(500, 100_000) as stream:
            for expected in range(200):
                assert await anext(stream) == bytes([expected % 256]) * 100_000
                await proxy.double(1)
                assert source.made - expected <= 13


@pytest.mark.parametrize("method", ["waits", "blocks"])
async def test_an_item_is_there_at_once_although_the_next_one_takes_long(source: Source, method: str) -> None:
    """It is not held back to be sent with others."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(source, "source")
        async with Proxy(uri) as proxy, await getattr(proxy, method).options(read_ahead=50)() as stream:
            assert await anext(stream) == "first"
            source.gate.set()
            source.release.set()
            assert await collected(stream) == ["second"]


async def test_an_error_in_the_middle_comes_after_the_items(source: Source) -> None:
    """The iterator's own, and that of an item that cannot be written."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(source, "source")
        async with Proxy(uri) as proxy:
            got: list[int] = []
            with pytest.raises(ValueError, match="in the middle"):
                async for number in proxy.fails(100):
                    got.append(number)
            assert got == list(range(100))
            got.clear()
            with pytest.raises(SerializeError, match="object"):
                async for number in proxy.unwritable.options(read_ahead=50)():
                    got.append(number)
            assert got == [1, 2]
            assert daemon.statistics().streams == 0
            assert await proxy.double(3) == 6


@pytest.mark.parametrize("method", ["numbers", "plain"])
async def test_a_reader_that_leaves_early_closes_the_generator(source: Source, method: str) -> None:
    """By leaving, by being cancelled, and before the first item; the connection goes on."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(source, "source")
        async with Proxy(uri) as proxy:
            async with await getattr(proxy, method)(1_000_000) as stream:
                assert await anext(stream) == 0
            await until(lambda: source.log == ["closed"])
            async with await proxy.waits() as stream:
                assert await anext(stream) == "first"
                with trio.move_on_after(0.01):
                    await anext(stream)
            async with await getattr(proxy, method)(1_000_000):
                pass
            await until(lambda: daemon.statistics().streams == 0)
            assert await proxy.double(3) == 6


@pytest.mark.parametrize("begun", [False, True])
async def test_a_reader_that_is_collected_while_a_thread_sends_closes_the_generator_afterwards(
    source: Source, begun: bool
) -> None:
    """The collector must not wait for that thread, and the daemon must not keep what nobody reads."""
    async with Daemon(port=0) as daemon:
        proxy = blocking.Proxy(daemon.register(source, "source"))

        def leave() -> None:
            stream = proxy.numbers(1_000_000)
            if begun:
                assert next(stream) == 0
            link = proxy._pyroLink
            assert link is not None
            with link.sending.lock:
                del stream
            assert proxy.double(3) == 6

        await trio.to_thread.run_sync(leave)
        await until(lambda: daemon.statistics().streams == 0)
        await trio.to_thread.run_sync(proxy._pyroRelease)


async def test_large_items_travel_in_pieces_and_keep_their_order(source: Source) -> None:
    """Between small ones, which do not overtake them; calls do."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(source, "source")
        async with Proxy(uri) as proxy:
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    for number in range(20):
                        assert await proxy.double(number) == 2 * number

                nursery.start_soon(call)
                got = await collected(proxy.mixed())
            assert got == [bytes([number]) * (400_000 if number % 7 == 0 else 10) for number in range(30)]


async def test_a_large_call_while_a_stream_is_not_read(source: Source) -> None:
    """Neither end waits for the other: what was pushed stays within its credit."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(source, "source")
        async with Proxy(uri) as proxy, await proxy.large(1000, 10_000) as stream:
            for _ in range(100):
                await anext(stream)
            assert await proxy.take(bytes(20_000_000)) == 20_000_000
            assert len(await anext(stream)) == 10_000


async def test_the_generator_runs_in_the_context_of_its_call(source: Source) -> None:
    """Annotations of the call are seen by it, also after it waited."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(source, "source")
        async with Proxy(uri) as proxy:
            assert await collected(proxy.context.options(annotations={"USER": b"me"})()) == [b"me", b"me"]


async def test_many_streams_and_calls_on_one_connection(source: Source) -> None:
    """Each gets its own items."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(source, "source")
        async with Proxy(uri) as proxy:
            got: list[list[int]] = []

            async def reader(method: str) -> None:
                got.append(await collected(getattr(proxy, method)(300)))

            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(reader, "plain" if number % 4 == 0 else "numbers")
            assert got == [list(range(300))] * 20


async def test_a_stream_can_still_be_asked_for_item_by_item(source: Source) -> None:
    """By a client that was granted pushing and does not use it."""
    async with Daemon(port=0) as daemon:
        async with own_client(daemon.register(source, "source")) as client:
            request = client.invoke("numbers", 3)
            await client.say(request)
            answer = await client.expect(MessageType.RESULT)
            stream_id = bytes(answer.annotations["STRM"]).decode()
            client.object_id = "Pyro.Daemon"
            assert [await client.call("get_next_stream_item", stream_id) for _ in range(3)] == [0, 1, 2]
            assert isinstance(await client.call("get_next_stream_item", stream_id), StopIteration)


async def test_pushing_stays_off_where_it_was_not_agreed_on(source: Source) -> None:
    """A client of ours without it gets items one by one; CREDIT without it ends the connection."""

    async def play(server: OwnServer) -> None:
        request = await server.hear()
        assert request is not None
        note: dict[str, Body] = {"STRM": b"id", "PXPS": bytes(5) + b"\1"}
        flags = Flags.ITEMSTREAM | Flags.EXCEPTION
        await server.say(Message(MessageType.RESULT, request.seq, "msgpack", flags, OWN.dumps(None), note))
        asked = await server.hear()
        assert asked is not None
        assert asked.type == MessageType.INVOKE
        await server.answer(asked, "item")

    async with own_server(play, {"numbers"}, Feature.ALL & ~Feature.PUSH) as uri, Proxy(uri) as proxy:
        stream = await proxy.numbers()
        assert await anext(stream) == "item"
    async with Daemon(port=0) as daemon, own_client(daemon.register(source, "source")) as client:
        client.session._confirm = None
        await client.say(client.invoke("double", 1), credit_message(1, 1, 1))
        await client.hear()
        assert await client.hear() is None


async def test_credit_and_stop_for_streams_that_are_gone(source: Source) -> None:
    """The daemon answers with an end, and goes on."""
    async with Daemon(port=0) as daemon:
        async with own_client(daemon.register(source, "source")) as client:
            await client.call("double", 1)
            await client.say(credit_message(7, 1, 1), stop_message(8))
            ends = [await client.hear(), await client.hear()]
            assert [(end.seq, end.flags) for end in ends if end is not None] == [
                (7, Flags.EXCEPTION), (8, Flags.ITEMSTREAM)
            ]  # fmt: skip
            assert await client.call("double", 2) == 4


def test_the_facade_reads_pushed_streams() -> None:
    """Iterators of both kinds, in loops, with close, in several threads, with calls between the items."""
    source = Source()
    daemon = blocking.Daemon()
    uri = daemon.register(source, "source")
    with serving(daemon), blocking.Proxy(uri) as proxy:
        assert list(proxy.numbers(700)) == list(range(700))
        assert list(proxy.plain(700)) == list(range(700))
        assert [(item, proxy.double(item)) for item in proxy.numbers(30)] == [(n, 2 * n) for n in range(30)]
        with proxy.numbers(1_000_000) as stream:
            assert next(stream) == 0
        got: list[int] = []
        with pytest.raises(ValueError, match="middle"):
            got.extend(proxy.fails(3))
        for number in proxy.numbers(1_000_000):
            if number > 5:
                break
        proxy._pyroTimeout = 0.05
        waiting = proxy.waits()
        assert next(waiting) == "first"
        with pytest.raises(CommunicationError, match="too long"):
            next(waiting)
        proxy._pyroTimeout = None
        got.clear()
        threads = [threading.Thread(target=lambda: got.append(sum(proxy.numbers(500)))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [sum(range(500))] * 6


@pytest.mark.parametrize("protocol", [None, 48])
@pytest.mark.parametrize("read_ahead", [1, 2, 7, 100])
def test_the_facade_reads_ahead(protocol: int | None, read_ahead: int) -> None:
    """As many items as were asked for, from a peer of ours and from one that behaves as stock; closed early, too."""
    source = Source()
    daemon = blocking.Daemon()
    uri = daemon.register(source, "source")
    with serving(daemon), blocking.Proxy(uri, settings=Settings(protocol=protocol)) as proxy:
        assert list(proxy.numbers.options(read_ahead=read_ahead)(50)) == list(range(50))
        with pytest.raises(ValueError, match="middle"):
            list(proxy.fails.options(read_ahead=read_ahead)(3))
        source.made = 0
        with proxy.numbers.options(read_ahead=read_ahead)(1_000_000) as stream:
            assert [next(stream), proxy.double(4), next(stream)] == [0, 8, 1]
        assert proxy.double(5) == 10
        assert source.made <= 2 + read_ahead


numbers = st.integers(0, 3)
messages = st.one_of(
    st.builds(credit_message, numbers, st.integers(0, 300), st.integers(0, 2**32 - 1)),
    st.builds(stop_message, numbers),
    st.builds(Message, st.sampled_from([71, 72, 73]), numbers, st.just("msgpack"), st.integers(0, 63),
              st.binary(max_size=12)),
)  # fmt: skip


@given(st.lists(messages, min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
async def test_any_credit_against_a_live_daemon(talk: list[Message]) -> None:
    """Whatever comes, the daemon pushes, ends or hangs up, keeps nothing, and serves others."""
    source = Source()
    async with Daemon(port=0, settings=Settings(stream_linger_s=0)) as daemon:
        uri = daemon.register(source, "source")
        async with own_client(uri) as client, own_client(uri) as other:
            await client.say(client.invoke("numbers", 400), client.invoke("plain", 5))
            await client.expect(MessageType.RESULT)
            await client.expect(MessageType.RESULT)
            try:
                await client.say(*talk)
                await client.stream.send_eof()
            except trio.BrokenResourceError:
                pass
            while (answer := await client.hear()) is not None:
                assert answer.type == MessageType.ITEMS
            assert await other.call("double", 4) == 8
        await until(lambda: daemon.statistics().streams == 0)


answers = st.one_of(
    st.builds(items, numbers, st.lists(st.integers(0, 9), max_size=3)),
    st.builds(end_message, numbers),
    st.builds(Message, st.sampled_from([71, 72, 73]), numbers, st.sampled_from(["msgpack", "serpent", "unknown-9"]),
              st.integers(0, 63), st.binary(max_size=12)),
)  # fmt: skip


@given(st.lists(answers, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
async def test_any_items_against_a_live_client(talk: list[Message]) -> None:
    """Whatever a daemon pushes, the reader gets items, an end, or one of our errors."""

    async def play(server: OwnServer) -> None:
        request = await server.expect(MessageType.INVOKE)
        answer = result(request.seq, OWN.dumps(None), Flags.ITEMSTREAM | Flags.EXCEPTION)
        answer.annotations = {"STRM": b"id", "PXPS": server.session.grant.stream(1)}
        await server.say(answer)
        await server.expect(MessageType.CREDIT)
        await server.say(*talk)
        await server.stream.send_eof()
        while await server.hear() is not None:
            pass

    async with own_server(play, {"numbers"}) as uri, Proxy(uri) as proxy:
        try:
            async for item in proxy.numbers():
                assert type(item) is int
        except Exception as error:
            assert isinstance(error, PyroError) or type(error).__module__ == "builtins"
