"""Streams as arguments: items while the call runs, as the handler reads them; errors and endings both ways."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
import trio.lowlevel
from doubles import until
from facade_doubles import serving
from hypothesis import given, settings
from hypothesis import strategies as st
from own_doubles import OWN, OwnServer, own_client, own_server

from pyroxfer_core import Daemon, Proxy, Settings, blocking, expose, oneway
from pyroxfer_core.errors import CommunicationError, Outcome, PyroError, SerializeError
from pyroxfer_core.wire.message import Message, MessageType
from pyroxfer_core.wire.streaming import credit_message, end_message, stop_message


@expose
class Sink:
    def __init__(self) -> None:
        self.got: list[Any] = []
        self.kept: Any = None
        self.gate = trio.Event()
        self.let_go = threading.Event()

    async def total(self, numbers: Any, start: int = 0) -> int:
        async for number in numbers:
            start += number
        return start

    def plain_total(self, numbers: Any) -> int:
        return sum(numbers)

    def plain_until_error(self, numbers: Any) -> list[Any]:
        for number in numbers:
            self.got.append(number)
        return self.got

    def plain_first(self, numbers: Any) -> Any:
        first = next(numbers)
        numbers.close()
        return [first, *numbers]

    async def by_turns(self, numbers: Any) -> list[Any]:
        got = [await anext(numbers)]
        got += await trio.to_thread.run_sync(lambda: [next(numbers) for _ in range(100)])
        return got + [number async for number in numbers]

    async def two(self, *, left: Any, right: Any) -> list[Any]:
        return [pair async for pair in zipped(left, right)]

    async def first(self, numbers: Any) -> Any:
        async for number in numbers:
            return number
        return None

    async def first_then_wait(self, numbers: Any) -> Any:
        first = await anext(numbers)
        await numbers.aclose()
        await self.gate.wait()
        return first

    async def slowly(self, blocks: Any) -> int:
        async for block in blocks:
            self.got.append(len(block))
            await trio.lowlevel.checkpoint()
        return sum(self.got)

    async def keep(self, numbers: Any) -> None:
        self.kept = numbers
        await anext(numbers)

    async def keep_unread(self, numbers: Any) -> None:
        self.kept = numbers

    async def go_on(self) -> Any:
        return await anext(self.kept)

    async def fails(self, numbers: Any) -> None:
        await anext(numbers)
        raise KeyError("handler")

    async def hang(self, numbers: Any) -> None:
        async for number in numbers:
            self.got.append(number)

    async def echo(self, numbers: Any) -> AsyncIterator[int]:
        async for number in numbers:
            yield 2 * number

    async def let_go_at(self, numbers: Any, at: int) -> list[int]:
        async for number in numbers:
            self.got.append(number)
            if number == at:
                self.let_go.set()
        return self.got

    async def add(self, a: int, b: int) -> int:
        return a + b

    @oneway
    async def note(self, numbers: Any) -> None:
        self.got.append(numbers)


async def zipped(left: Any, right: Any) -> AsyncIterator[Any]:
    async for one in left:
        yield [one, await anext(right)]


class Count:
    """An async generator that notes how far it went, and its end."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = False

    async def up_to(self, end: int) -> AsyncIterator[int]:
        try:
            for number in range(end):
                self.made += 1
                yield number
        finally:
            self.closed = True

    async def blocks(self, count: int, size: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            self.made += 1
            yield bytes(size)

    async def failing(self, after: int = 1) -> AsyncIterator[int]:
        for number in range(after):
            yield number
        raise ValueError("caller")


@pytest.fixture
def sink() -> Sink:
    return Sink()


async def test_iterators_as_arguments(sink: Sink) -> None:
    """Of both kinds, by position and by name, several in one call, at any depth, for handlers of both kinds."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(sink, "sink")
        async with Proxy(uri) as proxy:
            count = Count()
            assert await proxy.total(count.up_to(1000), start=5) == sum(range(1000)) + 5
            assert count.closed
            assert await proxy.plain_total(Count().up_to(300)) == sum(range(300))
            assert await proxy.total(iter(range(30))) == sum(range(30))
            assert await proxy.two(left=Count().up_to(3), right=iter("abc")) == [[0, "a"], [1, "b"], [2, "c"]]
            assert await proxy.total(Count().up_to(0)) == 0
            link = proxy._pyroLink
            assert link is not None
            assert not len(link.uploads)
            assert await proxy.add(1, 2) == 3


async def test_an_item_of_a_plain_iterator_leaves_at_once(sink: Sink) -> None:
    """Although several are taken in one go, and the next one takes long."""

    def numbers() -> Iterator[int]:
        yield from range(100)
        sink.let_go.wait(60)
        yield 100
        raise ValueError("caller")

    async with Daemon(port=0) as daemon:
        uri = daemon.register(sink, "sink")
        async with Proxy(uri) as proxy:
            with pytest.raises(ValueError, match="caller"):
                await proxy.let_go_at(numbers(), 99)
            assert sink.let_go.is_set()
            assert sink.got == list(range(101))


async def test_a_thread_takes_items_along(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not go to the loop for each; order, errors, ends and closing are as if it did."""
    trips = 0
    go = trio.from_thread.run

    def counted(*args: Any) -> Any:
        nonlocal trips
        trips += 1
        return go(*args)

    monkeypatch.setattr(trio.from_thread, "run", counted)
    async with Daemon(port=0) as daemon:
        uri = daemon.register(sink, "sink")
        async with Proxy(uri) as proxy:
            assert await proxy.plain_total(Count().up_to(10_000)) == sum(range(10_000))
            assert trips < 2_000
            with pytest.raises(ValueError, match="caller"):
                await proxy.plain_until_error(Count().failing(300))
            assert sink.got == list(range(300))
            assert await proxy.plain_first(Count().up_to(1000)) == [0]
            assert await proxy.by_turns(Count().up_to(1000)) == list(range(1000))


async def test_a_call_that_cannot_be_written_closes_its_iterators(sink: Sink) -> None:
    """Also those that were read from before; the connection keeps nothing of them, and goes on."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(sink, "sink")
        async with Proxy(uri) as proxy:
            count = Count()
            begun = count.up_to(10)
            assert await anext(begun) == 0
            with pytest.raises(SerializeError):
                await proxy.two(left=begun, right=object())
            assert count.closed
            link = proxy._pyroLink
            assert link is not None
            assert not len(link.uploads)
            assert await proxy.add(1, 2) == 3


async def test_a_stream_in_and_a_stream_out(sink: Sink) -> None:
    """A handler that is a generator gets no items: its call has ended when it begins; so it says."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(sink, "sink")
        async with Proxy(uri) as proxy:
            with pytest.raises(PyroError, match="ended"):
                async for _ in proxy.echo(Count().up_to(10)):
                    pass
            assert await proxy.add(1, 2) == 3


async def test_large_items_and_a_slow_handler_bound_the_sender(sink: Sink) -> None:
    """What was made and not read stays near a MiB; items above 256 KiB go in pieces."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(sink, "sink")
        async with Proxy(uri) as proxy:
            count = Count()
            farthest = 0

            async def watch() -> None:
                nonlocal farthest
                while True:
                    farthest = max(farthest, count.made - len(sink.got))
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                assert await proxy.slowly(count.blocks(300, 100_000)) == 30_000_000
                nursery.cancel_scope.cancel()
            assert farthest <= 14
            sink.got.clear()
            assert await proxy.slowly(Count().blocks(5, 1_000_000)) == 5_000_000


async def test_a_handler_that_leaves_early_closes_the_callers_iterator(sink: Sink) -> None:
    """By returning, by failing, and by ``aclose`` while its call goes on."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(sink, "sink")
        async with Proxy(uri) as proxy:
            count = Count()
            assert await proxy.first(count.up_to(1_000_000)) == 0
            assert count.closed
            assert count.made < 1000
            count = Count()
            with pytest.raises(KeyError, match="handler"):
                await proxy.fails(count.up_to(1_000_000))
            assert count.closed
            count = Count()
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    assert await proxy.first_then_wait(count.up_to(1_000_000)) == 0

                nursery.start_soon(call)
                await until(lambda: count.closed)
                sink.gate.set()


async def test_an_error_of_the_callers_iterator_reaches_the_handler(sink: Sink) -> None:
    """After the items before it; what the handler makes of it comes back. An item that cannot be written is one."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(sink, "sink")
        async with Proxy(uri) as proxy:
            with pytest.raises(ValueError, match="caller"):
                await proxy.hang(Count().failing())
            assert sink.got == [0]
            with pytest.raises(SerializeError, match="range"):
                await proxy.hang(iter([1, 2, range(3)]))
            assert sink.got == [0, 1, 2]
            assert await proxy.add(1, 2) == 3


async def test_cancelling_a_call_with_a_stream(sink: Sink) -> None:
    """The iterator is closed, the handler is cancelled, the connection goes on."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(sink, "sink")
        async with Proxy(uri) as proxy:
            closed = False

            async def endless() -> AsyncIterator[int]:
                nonlocal closed
                try:
                    for number in itertools.count():
                        yield number
                        await trio.lowlevel.checkpoint()
                finally:
                    closed = True

            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def call() -> None:
                        await proxy.hang(endless())

                    nursery.start_soon(call)
                    await until(lambda: len(sink.got) > 50)
                    scope.cancel()
            assert closed
            assert await proxy.add(1, 2) == 3
            await until(lambda: daemon.statistics().calls_in_flight == 0)


async def test_a_stream_ends_with_its_call(sink: Sink) -> None:
    """A handler that kept it gets an error, not an end: nothing is cut short in silence."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(sink, "sink")
        async with Proxy(uri) as proxy:
            await proxy.keep(Count().up_to(100))
            with pytest.raises(PyroError, match="ended"):
                for _ in range(300):
                    await proxy.go_on()


async def test_a_stream_that_is_first_read_after_its_call_ends_although_a_thread_is_sending(sink: Sink) -> None:
    """Who reads for all of a client's threads does not wait for the one that sends, and yet says that it is over."""
    async with Daemon(port=0) as daemon:
        proxy = blocking.Proxy(daemon.register(sink, "sink"), background=True)
        await trio.to_thread.run_sync(lambda: proxy.keep_unread(iter([1])))
        link = proxy._pyroLink
        assert link is not None

        async def read_on() -> None:
            with pytest.raises(PyroError, match="ended"):
                await anext(sink.kept)

        async with trio.open_nursery() as nursery:
            with link.sending.lock:
                nursery.start_soon(read_on)
                await until(lambda: bool(link.sending._asides))
            assert await trio.to_thread.run_sync(lambda: proxy.add(1, 2)) == 3
        await trio.to_thread.run_sync(proxy._pyroRelease)


async def test_where_a_stream_cannot_be_an_argument(sink: Sink) -> None:
    """One-way calls, calls with a key, stock peers, other serializers: one clear error, and nothing was sent."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(sink, "sink")
        async with Proxy(uri) as proxy:
            for call in (proxy.note, proxy.total.options(key="k" * 32)):
                with pytest.raises(SerializeError, match="send a list") as caught:
                    await call(iter([1]))
                assert caught.value.outcome is Outcome.NOT_SENT
            assert sink.got == []
        stock = Settings(protocol=48)
        for options in (stock, Settings(serializer="serpent"), stock.with_changes(serializer="msgpack")):
            async with Proxy(uri, settings=options) as proxy:
                with pytest.raises(SerializeError, match="send a list") as caught:
                    await proxy.total(Count().up_to(3))
                assert caught.value.outcome is Outcome.NOT_SENT


async def test_a_lost_connection_in_the_middle(sink: Sink) -> None:
    """The caller gets Unknown and is not asked again; its iterator is closed."""
    count = Count()
    connections = 0

    async def play(server: OwnServer) -> None:
        nonlocal connections
        connections += 1
        await server.expect(MessageType.INVOKE)
        await server.say(credit_message(1, 5, 1000))
        await server.expect(MessageType.ITEMS)

    async with own_server(play, {"total"}) as uri, Proxy(uri) as proxy:
        with pytest.raises(CommunicationError) as caught:
            await proxy.total(count.up_to(1_000_000))
        assert caught.value.outcome is Outcome.UNKNOWN
        assert count.closed
        assert connections == 1


def test_the_facade_sends_iterators() -> None:
    """In the calling thread, to handlers of both kinds, with errors both ways, from several threads at once."""
    sink = Sink()
    daemon = blocking.Daemon()
    uri = daemon.register(sink, "sink")

    threads: set[int] = set()

    def numbers(end: int) -> Iterator[int]:
        for number in range(end):
            threads.add(threading.get_ident())
            yield number

    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("caller")

    with serving(daemon), blocking.Proxy(uri) as proxy:
        assert proxy.total(numbers(1000), start=1) == sum(range(1000)) + 1
        assert proxy.plain_total(iter(range(300))) == sum(range(300))
        assert threads == {threading.get_ident()}
        assert proxy.two(left=numbers(2), right=iter("ab")) == [[0, "a"], [1, "b"]]
        assert proxy.first(itertools.count()) == 0
        with pytest.raises(ValueError, match="caller"):
            proxy.hang(failing())
        with pytest.raises(KeyError, match="handler"):
            proxy.fails(itertools.count())
        with pytest.raises(SerializeError, match="send a list"):
            proxy.note(iter([1]))
        sink.got.clear()
        assert proxy.slowly(bytes(600_000) for _ in range(5)) == 3_000_000
        proxy._pyroTimeout = 0.1
        with pytest.raises(CommunicationError):
            proxy.hang(itertools.count())
        proxy._pyroTimeout = None
        results: list[int] = []
        workers = [threading.Thread(target=lambda: results.append(proxy.total(numbers(400)))) for _ in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert results == [sum(range(400))] * 6
        assert proxy.add(1, 2) == 3


numbers = st.integers(0, 3)
from_client = st.one_of(
    st.builds(lambda number, values: Message(MessageType.ITEMS, number, "msgpack", 0, OWN.dumps(values)),
              numbers, st.lists(st.integers(0, 9))),
    st.builds(end_message, numbers),
    st.builds(Message, st.sampled_from([71, 72, 73]), numbers, st.sampled_from(["msgpack", "serpent", "unknown-9"]),
              st.integers(0, 63), st.binary(max_size=12)),
)  # fmt: skip


@given(st.lists(from_client, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
async def test_any_items_against_a_live_daemon(talk: list[Message]) -> None:
    """Whatever a client sends for its stream, the handler gets items or an error, and others are served."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(Sink(), "sink")
        async with own_client(uri) as client, own_client(uri) as other:
            await client.call("add", 1, 2)
            body = bytes(OWN.dumps_call("sink", "total", ("@",), {})).replace(b"\xa1@", b"\xd5\x4e\x00\x01")
            request = Message(MessageType.INVOKE, 9, "msgpack", 0, body)
            await client.say(request)
            await client.expect(MessageType.CREDIT)
            try:
                await client.say(*talk)
                await client.stream.send_eof()
            except trio.BrokenResourceError:
                pass
            while (answer := await client.hear()) is not None:
                assert answer.type in (MessageType.RESULT, MessageType.CREDIT, MessageType.ITEMS)
            assert await other.call("add", 3, 4) == 7


from_daemon = st.one_of(
    st.builds(credit_message, numbers, st.integers(0, 300), st.integers(0, 2**32 - 1)),
    st.builds(stop_message, numbers),
    st.builds(
        Message, st.sampled_from([72, 73]), numbers, st.just("ping"), st.integers(0, 63), st.binary(max_size=12)
    ),
)


@given(st.lists(from_daemon, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
async def test_any_credit_against_a_live_client(talk: list[Message]) -> None:
    """Whatever a daemon wants of a stream, its call ends with an answer or one of our errors."""
    count = Count()

    async def play(server: OwnServer) -> None:
        request = await server.expect(MessageType.INVOKE)
        await server.say(*talk)
        await server.answer(request, 1)
        while await server.hear() is not None:
            pass

    async with own_server(play, {"total"}) as uri, Proxy(uri) as proxy:
        try:
            assert await proxy.total(count.up_to(500)) == 1
        except PyroError:
            pass
        assert count.closed or not count.made
