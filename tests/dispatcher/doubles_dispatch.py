"""Peers that do exactly what a test says: a client and a backend that exchange messages, not values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from pyroxfer_core import (
    Connection,
    SerializedBlob,
    Settings,
    bind_tcp,
    expose,
    introduce,
    open_connection,
    serve_connections,
)
from pyroxfer_core.errors import PyroError
from pyroxfer_core.wire import Body, Flags, Message, MessageType, codec_for, write_blob_info
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.admission import Admission, Limits
from pyroxfer_dispatcher.backends import Backend, BackendGroup
from pyroxfer_dispatcher.balance import RoundRobin
from pyroxfer_dispatcher.config import Config, parse_config
from pyroxfer_dispatcher.control import ask_control
from pyroxfer_dispatcher.ejection import Ejection
from pyroxfer_dispatcher.routes import Party, Service

POISON = bytes(range(256)) * 4
"""No serializer reads this: whoever tries to decode it fails."""
OBJECT = "pyroxfer.dispatcher"
IN_TURN = 'policy = "round-robin"\n'
PARTY = Party("127.0.0.1:1")
WELCOME = b"{'handshake':'hello','meta':{'methods':['process'],'oneway':[],'attrs':[]}}"

Script = Callable[[Connection, Message], Awaitable[None]]


class RawBackend:
    """Greets, keeps every message, and lets ``script`` answer."""

    def __init__(self, script: Script, speaks: tuple[int, ...] = (48, 502)) -> None:
        self._script = script
        self._speaks = speaks
        self._listener = bind_tcp("localhost", 0)
        self.port = self._listener.getsockname()[1]
        self.seen: list[Message] = []
        self.versions: list[int] = []
        self.connections: set[Connection] = set()
        self.is_full = False
        """Refuses connections like a stock server whose threads are all busy."""
        self._running = trio.CancelScope()

    @property
    def uri(self) -> str:
        return f"PYRO:worker@localhost:{self.port}"

    def drop_all(self) -> None:
        """Close every connection, as a restart or an idle time-out does."""
        for connection in tuple(self.connections):
            connection.close()

    def die(self) -> None:
        """What the kernel does when the process is killed."""
        self._running.cancel()
        self.drop_all()
        self._listener.close()

    async def serve(self) -> None:
        with self._running:
            await serve_connections([self._listener], self._serve, settings=Settings())

    async def _serve(self, connection: Connection) -> None:
        first = await connection.receive()
        if first is None:
            return  # it was given up before it spoke
        assert isinstance(first, Message)
        version = connection.codec.version
        if version not in self._speaks:
            other = codec_for(self._speaks[0])
            await connection.finish(other.encode(Message(MessageType.CONNECTFAIL, 0, "serpent", 0, b"'other'")))
            return
        self.connections.add(connection)
        try:
            await self._greet(connection, first)
            await self._talk(connection)
        except PyroError:
            pass  # the dispatcher left, or the test closed this end
        finally:
            connection.close()
            self.connections.discard(connection)

    async def _greet(self, connection: Connection, hello: Message) -> None:
        assert b"'worker'" in hello.body or b"nobody" in hello.body, "CONNECT is in serpent and names the object"
        if self.is_full or b"nobody" in hello.body:
            text = b"'no free workers'" if self.is_full else b"'unknown object'"
            kind, body, flags = MessageType.CONNECTFAIL, text, 0
        else:
            kind, body, flags = MessageType.CONNECTOK, WELCOME, hello.flags & Flags.META_ON_CONNECT
        await connection.send(Message(kind, hello.seq, "serpent", flags, body))

    async def _talk(self, connection: Connection) -> None:
        connection.decoder.max_message = Settings().max_message_bytes
        while (event := await connection.receive()) is not None:
            assert isinstance(event, Message)
            self.seen.append(event)
            self.versions.append(connection.codec.version)
            await self._script(connection, event)


@asynccontextmanager
async def raw_backend(script: Script, speaks: tuple[int, ...] = (48, 502)) -> AsyncIterator[RawBackend]:
    """A raw backend that serves inside the block."""
    backend = RawBackend(script, speaks)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.serve)
        try:
            yield backend
        finally:
            backend.die()


def answer_to(request: Message, body: Body = POISON, flags: int = 0, **annotations: bytes) -> Message:
    return Message(
        MessageType.RESULT,
        request.seq,
        request.serializer,
        flags,
        body,
        dict(annotations),
        request.correlation_id,
    )


async def echo(connection: Connection, request: Message) -> None:
    """The body back as it came, and the request's flag for compression with it."""
    await connection.send(answer_to(request, request.body, request.flags & Flags.COMPRESSED))


async def pong(connection: Connection, request: Message) -> None:
    """As `echo`, for a backend that is asked now and then whether it lives."""
    if request.type == MessageType.PING:
        await connection.send(Message(MessageType.PING, request.seq, request.serializer, 0, b"pong"))
    else:
        await connection.send(answer_to(request, request.body))


def held(release: trio.Event) -> Script:
    """As `echo`, once it may."""

    async def hold(connection: Connection, request: Message) -> None:
        await release.wait()
        await echo(connection, request)

    return hold


@expose
class Doubler:
    """What blobs and led clients reach."""

    async def process(self, blob: SerializedBlob) -> str:
        return "done"

    async def double(self, number: int) -> int:
        return 2 * number


@asynccontextmanager
async def raw_client(location: str, version: int = 502, object_id: str = OBJECT) -> AsyncIterator[Connection]:
    """A client after its handshake."""
    connection = await open_connection(location, version=version)
    try:
        await introduce(connection, object_id, Settings())
        yield connection
    finally:
        connection.close()


@asynccontextmanager
async def client_of(location: str, version: int = 502, object_id: str = "worker") -> AsyncIterator[Connection]:
    """One that knows nothing of the dispatcher."""
    async with raw_client(location, version, object_id) as connection:
        yield connection


def blob(
    seq: int = 1,
    body: Body = POISON,
    *,
    topic: object = "orders",
    serializer: str = "serpent",
    flags: int = 0,
    **annotations: bytes,
) -> Message:
    return Message(
        MessageType.INVOKE,
        seq,
        serializer,
        flags | Flags.KEEPSERIALIZED,
        body,
        {"BLBI": write_blob_info(topic, OBJECT, "process"), **annotations},
        bytes(range(16)),
    )


def call(seq: int = 1, body: bytes = POISON, flags: int = 0, **annotations: bytes) -> Message:
    """A call of a client that is led."""
    return Message(MessageType.INVOKE, seq, "serpent", flags, body, dict(annotations), bytes(range(16)))


async def ask(connection: Connection, request: Message) -> Message:
    """One call of a raw client."""
    await connection.send(request)
    answer = await connection.receive()
    assert isinstance(answer, Message), f"instead of an answer came {answer}"
    return answer


def no_more(call: Callable[[float], None]) -> None:
    raise AssertionError("nobody waits")


def service_of(*backends: Backend, name: str = "orders", limits: Limits = Limits(), **more: Any) -> Service:  # noqa: B008
    """A service whose backends get their calls in turn, and whose queue is asked by nobody."""
    group = BackendGroup(backends, RoundRobin(0.0))
    return Service(name, Admission(name, group, limits, no_more), Ejection(group), **more)


def config_for(*uris: Any, head: str = "", service: str = "", backend: str = "") -> Config:
    """A configuration on a free port with one service ``orders`` on backends b0, b1, … that are taken in turn."""
    backends = "".join(
        f'[[services.backends]]\nname = "b{n}"\nuri = "{uri}"\n{backend}\n' for n, uri in enumerate(uris)
    )
    return parse_config(
        f'listen = "localhost:0"\n{head}\n[[services]]\nname = "orders"\n{IN_TURN}{service}\n{backends}'
    )


def led_config_for(*uris: object, head: str = "", service: str = "") -> Config:
    """A configuration whose service ``work`` leads clients to an object ``worker`` of backends b0, b1, …"""
    backends = "".join(f'[[services.backends]]\nname = "b{n}"\nuri = "{uri}"\n' for n, uri in enumerate(uris))
    return parse_config(
        f'listen = "localhost:0"\n{head}\n[[services]]\nname = "work"\nobjects = ["worker"]\n{service}\n{backends}'
    )


async def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something is true that happens on the other side of a socket; at most 20 s."""
    for _ in range(2000):
        if condition():
            return
        await trio.sleep(0.01)
    raise AssertionError("it did not happen")


def text_of(answer: Message) -> str:
    """What an error of the dispatcher's own says; its body is the only one here that can be read."""
    assert answer.type == MessageType.RESULT
    assert answer.flags & Flags.EXCEPTION
    return bytes(answer.body).decode()


async def end_of(connection: Connection) -> bool:
    """Whether the peer closed, orderly or not."""
    try:
        return await connection.receive() is None
    except PyroError:
        return True


async def http(
    dispatcher: Dispatcher, path: str, *headers: str, method: str = "GET", body: str = "", host: str = "localhost"
) -> tuple[int, str]:
    """Status and body of one request."""
    address, _, port = str(dispatcher.admin_location).rpartition(":")
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}:{port}", "connection: close", *headers]
    if body:
        lines.append(f"content-length: {len(body)}")
    with trio.fail_after(10):
        async with await trio.open_tcp_stream(address, int(port)) as stream:
            await stream.send_all(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
            answer = b"".join([data async for data in stream])
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), rest.decode()


Ask = Callable[..., Any]


@asynccontextmanager
async def operated(
    tmp_path: Path, *backends: RawBackend, head: str = "", **more: Any
) -> AsyncIterator[tuple[Dispatcher, Ask]]:
    """A dispatcher with a control socket, and a function that asks there and gives all answers."""
    path = str(tmp_path / "control")
    config = config_for(*[backend.uri for backend in backends], head=f'control = "{path}"\n{head}', **more)

    async def ask_there(do: str, **request: Any) -> list[dict[str, Any]]:
        with trio.fail_after(20):
            return await trio.to_thread.run_sync(lambda: list(ask_control(path, {"do": do, **request})))

    async with Dispatcher(config) as dispatcher:
        yield dispatcher, ask_there
