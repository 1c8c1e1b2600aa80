"""A client that has said the usual before it is accepted is welcomed without a task; nothing else is seen of that."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from doubles import connect_bytes, invoke_bytes, raw_client, until

from pyroxfer_core import Connection, Daemon, Settings, expose, serve_connections
from pyroxfer_core.serializers.base import SerializerContext
from pyroxfer_core.serializers.factory import make_serializer
from pyroxfer_core.server.peer import Peer
from pyroxfer_core.transport import listen
from pyroxfer_core.transport.sockets import SPEAK_FIRST_S, bind_tcp
from pyroxfer_core.wire import codec_for
from pyroxfer_core.wire.message import Message, MessageType

USUAL = {"handshake": "hello", "object": "thing"}
SERIALIZERS = ("serpent", "json", "marshal", "msgpack")


class Thing:
    @expose
    async def echo(self, value: Any) -> Any:
        return value


class Looking(Daemon):
    """Looks at each client, and welcomes it as one does that does not look."""

    def validateHandshake(self, conn: Peer, data: Any) -> Any:
        return "hello"


def hello(name: str = "msgpack", value: object = USUAL, *, seq: int = 7, flags: int = 0, **more: Any) -> bytes:
    body = make_serializer(name, SerializerContext(502)).dumps(value)
    return codec_for(502).encode(Message(MessageType.CONNECT, seq, name, flags, body, **more))


UNUSUAL = {
    "another handshake": hello(value={"handshake": ["hello"], "object": "thing"}),
    "another object": hello(value={"handshake": "hello", "object": "nobody"}),
    "no object": hello(value={"handshake": "hello"}),
    "no text": hello(value={"handshake": "hello", "object": 5}),
    "a class": hello("json", {"handshake": "hello", "object": {"__class__": "x"}}),
    "not a dict": hello(value=["hello"]),
    "not the serializer": hello()[:7] + b"\1" + hello()[8:],
    "compressed": hello(flags=2),
    "annotated": hello(annotations={"XTRA": b"x"}),
    "not the first message": invoke_bytes("echo", "(1,)"),
    "protocol 48": connect_bytes(48),
    "rubbish": bytes(64),
    "with a call behind it": hello("serpent") + invoke_bytes("echo", "(1,)"),
}


@asynccontextmanager
async def serving(kind: type[Daemon], listener: socket.socket, **settings: Any) -> AsyncIterator[Daemon]:
    daemon = kind(listeners=[listener], settings=Settings(shutdown_grace_s=0, **settings))
    daemon.bind()
    daemon.register(Thing(), "thing")
    async with daemon:
        yield daemon


@asynccontextmanager
async def answers(kind: type[Daemon], said: bytes, **settings: Any) -> AsyncIterator[Callable[[], bytes]]:
    """A daemon with a client that has spoken before it accepts; gives what the client has got so far."""
    with bind_tcp("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        client.setblocking(False)
        got = b""

        def received() -> bytes:
            nonlocal got
            try:
                while more := client.recv(65536):
                    got += more
            except BlockingIOError:
                return b""
            return got

        async with serving(kind, listener, **settings):
            yield received


async def answer(kind: type[Daemon], said: bytes, **settings: Any) -> bytes:
    async with answers(kind, said, **settings) as received:
        got = b""

        def has_come() -> bool:
            nonlocal got
            got = received()
            return bool(got)

        await until(has_come)
        return got


@pytest.mark.parametrize("name", SERIALIZERS)
@pytest.mark.parametrize("correlation_id", [None, bytes(range(16))])
async def test_the_usual_is_answered_at_once_and_as_ever(
    name: str, correlation_id: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = hello(name, correlation_id=correlation_id)
    looked_at = await answer(Looking, said)
    monkeypatch.delattr(Peer, "greet")
    assert await answer(Daemon, said) == looked_at
    assert looked_at[6] == MessageType.CONNECTOK


@pytest.mark.parametrize(("kind", "seconds"), [(Daemon, SPEAK_FIRST_S), (Looking, 0)])
async def test_the_kernel_waits_for_the_first_words_where_they_are_enough(kind: type[Daemon], seconds: int) -> None:
    with bind_tcp("127.0.0.1", 0) as listener:
        async with serving(kind, listener):
            assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == seconds


@pytest.mark.parametrize("said", UNUSUAL.values(), ids=UNUSUAL)
async def test_anything_else_is_looked_at(said: bytes) -> None:
    assert await answer(Daemon, said) == await answer(Looking, said)


@pytest.mark.parametrize("changed", [{"accepted_serializers": frozenset({"json"})}, {"max_handshake_bytes": 16}])
async def test_what_the_settings_refuse_is_refused(changed: dict[str, Any]) -> None:
    refusal = await answer(Daemon, hello(), **changed)
    assert refusal == await answer(Looking, hello(), **changed)
    assert refusal[6] == MessageType.CONNECTFAIL


async def test_a_hook_that_one_daemon_was_given_is_asked() -> None:
    class Given(Daemon):
        """Has its hook since it was made, as a program sets one that does not derive a class."""

        def bind(self) -> None:
            super().bind()
            self.validateHandshake = refuse  # type: ignore[method-assign]  # what is tested

    def refuse(conn: Peer, data: Any) -> Any:
        raise ValueError("nobody comes in")

    refusal = await answer(Given, hello())
    assert refusal[6] == MessageType.CONNECTFAIL
    assert b"nobody comes in" in refusal


async def test_no_more_are_served_than_may_be_there() -> None:
    """Who leaves makes room; who has left before it was accepted takes none."""
    with bind_tcp("127.0.0.1", 0) as listener, ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(6)]
        for client in clients:
            client.sendall(hello())
        clients.pop(0).close()
        reset = clients.pop(0)
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.close()
        async with serving(Daemon, listener, max_connections=2) as daemon:
            for client in clients:
                client.setblocking(False)
                await trio.lowlevel.wait_readable(client)
                assert client.recv(65536)[6] == MessageType.CONNECTOK
                assert daemon.statistics().connections <= 2
                trio.lowlevel.notify_closing(client)
                client.close()
            await until(lambda: daemon.statistics().connections == 0)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ECONNABORTED, errno.EAGAIN])
async def test_accepting_survives_errors(
    code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listen, "PAUSE_S", 0.001)
    failures = [OSError(code, "injected") for _ in range(3)]

    class Failing(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            if failures:
                raise failures.pop()
            return super().accept()

    with Failing(fileno=bind_tcp("127.0.0.1", 0).detach()) as listener:
        listener.setblocking(False)
        async with serving(Daemon, listener) as daemon, raw_client(daemon.location) as client:
            await client.send(hello())
            assert (await client.messages(502, 1))[0].type == MessageType.CONNECTOK
    assert failures == []
    assert len(caplog.records) == (2 if code == errno.EMFILE else 0)  # and "again", the rest held back


async def test_a_daemon_that_gave_up_its_address_listens_there_no_more() -> None:
    """Though another process has the socket, too, so that clients still come: those that it has go on."""
    with bind_tcp("127.0.0.1", 0) as listener, listener.dup() as elsewhere:
        async with serving(Daemon, listener) as daemon, raw_client(daemon.location) as client:
            await client.send(hello("serpent"))
            await client.messages(502, 1)
            daemon.close()
            with socket.create_connection(elsewhere.getsockname()) as late:
                late.sendall(hello())
                await trio.testing.wait_all_tasks_blocked()
                await client.send(invoke_bytes("echo", "(1,)"))
                assert (await client.messages(502, 1))[0].type == MessageType.RESULT
                assert daemon.statistics().connections == 1


async def test_a_bug_ends_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Message] = []

    async def handler(connection: Connection) -> None:
        raise AssertionError("everything is taken at once")

    def buggy(message: Message, make: Callable[[], Connection]) -> bool:
        seen.append(message)
        if len(seen) > 1:
            make()
        raise KeyError("a bug")

    with bind_tcp("127.0.0.1", 0) as listener, ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(3)]
        for client in clients:
            client.sendall(hello())
        async with trio.open_nursery() as nursery:
            settings = Settings(max_connections=1)
            nursery.start_soon(lambda: serve_connections([listener], handler, settings=settings, at_once=buggy))
            await until(lambda: len(seen) == 3)
            nursery.cancel_scope.cancel()
        assert [client.recv(1) for client in clients] == [b""] * 3
    assert caplog.text.count("unexpected error") == 3


async def test_a_listener_that_another_process_has_shut_down_costs_no_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is looked at again now and then: otherwise the clock, which goes on only when nobody runs, would stand."""
    async with Daemon() as daemon:
        daemon.listeners[0].shutdown(socket.SHUT_RDWR)
        await trio.sleep(2)
