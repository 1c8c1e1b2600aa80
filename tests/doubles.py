"""Doubles shared by the tests: raw peers that say any bytes, and a relay that breaks when it is told to."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import trio

from pyroxfer_core.uri import Uri
from pyroxfer_core.wire import Decoder, codec_for
from pyroxfer_core.wire.message import Flags, Message, MessageType

VECTORS = Path(__file__).parent / "vectors"


def malformed_vectors(name: str) -> list[dict[str, Any]]:
    """The recorded malformed conversations of ``pyro4`` or ``pyro5``."""
    data = json.loads((VECTORS / f"{name}-malformed.json").read_text())
    vectors: list[dict[str, Any]] = data["vectors"]
    return vectors


def connect_bytes(version: int = 502, object_id: str = "thing", seq: int = 0) -> bytes:
    """CONNECT as a stock client writes it."""
    body = f"# serpent utf-8 python3.2\n{{'handshake':'hello','object':'{object_id}'}}".encode()
    flags = Flags.META_ON_CONNECT if version == 48 else 0
    return codec_for(version).encode(Message(MessageType.CONNECT, seq, "serpent", flags, body))


def invoke_bytes(method: str, args: str = "()", version: int = 502, seq: int = 1, flags: int = 0) -> bytes:
    """INVOKE as a stock client writes it; ``args`` is the text of a tuple."""
    body = f"# serpent utf-8 python3.2\n('thing','{method}',{args},{{}})".encode()
    return codec_for(version).encode(Message(MessageType.INVOKE, seq, "serpent", flags, body))


def result_bytes(value: str, seq: int = 1, version: int = 502, flags: int = 0) -> bytes:
    """RESULT with the text of a value."""
    body = f"# serpent utf-8 python3.2\n{value}".encode()
    return codec_for(version).encode(Message(MessageType.RESULT, seq, "serpent", flags, body))


def connectok_bytes(methods: str = "{'echo'}", version: int = 502) -> bytes:
    """CONNECTOK as a stock daemon writes it."""
    meta = f"{{'methods':{methods},'oneway':(),'attrs':()}}"
    body = f"# serpent utf-8 python3.2\n{{'handshake':'hello','meta':{meta}}}".encode()
    flags = Flags.META_ON_CONNECT if version == 48 else 0
    return codec_for(version).encode(Message(MessageType.CONNECTOK, 0, "serpent", flags, body))


class RawClient:
    """A peer that sends any bytes, and reads messages or whatever comes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def messages(self, version: int, count: int) -> list[Message]:
        """The next messages; fewer when the other side closes."""
        decoder = Decoder(codec_for(version))
        found: list[Message] = []
        while len(found) < count:
            event = decoder.next_event()
            if event is None:
                data = await self.receive()
                if not data:
                    break
                decoder.feed(data)
            else:
                assert isinstance(event, Message)
                found.append(event)
        return found

    async def say_all(self, data: bytes) -> bytes:
        """Send, end the stream, and return whatever came back."""
        try:
            await self.send(data)
            await self.stream.send_eof()
        except trio.BrokenResourceError:
            return b""
        return await self.until_closed()

    async def until_closed(self) -> bytes:
        """Everything that still comes."""
        data = b""
        while more := await self.receive():
            data += more
        return data

    async def receive(self) -> bytes:
        """What comes next; empty at the end."""
        try:
            return bytes(await self.stream.receive_some(65536))
        except trio.BrokenResourceError:  # a reset is a close, too
            return b""


def damaged_session(random: Random) -> bytes:
    """A whole session of a stock client with some bytes changed, lost or added."""
    version = random.choice([48, 502])
    session = bytearray(
        connect_bytes(version)
        + invoke_bytes("echo", "({'a':[1,2.5,'x']},)", version)
        + invoke_bytes("add", "(1,2)", version, seq=2, flags=random.choice([0, Flags.ONEWAY, Flags.BATCH]))
    )
    for _ in range(random.randint(1, 6)):
        place = random.randrange(len(session))
        if random.random() < 0.7:
            session[place] = random.randrange(256)
        elif random.random() < 0.5:
            del session[place : place + random.randrange(40)]
        else:
            session[place:place] = random.randbytes(random.randrange(40))
    return bytes(session)


@asynccontextmanager
async def raw_client(location: str) -> AsyncIterator[RawClient]:
    """Connect to a daemon's location without saying anything."""
    uri = Uri(f"PYRO:x@{location}")
    if uri.sockname is not None:
        async with await trio.open_unix_socket(uri.sockname) as stream:
            yield RawClient(stream)
        return
    assert uri.host is not None
    assert uri.port is not None
    async with await trio.open_tcp_stream(uri.host, uri.port) as stream:
        yield RawClient(stream)


@asynccontextmanager
async def fake_server(play: Callable[[RawClient], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that does ``play`` with each connection, and closes it then; gives its location."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await play(RawClient(stream))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = next(at.socket.getsockname()[1] for at in listeners if at.socket.getsockname()[0] == "0.0.0.0")
        try:
            yield f"127.0.0.1:{port}"
        finally:
            nursery.cancel_scope.cancel()


@dataclass
class Cut:
    """Where a relay breaks the next connection: after so many bytes of a direction."""

    to_server: float = math.inf
    to_client: float = math.inf


class FaultProxy:
    """A relay to a daemon. The connection made first breaks as ``cut`` says; later ones are whole.

    ``counted`` is what that first connection carried: bytes to the server and bytes to the client.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self.cut: Cut | None = None
        self.counted = [0, 0]
        self._watched: Cut | None = None
        self._changed = trio.Event()
        self._open = trio.Event()
        self._open.set()
        self.location = ""
        self.connections = 0

    def cut_next(self, to_server: float = math.inf, to_client: float = math.inf) -> None:
        """Break the next connection after so many bytes of a direction."""
        self.cut = Cut(to_server, to_client)

    def cut_in(self, to_server: float = math.inf, to_client: float = math.inf) -> None:
        """Break the connection that `cut_next` was meant for after so many bytes more."""
        assert self._watched is not None
        self._watched.to_server = self.counted[0] + to_server
        self._watched.to_client = self.counted[1] + to_client
        self._changed.set()

    def hold(self) -> None:
        """Pass nothing on any more, without closing anything."""
        self._open = trio.Event()

    async def _serve(self, client: trio.SocketStream) -> None:
        self.connections += 1
        cut, self.cut = self.cut, None
        uri = Uri(f"PYRO:x@{self._target}")
        assert uri.host is not None
        assert uri.port is not None
        try:
            server = await trio.open_tcp_stream(uri.host, uri.port)
        except OSError:
            await client.aclose()
            return
        counted = [0, 0]
        if cut is None:
            cut = Cut()
        else:
            self.counted, self._watched, self._changed = counted, cut, trio.Event()
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._relay, client, server, cut, counted, 0, nursery)
            nursery.start_soon(self._relay, server, client, cut, counted, 1, nursery)
            nursery.start_soon(self._cut_at_once, cut, counted, nursery)

    async def _cut_at_once(self, cut: Cut, counted: list[int], nursery: trio.Nursery) -> None:
        """A limit that is set when it is reached already needs no byte to come."""
        if cut is self._watched:
            await self._changed.wait()
            if counted[0] >= cut.to_server or counted[1] >= cut.to_client:
                nursery.cancel_scope.cancel()

    async def _relay(
        self,
        source: trio.SocketStream,
        target: trio.SocketStream,
        cut: Cut,
        counted: list[int],
        direction: int,
        nursery: trio.Nursery,
    ) -> None:
        """Pass bytes on until the limit; then both sides are closed at once."""
        try:
            while (limit := cut.to_client if direction else cut.to_server) > counted[direction]:
                data = await source.receive_some(65536)
                if not data:
                    break
                await self._open.wait()
                limit = cut.to_client if direction else cut.to_server
                data = data[: int(min(len(data), limit - counted[direction]))]
                await target.send_all(data)
                counted[direction] += len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def fault_proxy(target: str) -> AsyncIterator[FaultProxy]:
    """A relay in front of a daemon's location."""
    relay = FaultProxy(target)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, relay._serve, 0)
        port = next(at.socket.getsockname()[1] for at in listeners if at.socket.getsockname()[0] == "0.0.0.0")
        relay.location = f"127.0.0.1:{port}"
        try:
            yield relay
        finally:
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Wait until something that other tasks bring about is true; the test's own time limit ends it otherwise."""
    for _ in itertools.count():
        if condition():
            return
        await trio.sleep(0.001)


async def run(member: Any, *args: Any) -> Any:
    """A call as a function that a nursery can start."""
    return await member(*args)
