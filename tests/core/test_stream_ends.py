"""However a stream ends, the generator behind it is closed then and its clean-up code runs: no collector does it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from doubles import until
from own_doubles import CODEC, OwnClient, own_client

from pyroxfer_core import Daemon, Proxy, Settings, expose
from pyroxfer_core.errors import PyroError
from pyroxfer_core.server.streams import CLOSE_GRACE_S, StreamTable
from pyroxfer_core.server.workers import WorkerPool
from pyroxfer_core.wire.message import MessageType
from pyroxfer_core.wire.streaming import credit_message, stop_message


@expose
class Source:
    """Generators whose clean-up waits, as that of real ones does: for a rollback, for a file to be flushed."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0

    async def numbers(self) -> AsyncIterator[int]:
        self.begun += 1
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            self.ended += 1

    async def silent(self) -> AsyncIterator[int]:
        self.begun += 1
        try:
            yield 0
            await trio.sleep_forever()
        finally:
            self.ended += 1

    async def stubborn(self) -> AsyncIterator[int]:
        """Its clean-up would wait for ever."""
        self.begun += 1
        try:
            yield 0
        finally:
            try:
                await trio.sleep_forever()
            finally:
                self.ended += 1

    async def deaf(self) -> AsyncIterator[int]:
        """Takes no notice of being cancelled, and gives an item after all."""
        self.begun += 1
        try:
            yield 0
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)
            yield 1
        finally:
            self.ended += 1

    async def one(self) -> int:
        return 1


@pytest.fixture
def source() -> Source:
    return Source()


def say_and_hang_up(stream: trio.SocketStream, data: bytes) -> None:
    """What is said and the end arrive together: whoever reads the one meets the other before anything else runs."""
    sock = stream.socket._sock  # type: ignore[attr-defined]  # trio's own would let others run in between
    sock.send(data)
    stream.socket.close()


async def pushing(client: OwnClient, method: str, items: int = 3) -> int:
    """The number of a stream that has begun to be pushed."""
    await client.say(client.invoke(method))
    answer = await client.expect(MessageType.RESULT)
    number = int.from_bytes(bytes(answer.annotations["PXPS"])[-2:], "big")
    await client.say(credit_message(number, items, 1 << 20))
    await client.expect(MessageType.ITEMS)
    return number


@pytest.mark.parametrize("method", ["numbers", "silent", "deaf"])
async def test_a_reader_that_leaves_and_hangs_up_at_once(source: Source, method: str) -> None:
    """The connection ends before the daemon came to closing the stream that its reader does not want any more."""
    async with Daemon(port=0) as daemon:
        uri = daemon.register(source, "source")
        async with own_client(uri) as client:
            number = await pushing(client, method)
            say_and_hang_up(client.stream, CODEC.encode(stop_message(number)))
            await until(lambda: source.begun == source.ended == 1)
        assert daemon.statistics().streams == 0


@pytest.mark.parametrize("method", ["numbers", "silent", "deaf"])
async def test_a_connection_that_is_lost_in_the_middle_of_an_item(source: Source, method: str) -> None:
    """Without lingering, at once; also for a stream that waits for credit, and one that waits for its item."""
    async with Daemon(port=0, settings=Settings(stream_linger_s=0)) as daemon:
        uri = daemon.register(source, "source")
        async with own_client(uri) as client:
            await pushing(client, method)
            client.stream.socket.close()
            await until(lambda: source.begun == source.ended == 1)


@pytest.mark.parametrize("method", ["numbers", "silent", "stubborn", "deaf"])
@pytest.mark.parametrize("protocol", [None, 48])
async def test_a_daemon_that_stops(source: Source, method: str, protocol: int | None) -> None:
    """With streams that are read, that wait for an item, that linger, and that were closed just now."""
    client = Settings(protocol=protocol)
    async with trio.open_nursery() as nursery:
        async with Daemon(port=0, settings=Settings(shutdown_grace_s=0)) as daemon:
            uri = daemon.register(source, "source")
            async with Proxy(uri, settings=client) as leaving:
                lingering = await getattr(leaving, method)()
                assert await anext(lingering) == 0
                leaving._pyroRelease()
            proxy, other = Proxy(uri, settings=client), Proxy(uri, settings=client)
            streams = [await getattr(proxy, method)() for _ in range(3)]
            for stream in streams:
                assert await anext(stream) == 0
            waiting = await other.silent()
            assert await anext(waiting) == 0
            nursery.start_soon(_expect_error, waiting)
            await streams[0].aclose()
        assert source.begun == source.ended == 5
        proxy._pyroRelease()
        other._pyroRelease()


async def _expect_error(stream: Any) -> None:
    with pytest.raises(PyroError):
        await anext(stream)


async def test_a_call_that_is_cut_and_gives_a_stream_all_the_same(source: Source) -> None:
    """Its generator runs already, although nobody has read from the stream."""

    @expose
    class Late:
        def __init__(self) -> None:
            self.entered = trio.Event()

        async def late(self) -> AsyncIterator[int]:
            items = source.numbers()
            with trio.CancelScope(shield=True):
                assert await anext(items) == 0
                self.entered.set()
                await trio.sleep(0.01)
            return items

    late = Late()
    async with trio.open_nursery() as nursery:
        async with (
            Daemon(port=0, settings=Settings(shutdown_grace_s=0)) as daemon,
            Proxy(daemon.register(late)) as proxy,
        ):
            nursery.start_soon(_expect_failure, proxy)
            await late.entered.wait()
        assert source.begun == source.ended == 1


async def _expect_failure(proxy: Proxy) -> None:
    with pytest.raises(PyroError):
        await proxy.late()


class Table:
    """A table of streams by itself, and generators in it."""

    def __init__(self, linger_s: float = 30.0, lifetime_s: float = 0.0) -> None:
        self.source = Source()
        self.table = StreamTable(WorkerPool(1, 0), linger_s, lifetime_s)

    async def begin(self, method: str, count: int = 1) -> list[str]:
        ids = [self.table.add(getattr(self.source, method)(), self) for _ in range(count)]
        for stream_id in ids:
            assert await self.table.next_item(stream_id, self) == 0
        return ids


async def _at_once(table: Table, ids: list[str]) -> None:
    await table.table.close(ids[0])


async def _swept(table: Table, ids: list[str]) -> None:
    await table.table.sweep()


async def _lost(table: Table, ids: list[str]) -> None:
    await table.table.connection_lost(table)


async def _all(table: Table, ids: list[str]) -> None:
    await table.table.close_all()


async def _next(table: Table, ids: list[str]) -> None:
    await table.table.next_item(ids[0], table)


@pytest.mark.parametrize("method", ["numbers", "silent", "stubborn", "deaf"])
@pytest.mark.parametrize("end", [_at_once, _swept, _lost, _all])
@pytest.mark.parametrize("ticks", range(4))
async def test_closing_that_is_cancelled(
    method: str, end: Callable[..., Awaitable[None]], ticks: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever closes a stream may be cancelled at any moment of it, also before it began to."""
    table = Table(linger_s=0, lifetime_s=1)
    ids = await table.begin(method)
    await trio.sleep(2)
    async with trio.open_nursery() as nursery:
        if ticks == 0:
            nursery.cancel_scope.cancel()
        nursery.start_soon(end, table, ids)
        for _ in range(ticks):
            await trio.lowlevel.cancel_shielded_checkpoint()
        nursery.cancel_scope.cancel()
    assert table.source.ended == 1
    assert len(table.table) == 0


@pytest.mark.parametrize("method", ["silent", "deaf"])
@pytest.mark.parametrize("ticks", range(4))
async def test_an_item_that_is_cancelled_while_its_stream_is_closed(
    method: str, ticks: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever of the two has the iterator last closes it, and both may be cancelled."""
    table = Table()
    ids = await table.begin(method)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_ignoring_errors, _next, table, ids)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(_at_once, table, ids)
        for _ in range(ticks):
            await trio.lowlevel.cancel_shielded_checkpoint()
        nursery.cancel_scope.cancel()
    assert table.source.ended == 1
    assert len(table.table) == 0


async def _ignoring_errors(function: Callable[..., Awaitable[None]], *args: object) -> None:
    try:
        await function(*args)
    except Exception:
        return


@pytest.mark.parametrize("end", [_swept, _lost, _all])
async def test_clean_up_that_never_ends_holds_up_no_other_stream(
    end: Callable[..., Awaitable[None]], autojump_clock: trio.testing.MockClock
) -> None:
    """All of them together take as long as one of them may."""
    table = Table(linger_s=0, lifetime_s=1)
    ids = await table.begin("stubborn", 50)
    await trio.sleep(2)
    begin = trio.current_time()
    await end(table, ids)
    assert trio.current_time() - begin == pytest.approx(CLOSE_GRACE_S)
    assert table.source.ended == 50
