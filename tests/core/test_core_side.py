"""Raw side streams: whole files and parts of them, short files, short streams, and systems without splice."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from pyroxfer_core import Daemon, Settings, SideStream, open_side_stream
from pyroxfer_core.errors import ConnectionClosedError, Outcome, ProtocolError
from pyroxfer_core.transport import side

SIZE = 3_000_001
DATA = (bytes(range(256)) * (SIZE // 256 + 1))[:SIZE]


class Ends:
    def __init__(self, received: bytes = b"") -> None:
        first, second = socket.socketpair()
        first.setblocking(False)
        second.setblocking(False)
        self.here = SideStream(first, received=received)
        self.there = SideStream(second)

    def close(self) -> None:
        self.here.abort()
        self.there.abort()


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def refuse(code: int) -> Any:
    def splice(*args: Any, **kwargs: Any) -> int:
        raise OSError(code, "injected")

    return splice


def refuse_into_file(real: Any) -> Any:
    """A file system that cannot splice: the socket's side works, and the bytes are in the pipe already."""

    def splice(source: int, target: int, count: int, **kwargs: Any) -> int:
        if "offset_dst" in kwargs:
            raise OSError(errno.EINVAL, "injected")
        return int(real(source, target, count, **kwargs))

    return splice


@pytest.fixture(params=["splice", "no function", "no pipe", "EINVAL", "ENOSYS", "not into this file", "small pipe"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Systems with and without splice."""
    kind = str(request.param)
    while side._spare_pipes:
        side._spare_pipes.pop().close()
    spare: list[Any] = []
    monkeypatch.setattr(side, "_spare_pipes", spare)
    if kind == "no function":
        monkeypatch.delattr(os, "splice")
    elif kind == "no pipe":
        monkeypatch.setattr(os, "pipe2", refuse(errno.EMFILE))
    elif kind in ("EINVAL", "ENOSYS"):
        monkeypatch.setattr(os, "splice", refuse(getattr(errno, kind)))
    elif kind == "not into this file":
        monkeypatch.setattr(os, "splice", refuse_into_file(os.splice))
    elif kind == "small pipe":
        monkeypatch.setattr(fcntl, "fcntl", refuse(errno.EPERM))
    request.addfinalizer(lambda: [pipe.close() for pipe in spare])
    return kind


async def test_a_stream_goes_into_a_file(ends: Ends, fd: int, system: str) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.there.send_all, DATA)
        assert await ends.here.splice_to_file(fd, 10, 1_500_000) == 1_500_000
        assert await ends.here.splice_to_file(fd, 1_500_010, SIZE - 1_500_000) == SIZE - 1_500_000
    assert os.pread(fd, SIZE + 100, 0) == bytes(10) + DATA
    assert all(pipe.held == 0 for pipe in side._spare_pipes)


async def test_a_stream_that_ends_early(ends: Ends, fd: int, system: str) -> None:
    await ends.there.send_all(b"short")
    ends.there.abort()
    assert await ends.here.splice_to_file(fd, 0, 100) == 5
    assert os.pread(fd, 100, 0) == b"short"
    assert await ends.here.splice_to_file(fd, 5, 100) == 0


async def test_what_has_arrived_is_told_whatever_becomes_of_the_rest(fd: int, system: str) -> None:
    """Cancelled while it waits for more: what was told is in the file, and nothing more was taken."""
    ends, told = Ends(received=b"first "), 0
    with trio.CancelScope() as scope:

        def arrived(count: int) -> None:
            nonlocal told
            assert count > 0
            told += count
            if told == 6 + 1_000_000:
                scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.there.send_all, DATA[:1_000_000])
            await ends.here.splice_to_file(fd, 0, SIZE, arrived=arrived)
    assert scope.cancelled_caught
    assert os.pread(fd, SIZE, 0) == b"first " + DATA[:1_000_000]
    ends.close()


async def test_a_reset_takes_nothing_back(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is reset while bytes are being moved: those before are told, and the stream is over."""
    ends, told = Ends(), [0]
    real, calls = os.splice, 0

    def resetting(source: int, target: int, count: int, **kwargs: Any) -> int:
        nonlocal calls
        calls += "offset_dst" not in kwargs
        if calls > 1:
            raise ConnectionResetError(errno.ECONNRESET, "injected")
        return real(source, target, count, **kwargs)

    monkeypatch.setattr(os, "splice", resetting)
    await ends.there.send_all(b"first")
    ends.there.abort()
    with pytest.raises(ConnectionClosedError, match="lost"):
        await ends.here.splice_to_file(fd, 0, 100, arrived=told.append)
    assert sum(told) == 5
    assert os.pread(fd, 100, 0) == b"first"
    ends.close()


async def test_bytes_that_came_with_the_preamble_come_first(fd: int, system: str) -> None:
    ends = Ends(received=b"first ")
    await ends.there.send_all(b"second")
    assert await ends.here.splice_to_file(fd, 0, 3) == 3
    assert await ends.here.splice_to_file(fd, 3, 9) == 9
    assert os.pread(fd, 100, 0) == b"first second"
    ends.close()


async def test_a_file_goes_into_a_stream(ends: Ends, fd: int) -> None:
    os.pwrite(fd, DATA, 0)
    received = bytearray()

    async def receive() -> None:
        while part := await ends.there.receive_some():
            received.extend(part)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        assert await ends.here.send_file(fd, 5, 1_200_000) == 1_200_000
        assert await ends.here.send_file(fd, 1_200_005, SIZE) == SIZE - 1_200_005, "the file ended"
        assert await ends.here.send_file(fd, SIZE + 10, 5) == 0
        ends.here.abort()
    assert received == DATA[5:]


async def test_sending_a_file_to_nobody(ends: Ends, fd: int) -> None:
    os.pwrite(fd, DATA, 0)
    ends.there.abort()
    with pytest.raises(ConnectionClosedError):
        await ends.here.send_file(fd, 0, SIZE)
    with pytest.raises(ConnectionClosedError):
        await ends.here.send_all(b"x")


@pytest.mark.parametrize("what", ["send_all", "send_file", "splice_to_file", "receive_some"])
async def test_a_network_that_goes_down_is_a_lost_stream(
    ends: Ends, fd: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of the network that are no ConnectionError in Python are told as any other loss of the stream."""

    class Unreachable:
        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def __getattr__(self, name: str) -> Any:
            return refuse(errno.EHOSTUNREACH) if name in ("send", "recv") else getattr(self._sock, name)

    os.pwrite(fd, DATA, 0)
    ends.here._sock = Unreachable(ends.here._sock)  # type: ignore[arg-type]
    monkeypatch.setattr(os, "sendfile", refuse(errno.ENETUNREACH))
    monkeypatch.setattr(os, "splice", refuse(errno.EHOSTUNREACH))
    arguments: dict[str, tuple[Any, ...]] = {
        "send_all": (b"x",),
        "send_file": (fd, 0, SIZE),
        "splice_to_file": (fd, 0, SIZE),
        "receive_some": (),
    }
    with pytest.raises(ConnectionClosedError, match="lost"):
        await getattr(ends.here, what)(*arguments[what])


async def test_a_bad_file_is_not_the_streams_fault(ends: Ends, tmp_path: Path) -> None:
    read_only = os.open(tmp_path / "new", os.O_RDONLY | os.O_CREAT)
    await ends.there.send_all(b"data")
    with pytest.raises(OSError, match="Bad file descriptor"):
        await ends.here.splice_to_file(read_only, 0, 4)
    assert not side._spare_pipes or all(pipe.held == 0 for pipe in side._spare_pipes)
    os.close(read_only)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await ends.here.send_file(read_only, 0, 4)


@pytest.mark.parametrize("what", ["receive_some", "receive_exactly", "send_all", "send_file", "splice_to_file"])
async def test_aborting_wakes_who_waits(ends: Ends, fd: int, what: str) -> None:
    os.pwrite(fd, DATA, 0)
    arguments: dict[str, tuple[Any, ...]] = {
        "receive_some": (),
        "receive_exactly": (5,),
        "send_all": (DATA,),
        "send_file": (fd, 0, SIZE),
        "splice_to_file": (fd, 0, SIZE),
    }

    async def wait() -> None:
        with pytest.raises(ConnectionClosedError):
            await getattr(ends.here, what)(*arguments[what])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.01)
        ends.here.abort()
    assert ends.here.fileno() == -1
    ends.here.abort()
    await ends.here.aclose()
    with pytest.raises(ConnectionClosedError):
        await getattr(ends.here, what)(*arguments[what])


async def test_a_cancelled_splice_leaves_no_bytes_in_a_shared_pipe(ends: Ends, fd: int) -> None:
    await ends.there.send_all(b"abc")
    with trio.move_on_after(0.01):
        await ends.here.splice_to_file(fd, 0, 10)
    assert os.pread(fd, 10, 0) == b"abc"
    assert all(pipe.held == 0 for pipe in side._spare_pipes)


async def test_pieces(ends: Ends) -> None:
    await ends.there.send_all(b"0123456789")
    buffer = memoryview(bytearray(4))
    assert await ends.here.receive_into(buffer) == 4
    assert bytes(buffer) == b"0123"
    assert await ends.here.receive_some(2) == b"45"
    assert await ends.here.receive_exactly(3) == b"678"
    ends.there.abort()
    with pytest.raises(ConnectionClosedError, match="after 1 of 5"):
        await ends.here.receive_exactly(5)
    assert await ends.here.receive_into(buffer) == 0
    assert repr(ends.here) == "<SideStream to unix>"


async def test_received_pieces_come_before_the_socket() -> None:
    ends = Ends(received=b"abcdef")
    await ends.there.send_all(b"ghi")
    buffer = memoryview(bytearray(4))
    assert await ends.here.receive_into(buffer) == 4
    assert await ends.here.receive_exactly(5) == b"efghi"
    assert bytes(buffer) == b"abcd"
    ends.close()


async def test_through_a_daemon() -> None:
    tokens: list[bytes] = []

    async def handler(stream: SideStream) -> None:
        tokens.append(stream.token)
        data = await stream.receive_exactly(len(DATA))
        await stream.send_all(data[::-1])
        if len(tokens) == 2:
            raise KeyError("a bug in the handler ends its stream only")

    async with Daemon(settings=Settings(shutdown_grace_s=0)) as daemon:
        async with await open_side_stream(daemon.location, b"x") as stream:
            assert await stream.receive_some() == b"", "nobody takes any"
        daemon.side_stream_handler = handler
        for token in (b"token", b"t" * 120, b""):
            async with await open_side_stream(f"PYRO:x@{daemon.location}".partition("@")[2], token) as stream:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.send_all, DATA)
                    assert await stream.receive_exactly(len(DATA)) == DATA[::-1]
                assert await stream.receive_some() == b""
            assert tokens[-1] == token.ljust(120, b"\0")
    with pytest.raises(ProtocolError, match="at most 120"):
        await open_side_stream("localhost:1", b"t" * 121)
    with pytest.raises(ConnectionClosedError) as caught:
        await open_side_stream(daemon_location_gone(), b"t")
    assert caught.value.outcome is Outcome.NOT_SENT


def daemon_location_gone() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"
