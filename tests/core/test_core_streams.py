"""Item streams: remote iterators, read one by one or ahead, left early, lingering, shared."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
from doubles import run, until

from pyroxfer_core import Daemon, Proxy, Settings, expose
from pyroxfer_core.errors import ConnectionClosedError, Outcome, PyroError, SerializeError

OWN = Settings()
STOCK = Settings(protocol=48)
BOTH = pytest.mark.parametrize("client", [OWN, STOCK], ids=["own", "48"])


@expose
class Source:
    def __init__(self) -> None:
        self.closed: list[str] = []
        self.asked = 0
        self.gate = trio.Event()

    async def numbers(self, count: int) -> AsyncIterator[int]:
        try:
            for number in range(count):
                self.asked += 1
                yield number
        finally:
            self.closed.append("async")

    def plain_numbers(self, count: int) -> Iterator[int]:
        try:
            yield from range(count)
        finally:
            self.closed.append("plain")

    async def how_many(self) -> int:
        return len(self.closed)

    async def ready_made(self) -> Iterator[str]:
        return iter("abc")

    async def failing(self) -> AsyncIterator[int]:
        yield 1
        raise ValueError("in the middle")

    async def stuck(self) -> AsyncIterator[int]:
        try:
            yield 1
            await self.gate.wait()
            yield 2
        finally:
            self.closed.append("stuck")

    async def odd(self) -> AsyncIterator[Any]:
        yield 1
        yield object()
        yield 3

    async def one(self) -> int:
        return 1


@pytest.fixture
async def source() -> Source:
    return Source()


@pytest.fixture
async def daemon(source: Source) -> AsyncIterator[Daemon]:
    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        daemon.register(source, "source")
        yield daemon


@BOTH
@pytest.mark.parametrize("read_ahead", [1, 2, 7, 100])
@pytest.mark.parametrize("method", ["numbers", "plain_numbers"])
async def test_items_come_in_order_and_end(
    daemon: Daemon, source: Source, client: Settings, read_ahead: int, method: str
) -> None:
    async with Proxy(daemon.uri_for("source"), settings=client) as proxy:
        stream = getattr(proxy, method).options(read_ahead=read_ahead)(20)
        assert [item async for item in stream] == list(range(20))
        assert len(source.closed) == 1
        assert await proxy.one() == 1
        assert [item async for item in proxy.numbers(0)] == []
    await until(lambda: len(daemon.streams) == 0)


@BOTH
async def test_an_iterator_as_a_result_is_a_stream_too(daemon: Daemon, client: Settings) -> None:
    async with Proxy(daemon.uri_for("source"), settings=client) as proxy:
        stream = await proxy.ready_made()
        assert [item async for item in stream] == ["a", "b", "c"]
        assert [item async for item in stream] == [], "it has ended"


@BOTH
async def test_an_error_in_the_middle_ends_the_stream(daemon: Daemon, client: Settings) -> None:
    async with Proxy(daemon.uri_for("source"), settings=client) as proxy:
        seen = []
        with pytest.raises(ValueError, match="in the middle"):
            async for item in proxy.failing():
                seen.append(item)
        assert seen == [1]
        assert len(daemon.streams) == 0
        assert await proxy.one() == 1


@BOTH
@pytest.mark.parametrize("read_ahead", [1, 4])
async def test_leaving_early_closes_the_generator(
    daemon: Daemon, source: Source, client: Settings, read_ahead: int
) -> None:
    async with Proxy(daemon.uri_for("source"), settings=client) as proxy:
        async for item in proxy.numbers.options(read_ahead=read_ahead)(1000):
            if item == 3:
                break
        gc.collect()
        await until(lambda: source.closed == ["async"])
        assert source.asked <= 4 + read_ahead
        assert await proxy.one() == 1, "the connection is in step"
        assert [item async for item in proxy.numbers(3)] == [0, 1, 2]


@BOTH
async def test_closing_by_hand(daemon: Daemon, source: Source, client: Settings) -> None:
    async with Proxy(daemon.uri_for("source"), settings=client) as proxy:
        async with await proxy.plain_numbers(1000) as stream:
            assert await stream.__anext__() == 0
        await until(lambda: source.closed == ["plain"])
        await stream.aclose()
        assert [item async for item in stream] == []
        for number in range(3):
            assert await proxy.one() == 1, number


async def test_items_and_calls_share_a_connection(daemon: Daemon) -> None:
    async with Proxy(daemon.uri_for("source")) as proxy:
        items = []
        async for item in proxy.numbers.options(read_ahead=3)(10):
            items.append(item)
            assert await proxy.one() == 1
        assert items == list(range(10))
        assert daemon.statistics().connections == 1


async def test_many_streams_at_once(daemon: Daemon) -> None:
    results: list[list[int]] = []

    async def read(proxy: Proxy, count: int) -> None:
        results.append([item async for item in proxy.numbers.options(read_ahead=5)(count)])

    async with Proxy(daemon.uri_for("source")) as proxy, trio.open_nursery() as nursery:
        for count in range(20):
            nursery.start_soon(read, proxy, count)
    assert sorted(results) == [list(range(count)) for count in range(20)]


@BOTH
async def test_a_cancelled_fetch_closes_the_remote_iterator(daemon: Daemon, source: Source, client: Settings) -> None:
    async with Proxy(daemon.uri_for("source"), settings=client) as proxy:
        stream = await proxy.stuck()
        assert await stream.__anext__() == 1
        with trio.move_on_after(0.02):
            await stream.__anext__()
        assert await proxy.one() == 1
        if client is OWN:
            await until(lambda: source.closed == ["stuck"])
        assert [item async for item in stream] == [], "a stream that was cut short has ended"


@BOTH
async def test_an_item_that_cannot_travel(daemon: Daemon, client: Settings) -> None:
    async with Proxy(daemon.uri_for("source"), settings=client) as proxy:
        stream = await proxy.odd()
        assert await stream.__anext__() == 1
        with pytest.raises(SerializeError):
            await stream.__anext__()
        await until(lambda: len(daemon.streams) == 0)
        assert await proxy.one() == 1


async def test_a_stream_outlives_its_connection_for_a_while(source: Source) -> None:
    async with Daemon(settings=Settings(stream_linger_s=30)) as daemon:
        uri = daemon.register(source)
        async with Proxy(uri) as proxy, Proxy(f"PYRO:Pyro.Daemon@{daemon.location}") as other:
            stream = await proxy.numbers(5)
            assert await stream.__anext__() == 0
            proxy._pyroRelease()
            await until(lambda: daemon.statistics().connections == 0)
            with pytest.raises(ConnectionClosedError) as caught:
                await stream.__anext__()
            assert caught.value.outcome is Outcome.NOT_SENT
            assert await other.get_next_stream_item(stream._id) == 1, "any connection that knows the id may go on"
            assert len(daemon.streams) == 1
        assert source.closed == []
    assert source.closed == ["async"], "closing the daemon closes what is left"


@BOTH
async def test_who_reads_on_without_a_connection_is_told_what_became_of_it(daemon: Daemon, client: Settings) -> None:
    """And what to do: closing the proxy too early is one's own doing, a connection that breaks is not."""
    async with Proxy(daemon.register(Source()), settings=client) as proxy:
        lost = await proxy.stuck()
        assert await anext(lost) == 1
        assert proxy._pyroLink is not None
        proxy._pyroLink.close()
        with pytest.raises(ConnectionClosedError, match=r"was lost before .*; call the method again"):
            await anext(lost)
        closed = await proxy.stuck()
        assert await anext(closed) == 1
        proxy._pyroRelease()
        with pytest.raises(ConnectionClosedError, match=r"proxy .* has been closed; read a stream to"):
            await anext(closed)


async def test_without_linger_streams_end_with_their_connection(source: Source) -> None:
    async with Daemon(settings=Settings(stream_linger_s=0)) as daemon:
        async with Proxy(daemon.register(source)) as proxy:
            stream = await proxy.numbers(5)
            assert await stream.__anext__() == 0
        await until(lambda: source.closed == ["async"])
        assert len(daemon.streams) == 0


async def test_a_stream_may_live_for_a_limited_time(source: Source) -> None:
    async with Daemon(settings=Settings(stream_lifetime_s=0.01)) as daemon, Proxy(daemon.register(source)) as proxy:
        stream = await proxy.numbers(5)
        await trio.sleep(0.02)
        await daemon.streams.sweep()
        assert source.closed == []  # not begun: there is nothing to clean up
        with pytest.raises(PyroError, match="terminated"):
            await stream.__anext__()


async def test_lingering_streams_are_swept(source: Source) -> None:
    async with Daemon(settings=Settings(stream_linger_s=0.01)) as daemon:
        async with Proxy(daemon.register(source)) as proxy:
            stream = await proxy.numbers(5)
            assert await stream.__anext__() == 0
        await until(lambda: daemon.statistics().connections == 0)
        await trio.sleep(0.02)
        await daemon.streams.sweep()
        assert len(daemon.streams) == 0
        assert source.closed == ["async"]


async def test_a_full_pool_does_not_cost_an_item(source: Source) -> None:
    """Fetching from a plain generator needs a thread: without one the fetch is NotSent and the stream goes on."""
    release = trio.Event()

    @expose
    class Blocking(Source):
        def block(self) -> None:
            trio.from_thread.run(release.wait)

    async with Daemon(settings=Settings(worker_threads=1, worker_queue=0)) as daemon:
        async with Proxy(daemon.register(Blocking())) as proxy, trio.open_nursery() as nursery:
            await proxy.plain_numbers(0)
            uri = f"PYRO:Pyro.Daemon@{daemon.location}"
            stream = await proxy.plain_numbers(3)
            nursery.start_soon(run, proxy.block)
            await until(lambda: daemon.statistics().busy_threads == 1)
            async with Proxy(uri) as other:
                with pytest.raises(PyroError, match="busy"):
                    await other.get_next_stream_item(stream._id)
                release.set()
                await until(lambda: daemon.statistics().busy_threads == 0)
                assert await other.get_next_stream_item(stream._id) == 0


async def test_unknown_streams(daemon: Daemon) -> None:
    async with Proxy(f"PYRO:Pyro.Daemon@{daemon.location}") as proxy:
        with pytest.raises(PyroError, match="terminated"):
            await proxy.get_next_stream_item("nobody")
        await proxy.close_stream("nobody")
        assert await proxy.ping() is None


async def test_iterating_over_a_plain_result_is_an_error(daemon: Daemon) -> None:
    async with Proxy(daemon.uri_for("source")) as proxy:
        with pytest.raises(SerializeError, match="no item stream") as caught:
            async for _ in proxy.one():
                pass
        assert caught.value.outcome is Outcome.EXECUTED


async def test_a_stream_whose_next_item_never_comes_is_closed_when_its_reader_leaves(daemon: Daemon) -> None:
    source = Source()
    async with Proxy(daemon.register(source)) as proxy:
        async with await proxy.stuck.options(read_ahead=2)() as stream:
            assert await anext(stream) == 1
        await until(lambda: source.closed == ["stuck"])
        await until(lambda: daemon.statistics().calls_in_flight == 0)


async def test_a_stream_whose_next_item_never_comes_does_not_outlive_its_time_nor_keep_others_alive() -> None:
    source = Source()
    settings = Settings(stream_lifetime_s=0.01, shutdown_grace_s=0)
    async with Daemon(settings=settings) as daemon, Proxy(daemon.register(source)) as proxy:
        stuck, other = await proxy.stuck(), await proxy.numbers(3)
        assert (await anext(stuck), await anext(other)) == (1, 0)

        async def wait() -> None:
            with pytest.raises(PyroError, match="terminated"):
                await anext(stuck)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            link = proxy._pyroLink
            await until(lambda: link is not None and link.readers.waiting)
            await trio.sleep(0.01)
            await daemon.streams.sweep()
        assert sorted(source.closed) == ["async", "stuck"]
        assert daemon.statistics().streams == 0


async def test_streams_of_calls_that_were_given_up_are_closed(daemon: Daemon) -> None:
    """Whether the answer is on its way, or came while the call was given up: nobody else knows of the stream."""
    source = Source()
    async with Proxy(daemon.register(source)) as proxy:
        assert await proxy.how_many() == 0

        async def give_up(seconds: float) -> None:
            with trio.move_on_after(seconds):
                await proxy.numbers(3)
                lost.append(seconds)  # this one is left to the garbage collector

        lost: list[float] = []
        for round_ in range(30):
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(give_up, number * round_ * 0.00001)
        gc.collect()
        while daemon.statistics().streams:  # the test's time limit ends it
            assert await proxy.how_many() == 0
    assert len(lost) < 240
