"""Messages that nobody may look into: only the header is read, everything behind it passes as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from pyroxfer_core.errors import MessageTooLargeError, ProtocolError
from pyroxfer_core.wire import Body, BodyPart, Codec, End, Head, Message, codec_for, hops_of, with_hops

COLLECT_BYTES: Final = 64 * 1024
"""Messages up to here pass as one; of larger ones nothing is kept."""
_PREFIX: Final = 6


@dataclass(slots=True)
class Sealed(Message):
    """A message whose body is everything behind the header, annotations included. ``annotations`` is empty."""

    data: bytes = b""
    """The whole message, or (in a Head) its header: exactly as it came."""
    body_at: int = 0
    """Where in ``data`` the body begins, behind header and annotations."""


class Header(Protocol):
    """What a codec tells of a header."""

    type: int
    flags: int
    seq: int
    serializer: str
    annotations_length: int
    body_length: int
    correlation_id: bytes | None


Event = Sealed | Head | BodyPart | End


class Splitter:
    """Bytes to events, as `pyroxfer_core.wire.Decoder`, for sealed messages.

    Args:
        codec: None until the first six bytes tell it.
        max_message: most bytes behind a header.
        collect: messages up to this size come whole.
    """

    __slots__ = ("_codec", "_collect", "_data", "_is_open", "_left", "_offset", "max_message")

    def __init__(self, codec: Codec | None = None, *, max_message: int, collect: int = COLLECT_BYTES) -> None:
        self._codec = codec
        self._collect = collect
        self._data = b""
        self._offset = 0
        self._left = 0
        """Bytes still to come of a message in pieces."""
        self._is_open = False
        """A Head was given out, its End not yet."""
        self.max_message = max_message

    @property
    def codec(self) -> Codec:
        """The protocol, once the first event has come."""
        assert self._codec is not None, "no message has come"
        return self._codec

    @property
    def buffered(self) -> int:
        """Bytes that have not become an event."""
        return len(self._data) - self._offset

    def take_rest(self) -> bytes:
        """Give up what has not become an event."""
        rest = self._data[self._offset :]
        self._data, self._offset = b"", 0
        return rest

    def take(self, data: bytes) -> Event | None:
        """`feed`, then `next_event`."""
        self.feed(data)
        return self.next_event()

    def feed(self, data: bytes) -> None:
        """Add what came."""
        rest = len(self._data) - self._offset
        self._data = self._data[self._offset :] + data if rest else data
        self._offset = 0

    def next_event(self) -> Event | None:
        """What can be said now, or None.

        Raises:
            ProtocolError: this is no message.
            MessageTooLargeError: its announced length is over the limit.
        """
        if self._is_open:
            return self._piece()
        data, offset, codec = self._data, self._offset, self._codec
        available = len(data) - offset
        if codec is None or available < codec.header_size:
            if available < _PREFIX:
                return None
            if codec is None:
                codec = self._codec = _codec_of(data[offset : offset + _PREFIX])
            if available < codec.header_size:
                codec.check_prefix(data[offset : offset + _PREFIX])
                return None
        header = codec.parse_header(data, offset)
        length = header.annotations_length + header.body_length
        if length > self.max_message:
            raise MessageTooLargeError(f"message too large ({length}, max={self.max_message})")
        return self._message(header, offset, offset + codec.header_size, length)

    def _message(self, header: Header, offset: int, start: int, length: int) -> Event | None:
        data = self._data
        in_pieces = length > self._collect
        end = start if in_pieces else start + length
        if end > len(data):
            return None
        kept = data if offset == 0 and end == len(data) else data[offset:end]
        message = Sealed(
            header.type,
            header.seq,
            header.serializer,
            header.flags,
            b"",
            {},
            header.correlation_id,
            kept,
            start - offset + header.annotations_length,
        )
        self._advance(end)
        if not in_pieces:
            return message
        self._is_open, self._left = True, length
        return Head(message, length)

    def _piece(self) -> BodyPart | End | None:
        if not self._left:
            self._is_open = False
            return End()
        data, offset = self._data, self._offset
        end = min(len(data), offset + self._left)
        if end == offset:
            return None
        self._left -= end - offset
        part = BodyPart(data if offset == 0 and end == len(data) else data[offset:end])
        self._advance(end)
        return part

    def _advance(self, end: int) -> None:
        if end == len(self._data):
            self._data, self._offset = b"", 0
        else:
            self._offset = end


def _codec_of(prefix: bytes) -> Codec:
    if prefix[:4] != b"PYRO":
        raise ProtocolError("invalid data")
    return codec_for(int.from_bytes(prefix[4:], "big"))


def unseal(message: Sealed, codec: Codec, limit: int) -> tuple[Body, dict[str, bytes], bool]:
    """The body of a whole message, its annotations, and whether it is signed.

    Raises:
        ProtocolError: the annotations are malformed or too many.
    """
    data = message.data
    annotations, _, signature = codec.parse_annotations(data[codec.header_size : message.body_at], limit)
    return data[message.body_at :], annotations, signature is not None


def rewritten(message: Sealed, codec: Codec, annotations: dict[str, Body], limit: int) -> bytes:
    """A whole message with these annotations instead of its own."""
    correlation_id = codec.parse_annotations(message.data[codec.header_size : message.body_at], limit)[1]
    body = message.data[message.body_at :]
    known = message.correlation_id or correlation_id
    changed = Message(message.type, message.seq, message.serializer, message.flags, body, annotations, known)
    return with_hops(codec.encode(changed), codec.version, hops_of(message.data, codec.version))
