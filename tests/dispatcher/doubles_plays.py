"""What plays are written with: events and commands of the pure parts, and the stage for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from doubles_dispatch import PARTY, service_of

from pyroxfer_core import Uri
from pyroxfer_core.wire import Body, Flags, Message, MessageType, write_blob_info
from pyroxfer_dispatcher.backends import Backend
from pyroxfer_dispatcher.commands import Command, Forward, OpenBackend
from pyroxfer_dispatcher.dialects import BlobDialect
from pyroxfer_dispatcher.events import BackendOpened, BlobArrived, Event, RequestSent
from pyroxfer_dispatcher.forwarding import Forwarding
from pyroxfer_dispatcher.frames import Sealed
from pyroxfer_dispatcher.relay import Relay
from pyroxfer_dispatcher.routes import Directory, RouteTable, Service

Play = list[tuple[Event, list[Command]]]


POISON = bytes(range(256))
"""No serializer reads this: whoever tries fails."""


CORRELATION = bytes(range(16))


NOTHING: Mapping[str, Body] = {}


class Stage:
    """Two services: ``orders`` on backends a and b, ``mail`` on c alone, where the method is always ``deliver``."""

    def __init__(self) -> None:
        self.a, self.b, self.c = (
            Backend(name, Uri(f"PYRO:{name}@localhost:{port}")) for port, name in enumerate("abc")
        )
        orders = service_of(self.a, self.b)
        mail = service_of(self.c, name="mail", method="deliver")
        routes = RouteTable({"orders.*": "orders", "mail": "mail"})
        self.directory = Directory("dispatcher", routes, {"orders": orders, "mail": mail})
        self.forwarding = Forwarding(BlobDialect(self.directory), 502, PARTY)
        self.now = 0.0

    def perform(self, play: Play) -> None:
        for event, expected in play:
            assert self.forwarding.handle(event, self.now) == expected, f"after {event}"

    @property
    def in_flight(self) -> list[int]:
        return [backend.in_flight for backend in (self.a, self.b, self.c)]


def request(
    info: object = "orders.new",
    *,
    seq: int = 7,
    body: Body = POISON,
    flags: int = Flags.KEEPSERIALIZED,
    object_id: str = "dispatcher",
    serializer: str = "json",
    annotations: Mapping[str, Body] = NOTHING,
) -> Message:
    blob = {"BLBI": write_blob_info(info, object_id, "process")} if flags & Flags.KEEPSERIALIZED else {}
    return Message(MessageType.INVOKE, seq, serializer, flags, body, {**blob, **annotations}, CORRELATION)


def forwarded(
    original: Message, seq: int, object_id: str, *, info: object = "orders.new", method: str = "process"
) -> Message:
    annotations: dict[str, Body] = dict(original.annotations)
    if original.flags & Flags.KEEPSERIALIZED:
        annotations["BLBI"] = write_blob_info(info, object_id, method)
    return Message(
        MessageType.INVOKE, seq, original.serializer, original.flags, original.body, annotations, CORRELATION
    )


def reply(seq: int, flags: int = 0, body: Body = POISON, annotations: Mapping[str, Body] = NOTHING) -> Message:
    return Message(MessageType.RESULT, seq, "json", flags, body, dict(annotations), CORRELATION)


def called(stage: Stage, asked: Message, backend: Backend, *, link_seq: int = 1) -> Play:
    """The scenes up to a request that was sent whole."""
    return [
        (BlobArrived(asked), [OpenBackend(backend, 502)]),
        (BackendOpened(link_seq, "obj", 502), [Forward(forwarded(asked, link_seq, "obj"))]),
        (RequestSent(), []),
    ]


def with_service(stage: Stage, **more: Any) -> Service:
    """Another ``orders`` for this stage."""
    service = service_of(stage.a, stage.b, **more)
    directory = Directory("dispatcher", RouteTable({"orders.*": "orders"}), {"orders": service})
    stage.forwarding = Forwarding(BlobDialect(directory), 502, PARTY)
    return service


def stream_reply(seq: int, stream: bytes) -> Message:
    return reply(seq, Flags.EXCEPTION | Flags.ITEMSTREAM, annotations={"STRM": stream})


def item(seq: int, flags: int = 0) -> Message:
    return Message(MessageType.INVOKE, seq, "json", flags, POISON, {}, CORRELATION)


def sealed(kind: int, seq: int, flags: int = 0) -> Sealed:
    return Sealed(kind, seq, "serpent", flags, b"", {}, None, b"x")


def never(verdict: object) -> None:
    raise AssertionError("no call waits")


def said(relay: Relay, request: Sealed, end: int) -> None:
    """The client sends a message, which is handed over; ``end`` 0: only its beginning."""
    assert relay.asked(request, 0.0)
    if end:
        relay.handed_over(request, end, 0.0)
