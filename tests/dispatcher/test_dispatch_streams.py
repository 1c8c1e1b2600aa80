"""Raw side streams through a dispatcher: files by every channel, and streams that nobody has granted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from doubles_dispatch import client_of, led_config_for, wait_for

import pyroxfer
from pyroxfer_core import Daemon, Proxy, SideStream, expose, open_side_stream
from pyroxfer_core.errors import ConnectionClosedError
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.config import parse_config

SIZE = 3 * 1024 * 1024 + 5


@asynccontextmanager
async def file_servers(tmp_path: Path, count: int) -> AsyncIterator[Dispatcher]:
    """A dispatcher before file servers, which clients are led to in turn."""
    async with trio.open_nursery() as nursery:
        uris: list[object] = []

        async def serve(folder: Path, *, task_status: trio.TaskStatus[None]) -> None:
            folder.mkdir()
            async with pyroxfer.serve(folder) as server:
                uris.append(server.uri)
                task_status.started()
                await trio.sleep_forever()

        for number in range(count):
            await nursery.start(serve, tmp_path / f"served-{number}")
        backends = "".join(
            f'[[services.backends]]\nname = "b{number}"\nuri = "{uri}"\n' for number, uri in enumerate(uris)
        )
        text = f'listen = "localhost:0"\n[[services]]\nname = "files"\nobjects = ["pyroxfer.files"]\n{backends}'
        async with Dispatcher(parse_config(text)) as dispatcher:
            yield dispatcher
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("channel", ["iter", "annot", "raw"])
async def test_files_go_through_the_dispatcher_by_every_channel(tmp_path: Path, channel: str) -> None:
    """There and back; the receipt tells which channel it was."""
    source = tmp_path / "source"
    source.write_bytes(bytes(range(251)) * (SIZE // 251))
    async with file_servers(tmp_path, 1) as dispatcher:
        place = f"{dispatcher.location}/there"
        receipt = await pyroxfer.send(source, place, channel=channel)
        back = await pyroxfer.get(place, tmp_path / "back", channel=channel)
        for one in (receipt, back):
            assert isinstance(one, pyroxfer.Receipt)
            assert one.channel == channel
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert (tmp_path / "served-0" / "there").read_bytes() == source.read_bytes()


async def test_a_stream_goes_to_the_backend_that_has_granted_it(tmp_path: Path) -> None:
    """Among several that clients from here belong to."""
    source = tmp_path / "source"
    source.write_bytes(bytes(SIZE))
    async with file_servers(tmp_path, 3) as dispatcher, trio.open_nursery() as nursery:
        receipts: list[str] = []

        async def send(number: int) -> None:
            receipt = await pyroxfer.send(source, f"{dispatcher.location}/{number}", channel="raw")
            assert isinstance(receipt, pyroxfer.Receipt)
            receipts.append(receipt.channel)

        for number in range(6):
            nursery.start_soon(send, number)
    assert receipts == ["raw"] * 6
    assert sorted(path.name for path in tmp_path.glob("served-*/*")) == list("012345")


class Granting:
    """Takes the streams that open with one word."""

    def __init__(self, word: bytes) -> None:
        self._word = word
        self.heard = b""
        self.ended = trio.Event()

    async def take(self, stream: SideStream) -> None:
        if stream.token.rstrip(b"\0") != self._word:
            return
        await stream.send_all(b"go")
        try:
            while data := await stream.receive_some():
                self.heard += data
        finally:
            self.ended.set()


@expose
class Nothing:
    async def nothing(self) -> None:
        pass


@asynccontextmanager
async def granting(word: bytes) -> AsyncIterator[tuple[Granting, Dispatcher]]:
    taker = Granting(word)
    async with Daemon() as daemon:
        daemon.side_stream_handler = taker.take
        async with Dispatcher(led_config_for(daemon.register(Nothing(), "worker"))) as dispatcher:
            yield taker, dispatcher


async def test_what_a_client_sent_before_it_closes_arrives() -> None:
    async with granting(b"open") as (taker, dispatcher), client_of(dispatcher.location):
        async with await open_side_stream(dispatcher.location, b"open") as stream:
            assert await stream.receive_exactly(2) == b"go"
            await stream.send_all(bytes(SIZE))
        await taker.ended.wait()
        assert taker.heard == bytes(SIZE)


@pytest.mark.parametrize("word", [b"wrong", b""])
async def test_a_stream_that_nobody_has_granted_is_closed(word: bytes) -> None:
    async with granting(b"open") as (_, dispatcher), client_of(dispatcher.location):
        stream = await open_side_stream(dispatcher.location, word)
        with pytest.raises(ConnectionClosedError):
            await stream.receive_exactly(1)
        stream.abort()


async def test_a_stream_from_where_no_client_is_reaches_no_backend() -> None:
    """The grant is worth nothing to who has no connection to that backend."""
    async with granting(b"open") as (taker, dispatcher):
        stream = await open_side_stream(dispatcher.location, b"open")
        with pytest.raises(ConnectionClosedError):
            await stream.receive_exactly(1)
        stream.abort()
        assert not taker.ended.is_set()


async def test_a_dispatcher_that_drains_waits_for_streams() -> None:
    """They are no calls, and may be long."""
    async with granting(b"open") as (taker, dispatcher):
        async with Proxy(f"PYRO:worker@{dispatcher.location}") as proxy:
            await proxy.nothing()
            stream = await open_side_stream(dispatcher.location, b"open")
            assert await stream.receive_exactly(2) == b"go"
        dispatcher.begin_drain()
        await wait_for(lambda: not dispatcher._reception.conversations)
        await stream.send_all(b"still here")
        await wait_for(lambda: taker.heard == b"still here")
        assert not dispatcher.drained.is_set()
        await stream.aclose()
        await dispatcher.drained.wait()
