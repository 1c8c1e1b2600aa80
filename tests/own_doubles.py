"""Raw peers that have agreed on features: they say any message, and see every one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from doubles import fake_server

from pyroxfer_core.serializers import Serializer, SerializerContext, make_serializer
from pyroxfer_core.uri import Uri
from pyroxfer_core.wire import Decoder, codec_for
from pyroxfer_core.wire.features import Feature
from pyroxfer_core.wire.message import Body, Flags, Message, MessageType
from pyroxfer_core.wire.session import ClientSession, ServerSession

SERPENT = make_serializer("serpent", SerializerContext(502))
OWN: Serializer = make_serializer("msgpack", SerializerContext(502, own=True, out_of_band=True))
CODEC = codec_for(502)


class OwnRaw:
    """One end of a connection, after its handshake."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.decoder = Decoder(CODEC, collect=1 << 30)

    async def say(self, *messages: Message) -> None:
        await self.stream.send_all(b"".join(CODEC.encode(message) for message in messages))

    async def hear(self) -> Message | None:
        """The next message; None at the end."""
        while (event := self.decoder.next_event()) is None:
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                return None
            self.decoder.feed(data)
        assert isinstance(event, Message)
        return event

    async def expect(self, kind: int) -> Message:
        """The next message of this type; others before it are dropped."""
        while (message := await self.hear()) is not None:
            if message.type == kind:
                return message
        raise AssertionError(f"the connection ended before a message of type {kind}")


class OwnClient(OwnRaw):
    """A client that numbers its calls itself."""

    def __init__(self, stream: trio.SocketStream, object_id: str) -> None:
        super().__init__(stream)
        self.session: ClientSession[Any] = ClientSession()
        self.object_id = object_id

    async def greet(self) -> None:
        body = SERPENT.dumps({"handshake": "hello", "object": self.object_id})
        await self.say(self.session.connect(body, "serpent", 0, {}, None))
        answer = await self.hear()
        assert answer is not None
        self.session.receive(answer)
        assert self.session.grant.bits == Feature.ALL

    def invoke(self, method: str, *args: Any, flags: int = 0) -> Message:
        """A numbered call."""
        body = OWN.dumps_call(self.object_id, method, args, {})
        waiter = None if flags & Flags.ONEWAY else method
        return self.session.invoke(waiter, Message(MessageType.INVOKE, 0, "msgpack", flags, body))

    async def call(self, method: str, *args: Any) -> Any:
        """The result of a small call; other messages are dropped."""
        request = self.invoke(method, *args)
        await self.say(request)
        while True:
            answer = await self.expect(MessageType.RESULT)
            if answer.seq == request.seq:
                return OWN.loads(answer.body)


@asynccontextmanager
async def own_client(uri: Uri) -> AsyncIterator[OwnClient]:
    """A raw client of an object on a daemon of ours."""
    assert uri.host is not None
    assert uri.port is not None
    async with await trio.open_tcp_stream(uri.host, uri.port) as stream:
        client = OwnClient(stream, str(uri.object))
        await client.greet()
        yield client


class OwnServer(OwnRaw):
    """A daemon's end, which answers as the test says."""

    def __init__(self, stream: trio.SocketStream, offer: int) -> None:
        super().__init__(stream)
        self.session = ServerSession(bytes(16), offer)

    async def greet(self, methods: set[str]) -> None:
        hello = await self.hear()
        assert hello is not None
        self.session.receive(hello)
        meta = {"methods": methods, "oneway": set(), "attrs": set()}
        body = SERPENT.dumps({"handshake": "hello", "meta": meta})
        await self.say(self.session.accept(hello, body, {}, None))

    async def hear(self) -> Message | None:
        message = await super().hear()
        if message is not None and message.type != MessageType.CONNECT:
            self.session.receive(message)
        return message

    async def answer(self, request: Message, value: Any) -> None:
        await self.say(result(request.seq, OWN.dumps(value)))


def result(seq: int, body: Body, flags: int = 0) -> Message:
    return Message(MessageType.RESULT, seq, "msgpack", flags, body)


@asynccontextmanager
async def own_server(
    play: Callable[[OwnServer], Awaitable[None]], methods: set[str], offer: int = Feature.ALL
) -> AsyncIterator[str]:
    """A server that greets each connection and then does ``play`` with it; the URI of its object."""

    async def serve(raw: Any) -> None:
        server = OwnServer(raw.stream, offer)
        await server.greet(methods)
        await play(server)

    async with fake_server(serve) as location:
        yield f"PYRO:thing@{location}"
