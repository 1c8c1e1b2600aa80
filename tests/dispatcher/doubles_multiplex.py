"""A dispatcher with a client of ours that has several blobs in flight on one connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from doubles_dispatch import OBJECT, config_for

from pyroxfer_core import (
    Connection,
    Daemon,
    SerializedBlob,
    Settings,
    behavior,
    expose,
    introduce,
    oneway,
    open_connection,
)
from pyroxfer_core.wire import FEATURES_KEY, Feature, Flags, Grant, Message, MessageType, write_blob_info
from pyroxfer_dispatcher import Dispatcher
from pyroxfer_dispatcher.backends import Backend
from pyroxfer_dispatcher.multiplex import Multiplexed

MANY = 64
MIB = 1024 * 1024
METHODS = 'methods = ["process", "hang", "meet", "note", "count", "texts"]\noneway = ["note"]\n'


@expose
@behavior(instance_mode="single")
class Worker:
    """Whose calls can wait for each other."""

    def __init__(self, meeting: int = MANY) -> None:
        self.meeting = meeting
        self.gate = trio.Event()
        self.met = trio.Event()
        self.begun: list[object] = []
        self.running = self.most = self.cancelled = 0

    async def process(self, blob: SerializedBlob) -> object:
        """Answer at once."""
        return blob.deserialized()

    async def hang(self, blob: SerializedBlob) -> object:
        """Answer when it may."""
        self.begun.append(blob.deserialized())
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return blob.deserialized()

    async def meet(self, blob: SerializedBlob) -> object:
        """Answer when as many calls have come as are to meet."""
        self.begun.append(blob.deserialized())
        if len(self.begun) == self.meeting:
            self.met.set()
        await self.met.wait()
        return blob.deserialized()

    @oneway
    async def note(self, blob: SerializedBlob) -> None:
        """Keep it."""
        self.begun.append(blob.deserialized())

    async def count(self, blob: SerializedBlob) -> AsyncIterator[int]:
        """An item stream."""
        for number in range(int(blob.deserialized())):
            yield number

    async def texts(self, blob: SerializedBlob) -> str:
        """A large answer."""
        return "x" * int(blob.deserialized())


def order(value: object) -> SerializedBlob:
    return SerializedBlob("orders", value)


@asynccontextmanager
async def dispatched(
    workers: list[Worker], *, service: str = "", backend: str = "", head: str = ""
) -> AsyncIterator[Dispatcher]:
    """A dispatcher whose back ends are real daemons."""
    daemons = [Daemon() for _ in workers]
    async with trio.open_nursery() as nursery:
        ending = trio.Event()

        async def serve(daemon: Daemon, worker: Worker, *, task_status: trio.TaskStatus[object]) -> None:
            async with daemon:
                task_status.started(daemon.register(worker, "worker"))
                await ending.wait()

        uris = [await nursery.start(serve, *pair) for pair in zip(daemons, workers, strict=True)]
        config = config_for(*uris, head=METHODS + head, service=service, backend=backend)
        async with Dispatcher(config) as dispatcher:
            yield dispatcher
        ending.set()


def backends_of(dispatcher: Dispatcher) -> tuple[Backend, ...]:
    return dispatcher.directory.services["orders"].group.backends


def in_flight(dispatcher: Dispatcher) -> int:
    return sum(backend.in_flight for backend in backends_of(dispatcher))


def guest_of(dispatcher: Dispatcher) -> Multiplexed:
    """The only client."""
    [guest] = dispatcher._reception.conversations
    assert isinstance(guest, Multiplexed)
    return guest


class Agreed:
    """A client of ours, message by message."""

    def __init__(self, connection: Connection, grant: Grant) -> None:
        self.connection = connection
        self.grant = grant
        self._confirms = True

    async def send(self, message: Message) -> None:
        if self._confirms and message.type in (MessageType.INVOKE, MessageType.BEGIN):
            message.annotations[FEATURES_KEY] = self.grant.confirmation
            self._confirms = False
        await self.connection.send(message)

    async def receive(self) -> Message:
        answer = await self.connection.receive()
        assert isinstance(answer, Message), f"instead of an answer came {answer}"
        return answer

    def outcome(self, answer: Message) -> str | None:
        return self.grant.read_outcome(answer.annotations.get("PXOC"))


@asynccontextmanager
async def agreed_client(dispatcher: Dispatcher, offer: int = Feature.ALL) -> AsyncIterator[Agreed]:
    connection = await open_connection(dispatcher.location, version=502)
    try:
        welcome = await introduce(connection, dispatcher.config.object, Settings(), offer=offer)
        yield Agreed(connection, welcome.grant)
    finally:
        connection.close()


def piece(number: int, body: bytes) -> Message:
    return Message(MessageType.PIECE, number, "ping", 0, body)


def hang(seq: int, method: str = "hang", topic: str = "orders") -> Message:
    """A call in a form that a real daemon can read."""
    body = f"# serpent utf-8 python3.2\n('','{method}',{seq},{{}})".encode()
    annotations = {"BLBI": write_blob_info(topic, OBJECT, method)}
    return Message(MessageType.INVOKE, seq, "serpent", Flags.KEEPSERIALIZED, body, dict(annotations))
