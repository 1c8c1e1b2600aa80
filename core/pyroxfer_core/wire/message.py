"""The neutral message: one set of values for protocol 48 and protocol 502.

Flag and serializer *numbers* differ between the protocols (4 is pickle in one and msgpack in the other), so they
live in the codecs; above them there are only the names and bits of this module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final


class MessageType:
    """Numbers of the message types; 1 to 6 are Pyro's, from 64 on ours (only after both sides agreed)."""

    CONNECT: Final = 1
    CONNECTOK: Final = 2
    CONNECTFAIL: Final = 3
    INVOKE: Final = 4
    RESULT: Final = 5
    PING: Final = 6
    CANCEL: Final = 64
    GOAWAY: Final = 65
    HEARTBEAT: Final = 66
    ALIVE: Final = 67
    SERVES: Final = 68
    BEGIN: Final = 69
    PIECE: Final = 70
    ITEMS: Final = 71
    CREDIT: Final = 72
    STOP: Final = 73


class Flags:
    """Neutral flag bits. Plain integers: enum arithmetic would cost more than a whole header."""

    EXCEPTION: Final = 0x01
    COMPRESSED: Final = 0x02
    ONEWAY: Final = 0x04
    BATCH: Final = 0x08
    ITEMSTREAM: Final = 0x10
    KEEPSERIALIZED: Final = 0x20
    META_ON_CONNECT: Final = 0x40
    """Protocol 48 only: the client asks for metadata in the handshake."""


Body = bytes | bytearray | memoryview


@dataclass(slots=True)
class Message:
    """One whole message, body collected and exactly as on the wire (still compressed).

    Not frozen only because a frozen dataclass costs three times as much to make; nothing mutates a received one.
    """

    type: int
    seq: int
    serializer: str
    """``serpent``, ``json``, ``marshal``, ``msgpack``, ``pickle``, ``dill``, ``cloudpickle``, ``ping`` (id 42), or
    ``unknown-N`` for any other number N of the wire."""
    flags: int
    body: Body
    annotations: dict[str, Body] = field(default_factory=dict)
    """Key (4 ASCII characters) to value, without protocol 48's ``CORR`` and ``HMAC``."""
    correlation_id: bytes | None = None
    """16 bytes of a UUID, or None."""


@dataclass(slots=True)
class Head:
    """The beginning of a message whose body is too large to collect: ``message.body`` is empty."""

    message: Message
    body_length: int
    """Bytes that follow in BodyPart events."""


@dataclass(slots=True)
class BodyPart:
    """At most 256 KiB of the body of the last Head."""

    data: Body


@dataclass(slots=True)
class End:
    """The body of the last Head is complete."""
