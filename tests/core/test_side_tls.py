"""Files over side streams under TLS: threads of their own move the bytes, with all the manners of plain ones."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from certificates import Certificates
from doubles import until

from pyroxfer_core.errors import ConnectionClosedError
from pyroxfer_core.transport import side
from pyroxfer_core.transport.side import TlsSideStream
from pyroxfer_core.transport.tls import TlsSocket, start_tls

DATA = bytes(range(256)) * 12_000


class Ends:
    """Two ends of one TLS connection; ``line`` is the descriptor below the second one's TLS."""

    here: TlsSideStream
    there: TlsSideStream

    async def start(self, certificates: Certificates) -> None:
        first, second = socket.socketpair()
        self.line = socket.socket(fileno=os.dup(second.fileno()))

        async def client() -> None:
            tls = await start_tls(first, certificates.client_context(), server_hostname="localhost")
            self.here = TlsSideStream(tls)

        async def server() -> None:
            tls = await start_tls(second, certificates.server_context(), server_side=True)
            self.there = TlsSideStream(tls)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            nursery.start_soon(server)

    def close(self) -> None:
        self.here.abort()
        self.there.abort()
        self.line.close()


@pytest.fixture
async def ends(certificates: Certificates) -> AsyncIterator[Ends]:
    ends = Ends()
    await ends.start(certificates)
    yield ends
    ends.close()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


async def test_a_file_goes_both_ways_at_once(ends: Ends, fd: int, tmp_path: Path) -> None:
    """More than the line holds in either direction, each end sending and receiving."""
    os.pwrite(fd, DATA, 0)
    got = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("here", "there")]
    told: list[int] = []

    async def send(stream: TlsSideStream) -> None:
        assert await stream.send_file(fd, 1, len(DATA) - 1, left=told.append) == len(DATA) - 1

    async def receive(stream: TlsSideStream, target: int) -> None:
        assert await stream.splice_to_file(target, 0, len(DATA) - 1) == len(DATA) - 1

    try:
        async with trio.open_nursery() as nursery:
            for stream, target in zip((ends.here, ends.there), got, strict=True):
                nursery.start_soon(send, stream)
                nursery.start_soon(receive, stream, target)
        assert all(os.pread(target, len(DATA), 0) == DATA[1:] for target in got)
    finally:
        for target in got:
            os.close(target)
    assert sum(told) == 2 * (len(DATA) - 1)


async def test_a_file_that_is_shorter_than_asked_for(ends: Ends, fd: int) -> None:
    os.pwrite(fd, DATA[:1000], 0)
    assert await ends.here.send_file(fd, 100, 5000) == 900


async def test_openssl_sees_one_thread_at_a_time(ends: Ends, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are read in the event loop while a thread sends a file."""
    os.pwrite(fd, DATA[:100], 0)
    sending, reading, met = threading.Event(), threading.Event(), threading.Event()
    send, recv = TlsSocket.send, TlsSocket.recv

    def slow_send(sock: TlsSocket, data: Any, flags: int = 0) -> int:
        sending.set()
        if reading.wait(0.2):
            met.set()
        sending.clear()
        return send(sock, data, flags)

    def noted_recv(sock: TlsSocket, count: int, flags: int = 0) -> bytes:
        if sock is ends.here._sock and sending.is_set():
            reading.set()
        return recv(sock, count, flags)

    monkeypatch.setattr(TlsSocket, "send", slow_send)
    monkeypatch.setattr(TlsSocket, "recv", noted_recv)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.here.send_file, fd, 0, 100)
        await until(sending.is_set)
        nursery.start_soon(ends.here.receive_some)
        assert await ends.there.receive_exactly(100) == DATA[:100]
        nursery.cancel_scope.cancel()
    assert not met.is_set()


@pytest.mark.parametrize("what", ["send_file", "splice_to_file"])
async def test_aborting_ends_the_thread_at_once(
    ends: Ends, fd: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the socket, and would go on doing so."""
    os.pwrite(fd, DATA, 0)
    waiting = threading.Event()

    def wait_forever(descriptor: int, event: int) -> bool:
        waiting.set()
        watch = select.poll()
        watch.register(descriptor, event)
        return bool(watch.poll())

    monkeypatch.setattr(side, "_ready", wait_forever)

    async def move() -> None:
        with pytest.raises(ConnectionClosedError, match="closed here"):
            await getattr(ends.here, what)(fd, 0, len(DATA))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move)
        await until(waiting.is_set)
        await ends.here.aclose()
    assert ends.here.fileno() == -1


async def test_what_arrived_before_a_broken_record_is_told(ends: Ends, fd: int) -> None:
    """The error comes at once, though the line stays open and silent."""
    told: list[int] = []
    await ends.there.send_all(DATA[:1000])
    ends.line.setblocking(True)
    ends.line.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ConnectionClosedError):
        await ends.here.splice_to_file(fd, 0, len(DATA), arrived=told.append)
    assert told == [1000]
    assert os.pread(fd, 2000, 0) == DATA[:1000]


async def test_a_stream_that_is_cut_is_no_end(ends: Ends, fd: int) -> None:
    await ends.there.send_all(DATA[:1000])
    ends.there.abort()
    ends.line.close()
    with pytest.raises(ConnectionClosedError, match="close_notify"):
        await ends.here.splice_to_file(fd, 0, 2000)


async def test_a_goodbye_is_an_end(ends: Ends, fd: int) -> None:
    await ends.there.send_all(DATA[:1000])
    await ends.there.aclose()
    ends.line.close()
    assert await ends.here.splice_to_file(fd, 0, 2000) == 1000
