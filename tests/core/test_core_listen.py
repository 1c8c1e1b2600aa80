"""One port for everything: what first bytes say, and the limits before anybody has said who he is."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from contextvars import ContextVar

import pytest
import trio
from doubles import connect_bytes, connectok_bytes, raw_client, until

from pyroxfer_core import Connection, Settings, SideStream, open_side_stream, serve_connections
from pyroxfer_core.errors import ProtocolError
from pyroxfer_core.transport import listen
from pyroxfer_core.transport.sockets import KEEPALIVE_IDLE_S, bind_tcp
from pyroxfer_core.wire.message import Message
from pyroxfer_core.wire.preamble import encode_preamble


class House:
    """Serves connections by noting what came, and answering a protocol message with its version."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.open = 0
        self.hold = trio.Event()
        self.location = ""
        self.listener: socket.socket | None = None

    async def connection(self, connection: Connection) -> None:
        self.open += 1
        try:
            event = await connection.receive()
            if isinstance(event, Message):
                self.seen.append(str(connection.codec.version))
                connection.settled()
                await connection.send_encoded(connectok_bytes(version=connection.codec.version))
                await self.hold.wait()
            else:
                self.seen.append(str(event))
        except ProtocolError as error:
            self.seen.append(f"error: {error}")
            raise
        finally:
            self.open -= 1

    async def side(self, stream: SideStream) -> None:
        self.seen.append(f"raw {stream.token.rstrip(bytes(1)).decode()}")
        await stream.send_all(await stream.receive_exactly(5))


@asynccontextmanager
async def house(settings: Settings | None = None, *, side: bool = True) -> AsyncIterator[House]:
    at = House()
    listener = bind_tcp("localhost", 0)
    at.location = f"127.0.0.1:{listener.getsockname()[1]}"
    at.listener = listener
    settings = settings or Settings()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: serve_connections(
                [listener], at.connection, settings=settings, side_handler=at.side if side else None
            )
        )
        try:
            yield at
        finally:
            nursery.cancel_scope.cancel()
            listener.close()


@pytest.mark.parametrize("piece", [1, 3, 1000])
async def test_every_kind_on_one_port(piece: int) -> None:
    async with house() as at:
        for data in (connect_bytes(48), connect_bytes(502), encode_preamble(b"token") + b"hello"):
            async with raw_client(at.location) as client:
                for start in range(0, len(data), piece):
                    await client.send(data[start : start + piece])
                assert await client.receive() in (connectok_bytes(version=48), connectok_bytes(), b"hello")
        assert at.seen == ["48", "502", "raw token"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "error: invalid data"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "error: invalid data"),
        (bytes(64), "error: invalid data"),
        (b"PYRO\x01\xf7" + bytes(40), "error: invalid protocol version: 503"),
        (b"PYR", "error: the stream ended inside a message"),
        (b"PYRO\x01\xf6", "error: the stream ended inside a message"),
        (connect_bytes(502)[:60], "error: the stream ended inside a message"),
        (b"", "None"),
    ],
)
async def test_strangers(data: bytes, expected: str) -> None:
    async with house() as at:
        async with raw_client(at.location) as client:
            await client.send(data)
            await client.stream.send_eof()
            await client.until_closed()
        assert at.seen == [expected]


@pytest.mark.parametrize("data", [b"PXRW" + bytes(124), b"PXRW\x00\x02" + bytes(122), b"PXRW\x00\x01", b"PXRX"])
async def test_bad_preambles_are_closed(data: bytes) -> None:
    async with house() as at:
        async with raw_client(at.location) as client:
            await client.send(data)
            await client.stream.send_eof()
            assert await client.until_closed() == b""
        assert not any(entry.startswith("raw") for entry in at.seen)


@pytest.mark.parametrize(("settings", "side"), [(Settings(), False), (Settings(hmac_key=b"key"), True)])
async def test_side_streams_that_nobody_takes(settings: Settings, side: bool) -> None:
    async with house(settings, side=side) as at:
        async with await open_side_stream(at.location, b"token") as stream:
            assert await stream.receive_some() == b""
        assert at.seen == []


@pytest.mark.parametrize("data", [b"", b"P", b"PYRO\x01\xf6", b"PXRW", encode_preamble(b"x")[:127]])
async def test_a_peer_that_says_too_little_is_not_waited_for(data: bytes) -> None:
    """The handshake's time is counted once, from accepting on; what a handler does with it is its own affair."""
    async with house(Settings(connect_timeout_s=0.05)) as at, raw_client(at.location) as client:
        await client.send(data)
        if data.startswith(b"PXRW"):
            assert await client.until_closed() == b""
            return
        with trio.fail_after(30):
            await until(lambda: at.open == 1)


async def test_too_many_half_open_connections_drop_the_oldest() -> None:
    async with house(Settings(max_half_open=2, connect_timeout_s=60)) as at:
        async with raw_client(at.location) as first, raw_client(at.location) as settled, raw_client(at.location):
            await until(lambda: at.open >= 0)
            await settled.send(connect_bytes(502))
            await settled.messages(502, 1)
            async with raw_client(at.location):
                assert await first.until_closed() == b"", "the oldest went"
                at.hold.set()
                assert await settled.until_closed() == b"", "those that are settled are not counted"
                assert at.seen == ["502"]


async def test_more_connections_than_allowed_wait_in_the_queue() -> None:
    async with house(Settings(max_connections=1, connect_timeout_s=60)) as at, raw_client(at.location) as first:
        await first.send(connect_bytes(502))
        await first.messages(502, 1)
        async with raw_client(at.location) as second:
            await second.send(connect_bytes(48))
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert at.seen == ["502"]
            at.hold.set()
            assert len(await second.messages(48, 1)) == 1
            assert at.seen == ["502", "48"]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED])
async def test_accepting_survives_errors(
    monkeypatch: pytest.MonkeyPatch, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listen, "PAUSE_S", 0.001)
    failures = 3

    class Failing(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError(code, "injected")
            return super().accept()

    plain = bind_tcp("localhost", 0)
    listener = Failing(fileno=plain.detach())
    at = House()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_connections([listener], at.connection, settings=Settings()))
        async with raw_client(f"127.0.0.1:{listener.getsockname()[1]}") as client:
            await client.send(connect_bytes(502))
            assert len(await client.messages(502, 1)) == 1
        nursery.cancel_scope.cancel()
    listener.close()
    assert failures == 0
    assert len(caplog.records) == (2 if code != errno.ECONNABORTED else 0)  # and "again", the rest held back


async def test_a_handler_that_fails_ends_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    listener = bind_tcp("localhost", 0)
    calls = 0

    async def handler(connection: Connection) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("a bug")
        await connection.finish(b"fine")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_connections([listener], handler, settings=Settings()))
        location = f"127.0.0.1:{listener.getsockname()[1]}"
        for expected in (b"", b"fine"):
            async with raw_client(location) as client:
                await client.send(connect_bytes(502))
                await client.stream.send_eof()
                assert await client.until_closed() == expected
        nursery.cancel_scope.cancel()
    listener.close()
    assert "unexpected error" in caplog.text


async def test_closing_the_listener_ends_accepting_and_leaves_connections_alone() -> None:
    async with house() as at, raw_client(at.location) as client:
        await client.send(connect_bytes(502))
        await client.messages(502, 1)
        assert at.listener is not None
        trio.lowlevel.notify_closing(at.listener)
        at.listener.close()
        await trio.testing.wait_all_tasks_blocked()
        assert at.open == 1
        with pytest.raises(OSError, match="connect"):
            async with raw_client(at.location):
                pass


@pytest.mark.parametrize("inherited", [False, True])
async def test_accepted_connections_have_the_options_of_a_connection(inherited: bool) -> None:
    """Whether their listener handed them on, or was made elsewhere and has none."""
    wanted = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    ]
    found: list[list[int]] = []

    async def handler(connection: Connection) -> None:
        found.append([connection.sock.getsockopt(*option) for option in wanted])

    listener = socket.create_server(("127.0.0.1", 0)) if inherited else bind_tcp("127.0.0.1", 0)
    listener.setblocking(False)
    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve_connections([listener], handler, settings=Settings()))
            async with await trio.open_tcp_stream("127.0.0.1", listener.getsockname()[1]) as client:
                await client.send_all(connect_bytes())
                await until(lambda: found)
            nursery.cancel_scope.cancel()
    assert found == [[1, 1, KEEPALIVE_IDLE_S]]


WHOSE: ContextVar[str] = ContextVar("whose", default="nobody's")


@asynccontextmanager
async def spoken_before(count: int, *, silent: int = 0) -> AsyncIterator[socket.socket]:
    """A listener with clients that have spoken, behind those that have not, before anybody accepts."""
    with bind_tcp("127.0.0.1", 0) as listener, ExitStack() as clients:
        for number in range(silent + count):
            client = clients.enter_context(socket.create_connection(listener.getsockname()))
            if number >= silent:
                client.sendall(connect_bytes())
        yield listener


async def test_who_has_spoken_already_costs_no_task() -> None:
    tasks: list[trio.lowlevel.Task] = []

    async def handler(connection: Connection) -> None:
        assert isinstance(connection.receive_nowait(), Message)
        tasks.append(trio.lowlevel.current_task())

    async with spoken_before(3) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_connections([listener], handler, settings=Settings()))
        await until(lambda: len(tasks) == 3)
        nursery.cancel_scope.cancel()
    assert len(set(tasks)) == 1


async def test_who_is_silent_holds_up_nobody() -> None:
    seen: list[object] = []

    async def handler(connection: Connection) -> None:
        seen.append(await connection.receive())
        await trio.sleep_forever()

    async with spoken_before(3, silent=3) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_connections([listener], handler, settings=Settings()))
        await until(lambda: len(seen) == 3)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("waits", [False, True])
async def test_a_connection_sees_no_context_variable_of_another(waits: bool) -> None:
    seen: list[str] = []

    async def handler(connection: Connection) -> None:
        seen.append(WHOSE.get())
        WHOSE.set("a client's")
        if waits:
            await trio.lowlevel.checkpoint()
        assert WHOSE.get() == "a client's"

    async with spoken_before(3) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_connections([listener], handler, settings=Settings()))
        await until(lambda: len(seen) == 3)
        nursery.cancel_scope.cancel()
    assert seen == ["nobody's"] * 3


async def test_many_that_connect_at_once_leave_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "ACCEPTS_IN_A_ROW", 2)
    seen, looks = [0], set()

    async def handler(connection: Connection) -> None:
        seen[0] += 1

    async with spoken_before(10) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_connections([listener], handler, settings=Settings()))
        while seen[0] < 10:
            looks.add(seen[0])
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert looks - {0}  # how many of them depends on who of a round comes first


async def test_a_bug_in_a_handler_that_does_not_wait_ends_its_connection_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[Connection] = []

    async def handler(connection: Connection) -> None:
        calls.append(connection)
        raise KeyError("a bug")

    async with spoken_before(3) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_connections([listener], handler, settings=Settings()))
        await until(lambda: len(calls) == 3)
        nursery.cancel_scope.cancel()
    assert caplog.text.count("unexpected error") == 3
