"""Messages that nobody may look into: only the header is read, everything behind it passes as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyroxfer_core.errors import MessageTooLargeError, ProtocolError
from pyroxfer_core.wire import Body, BodyPart, Codec, End, Head, Message, codec_for

COLLECT_BYTES: Final = 64 * 1024
"""Messages up to here pass as one; of larger ones nothing is kept."""
_PREFIX: Final = 6


@dataclass(slots=True)
class Sealed(Message):
    """A message whose body is everything behind the header, annotations included. ``annotations`` is empty."""

    data: bytes = b""
    """The whole message, or (in a Head) its header: exactly as it came."""


Event = Sealed | Head | BodyPart | End


class Splitter:
    """Bytes to events, as `pyroxfer_core.wire.Decoder`, for sealed messages.

    Args:
        codec: None until the first six bytes tell it.
        max_message: most bytes behind a header.
        collect: messages up to this size come whole.
    """

    __slots__ = ("_codec", "_collect", "_data", "_left", "max_message")

    def __init__(self, codec: Codec | None = None, *, max_message: int, collect: int = COLLECT_BYTES) -> None:
        self._codec = codec
        self._collect = collect
        self._data = b""
        self._left = 0
        """Bytes still to come of a message in pieces."""
        self.max_message = max_message

    @property
    def codec(self) -> Codec:
        """The protocol, once the first event has come."""
        assert self._codec is not None, "no message has come"
        return self._codec

    @property
    def rest(self) -> bytes:
        """What came after the last event."""
        return self._data

    def feed(self, data: bytes) -> list[Event]:
        """What can be said now.

        Raises:
            ProtocolError: this is no message.
            MessageTooLargeError: its announced length is over the limit.
        """
        if self._data:
            data = self._data + data
            self._data = b""
        events: list[Event] = []
        offset = 0
        while offset < len(data):
            if self._left:
                offset = self._piece(data, offset, events)
                continue
            begun = self._begin(data, offset, events)
            if not begun:
                self._data = data[offset:] if offset else data
                break
            offset = begun
        return events

    def _piece(self, data: bytes, offset: int, events: list[Event]) -> int:
        end = min(len(data), offset + self._left)
        self._left -= end - offset
        events.append(BodyPart(data[offset:end]))
        if not self._left:
            events.append(End())
        return end

    def _begin(self, data: bytes, offset: int, events: list[Event]) -> int:
        """Take the message at the offset; 0 when too little of it is there."""
        codec = self._codec
        if codec is None:
            if len(data) - offset < _PREFIX:
                return 0
            codec = self._codec = _codec_of(data[offset : offset + _PREFIX])
        size = codec.header_size
        if len(data) - offset < size:
            if len(data) - offset >= _PREFIX:
                codec.check_prefix(data[offset : offset + _PREFIX])
            return 0
        header = codec.parse_header(data, offset)
        length = header.annotations_length + header.body_length
        if length > self.max_message:
            raise MessageTooLargeError(f"message too large ({length}, max={self.max_message})")
        start = offset + size
        end = start + length
        correlation = header.correlation_id
        if length > self._collect:
            head = data[offset:start]
            message = Sealed(header.type, header.seq, header.serializer, header.flags, b"", {}, correlation, head)
            self._left = length
            events.append(Head(message, length))
            return start
        if end > len(data):
            return 0
        whole = data if offset == 0 and end == len(data) else data[offset:end]
        events.append(Sealed(header.type, header.seq, header.serializer, header.flags, b"", {}, correlation, whole))
        return end


def _codec_of(prefix: bytes) -> Codec:
    if prefix[:4] != b"PYRO":
        raise ProtocolError("invalid data")
    return codec_for(int.from_bytes(prefix[4:], "big"))


def unseal(message: Sealed, codec: Codec, limit: int) -> tuple[Body, bool]:
    """The body of a whole message, and whether it is signed.

    Raises:
        ProtocolError: the annotations are malformed or too many.
    """
    data = message.data
    start = codec.header_size
    end = start + codec.parse_header(data).annotations_length
    _, _, signature = codec.parse_annotations(data[start:end], limit)
    return data[end:], signature is not None
