"""Large bodies in pieces, so that other messages get their turn between them. No I/O.

Layout: ``docs/protocol.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ..errors import ProtocolError
from .assembly import Assembly
from .buffers import recycle
from .codec import Codec
from .frame import body_size
from .message import Body, Flags, Message, MessageType
from .scattered import Scattered, buffers_of, joined, slices

MAX_PIECE: Final = 256 * 1024
"""Bytes of a piece; larger bodies are cut."""
MAX_BODIES: Final = 16
"""Incomplete bodies in one direction of a connection."""

MAX_SEGMENTS: Final = 2048
_SMALL_SEGMENT: Final = 4096
"""Neighbours up to this size become one segment."""

_BEGIN: Final = struct.Struct("!BBHI")


def begin(message: Message, number: int, segments: Sequence[int]) -> Message:
    """BEGIN in the place of a message whose body leaves in pieces under this number.

    Args:
        segments: lengths of the buffers in which the sender has the body; they add up to its length.
    """
    body = _BEGIN.pack(message.type, 0, number, sum(segments)) + struct.pack(f"!{len(segments)}I", *segments)
    return replace(message, type=MessageType.BEGIN, body=body)


def read_begin(begin: Message, allowed: Container[int]) -> tuple[Message, int, list[int]]:
    """Of a BEGIN: the message in whose place it stands, without body, the body's number, and its segments' lengths.

    Args:
        allowed: types of the messages that may come in pieces.

    Raises:
        ProtocolError: it is malformed.
    """
    head = bytes(begin.body)
    if not 0 < len(head) - _BEGIN.size <= 4 * MAX_SEGMENTS or len(head) % 4:
        raise ProtocolError("malformed BEGIN")
    kind, reserved, number, size = _BEGIN.unpack_from(head)
    segments = [length for (length,) in struct.iter_unpack("!I", head[_BEGIN.size :])]
    if kind not in allowed or reserved or not size or sum(segments) != size:
        raise ProtocolError("malformed BEGIN")
    return replace(begin, type=kind, body=b""), number, segments


def segments_of(body: Body) -> list[int]:
    """Lengths of the buffers of a body, small neighbours taken together."""
    segments: list[int] = []
    for size in map(body_size, buffers_of(body)):
        if segments and segments[-1] + size <= _SMALL_SEGMENT:
            segments[-1] += size
        else:
            segments.append(size)
    return segments if len(segments) <= MAX_SEGMENTS else [sum(segments)]


class Outgoing:
    """A message whose body leaves in pieces.

    It stands in the place of the count of bytes that have been sent when a message has left: of this one that is not
    known before its last piece was handed over. Comparing it with the bytes sent so far tells whether it has left.
    ``leaving`` is told when the message begins to leave.
    """

    __slots__ = ("_codec", "_leaving", "_left", "_number", "_pieces", "_size", "begun", "complete", "end", "message")

    def __init__(self, message: Message, codec: Codec, leaving: Callable[[Message], Message] | None = None) -> None:
        """ProtocolError, MessageTooLargeError: as `Codec.encode`."""
        self.message = message
        self._leaving = leaving
        self._codec = codec
        self._size = self._left = len(message.body)
        codec.encode_head(message, self._size)  # what cannot be written at all fails here and now
        self._pieces: Iterator[list[Body]] = slices(message.body, MAX_PIECE)
        self._number = 0
        self.begun = False
        """BEGIN was handed over."""
        self.complete = False
        """The last piece was handed over, or the peer was told that it will not come."""
        self.end: int | None = None
        """Count of bytes at the end of the last piece."""

    def __le__(self, sent: int) -> bool:
        return self.end is not None and self.end <= sent

    def __gt__(self, sent: int) -> bool:
        return not self <= sent

    def begin(self, number: int) -> bytes:
        """BEGIN, encoded."""
        self._number = number
        self.begun = True
        message = self.message if self._leaving is None else self._leaving(self.message)
        return self._codec.encode(begin(message, number, segments_of(message.body)))

    def next(self) -> list[Body]:
        """The buffers of the next PIECE, of a body that is not complete."""
        piece = next(self._pieces)
        size = sum(map(body_size, piece))
        self._left -= size
        self.complete = not self._left
        return [self._codec.encode_head(Message(MessageType.PIECE, self._number, "ping", 0, b""), size), *piece]

    def drop(self) -> bytes:
        """The PIECE that says that the rest will not come."""
        self.complete = True
        return self._codec.encode(Message(MessageType.PIECE, self._number, "ping", 0, b""))


@dataclass(slots=True)
class Arrival:
    """What became of a message in pieces."""

    message: Message
    """With its whole body, if it is complete."""
    refusal: str | None = None
    """Why it is not wanted; what still comes of it is dropped."""
    dropped: bool = False
    """Its sender will not complete it."""


@dataclass(slots=True)
class _Incomplete:
    message: Message | None
    """None: what comes is dropped."""
    size: int
    left: int
    assembly: Assembly


class Incoming:
    """The incomplete bodies of one direction.

    Memory grows with what has arrived; what is announced is checked before.

    Args:
        limit: bytes of one body.
        total: bytes that all incomplete ones may announce together.
        allowed: types of the messages that may come in pieces.
    """

    def __init__(self, limit: int, total: int, allowed: frozenset[int]) -> None:
        self._limit = limit
        self._total = total
        self._allowed = allowed
        self._bodies: dict[int, _Incomplete] = {}
        self._announced = 0

    def __len__(self) -> int:
        return len(self._bodies)

    def take(self, message: Message) -> Arrival | None:
        """Take a BEGIN or PIECE; None when nothing is decided by it.

        Raises:
            ProtocolError: it must not come now, or is malformed.
        """
        return self._begin(message) if message.type == MessageType.BEGIN else self._piece(message)

    def _begin(self, message: Message) -> Arrival | None:
        whole, number, segments = read_begin(message, self._allowed)
        size = sum(segments)
        if number in self._bodies:
            raise ProtocolError(f"body {number} was begun twice")
        if len(self._bodies) >= MAX_BODIES:
            raise ProtocolError(f"more than {MAX_BODIES} bodies were begun")
        refusal: str | None = None
        if size > self._limit:
            refusal = f"message too large ({size}, max={self._limit})"
        elif self._announced + size > self._total:
            refusal = f"busy: {self._announced} bytes of other large messages are arriving on this connection"
        self._bodies[number] = _Incomplete(None if refusal else whole, size, size, Assembly(segments))
        if refusal is not None:
            return Arrival(whole, refusal=refusal)
        self._announced += size
        return None

    def place_of(self, number: int, size: int) -> memoryview | None:
        """Where a piece of that size can be received directly; see `Assembly.place`."""
        incomplete = self._bodies.get(number)
        if incomplete is None or incomplete.message is None or not 0 < size <= incomplete.left:
            return None
        return incomplete.assembly.place(size)

    def _piece(self, message: Message) -> Arrival | None:
        number, body = message.seq, message.body
        incomplete = self._bodies.get(number)
        if incomplete is None:
            raise ProtocolError(f"a piece of body {number}, which was not begun")
        if len(body) > min(MAX_PIECE, incomplete.left):
            raise ProtocolError(f"a piece of {len(body)} bytes is too large")
        whole = incomplete.message
        if not len(body):
            self._forget(number, incomplete)
            return None if whole is None else Arrival(whole, dropped=True)
        incomplete.left -= len(body)
        if whole is not None:
            incomplete.assembly.add(body)
        recycle(body)
        if incomplete.left:
            return None
        self._forget(number, incomplete)
        if whole is None:
            return None
        whole.body = _body_of(whole, incomplete.assembly.buffers)
        return Arrival(whole)

    def _forget(self, number: int, incomplete: _Incomplete) -> None:
        del self._bodies[number]
        if incomplete.message is not None:
            self._announced -= incomplete.size


def _body_of(message: Message, buffers: list[Body]) -> Body:
    """What reads msgpack takes a body in several buffers; everybody else needs one."""
    body = Scattered(buffers).as_body()
    split = message.serializer == "msgpack" and not message.flags & (Flags.COMPRESSED | Flags.KEEPSERIALIZED)
    return body if split else joined(body)
