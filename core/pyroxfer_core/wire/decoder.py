"""From received bytes to events, without I/O.

The owner feeds what it received and takes events until there are none; limits are checked on the announced lengths,
before a body is kept, and memory grows only with what has really arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

from ..errors import MessageTooLargeError, ProtocolError, PyroError, SecurityError
from ..settings import GIB, KIB, MIB
from .assembly import Assembly
from .buffers import take_buffer
from .codec import Codec, recognise
from .frame import NEVER, PREFIX_SIZE, Header
from .message import Body, BodyPart, End, Head, Message, MessageType
from .plain import PlainCalls

Event = Message | Head | BodyPart | End

_INLINE_BODY: Final = 64 * KIB
"""Bodies up to here wait in the input buffer, so that a small message costs one slice and no state."""
_PART: Final = 256 * KIB
_GROWTH: Final = 256 * KIB
"""First step of a collected body's buffer; from then on it doubles, never past the announced length ..."""
_LONGEST_STEP: Final = 16 * MIB
"""... and never by more than this at once: fresh memory costs time for each page, and everybody else waits."""


_ZEROS: Final = memoryview(bytes(1 * MIB))
"""To grow buffers with: a fresh object of that size for each step would cost as many page faults as the data."""


def _zeros(count: int) -> Body:
    return _ZEROS[:count] if count <= len(_ZEROS) else bytes(count)


class Decoder:
    """Turns the bytes of one direction of one connection into events.

    ``max_message`` (bytes, annotations and body of one message) may be changed between messages. Bodies of up to
    ``collect`` bytes come whole, as Message; larger ones as Head, BodyPart (at most 256 KiB each), End. With
    ``hmac_key`` every message of protocol 48 must be signed with it and is collected whatever its size; protocol 502
    cannot sign, so whether to talk it at all is the owner's decision. ``tap`` may put something of its own before the
    codec, to look at what is read and written.

    After an error the decoder stays broken: every further call raises the same error again.
    """

    __slots__ = (
        "_area",
        "_assembly",
        "_broken",
        "_collect_limit",
        "_filled",
        "_header",
        "_hmac_key",
        "_inline_limit",
        "_lent",
        "_max_annotations",
        "_offset",
        "_open",
        "_parse_small",
        "_remaining",
        "_signature",
        "_sole",
        "_tap",
        "codec",
        "collected",
        "data",
        "gives_views",
        "max_message",
        "place_of",
    )

    def __init__(
        self,
        codec: Codec | None = None,
        *,
        max_message: int = 1 * GIB,
        max_annotations: int = 64,
        collect: int = 1 * MIB,
        hmac_key: bytes | None = None,
        tap: Callable[[Codec], Codec] | None = None,
    ) -> None:
        self._tap = tap
        self.codec: Codec | None = None
        """None until the first six bytes have told it, when it was not given."""
        self.max_message = max_message
        self._max_annotations = max_annotations
        self._collect_limit = collect
        self._inline_limit = min(collect, _INLINE_BODY)
        self._hmac_key = hmac_key or None
        self._broken: tuple[type[PyroError], tuple[object, ...]] | None = None
        self.data: bytes | bytearray = b""
        """What was fed and has not become an event, from ``_offset`` on; empty when there is nothing."""
        self._offset = 0
        self._parse_small: Callable[[bytes, int, int, int], tuple[Message, int] | None] | None = None
        """Takes a small message apart in one step; None while nobody may: unknown protocol, signatures, broken."""
        self._header: Header | None = None
        self._open: Message | None = None
        self._remaining = 0
        self._area: Header | None = None
        """Of a message whose large annotation area is being collected, in the place of its body."""
        self._sole = ""
        """Key of the annotation that fills this area all by itself."""
        self._assembly: Assembly | None = None
        """Its value, if one does."""
        self._signature: bytes | None = None
        self.collected: bytearray | memoryview | None = None
        """The large body that is coming in; only then `wanted_buffer` has something to say."""
        self._filled = 0
        self._lent: memoryview | None = None
        self.gives_views = False
        """Whether a large body, if it is most of what was fed, may be a view of that: for who passes it on."""
        self.place_of: Callable[[int, int], memoryview | None] | None = None
        """Asked where the next piece of a body goes, by its number and the size of the piece; None: anywhere."""
        if codec is not None:
            self._choose(codec)

    @property
    def buffered(self) -> int:
        """Bytes of memory held for input that has not become an event yet."""
        return len(self.data) + (0 if self.collected is None else len(self.collected))

    @property
    def progress(self) -> tuple[int, int, int]:
        """Changes whenever a part of an incomplete message comes in."""
        return self._filled, self._remaining, len(self.data) - self._offset

    def feed(self, data: Body) -> None:
        """Add received bytes (copied unless ``bytes``). Drain ``next_event`` before feeding again to bound memory."""
        if self._broken is not None:
            self._raise_broken()
        if type(data) is not bytes:
            data = bytes(data)
        if self._offset == len(self.data):
            self.data = data
        elif isinstance(self.data, bytearray):
            del self.data[: self._offset]
            self.data += data
        else:
            self.data = bytearray(memoryview(self.data)[self._offset :])
            self.data += data
        self._offset = 0

    def take(self, data: bytes) -> Event | None:
        """`feed`, then `next_event`. A message that is all there, and nothing before it, is taken apart at once."""
        parse_small = self._parse_small
        if parse_small is not None and not self.data and self._open is None:
            limit = self._collect_limit
            size = len(data)
            apart = size >> 1 if self.gives_views and size > _INLINE_BODY else NEVER
            found = parse_small(data, 0, limit if limit < self.max_message else self.max_message, apart)
            if found is not None:
                message, end = found
                if end != size:
                    self.data, self._offset = data, end
                return message
        self.feed(data)
        return self.next_event()

    def next_event(self) -> Event | None:
        """The next event, or None when more bytes are needed.

        ProtocolError: not the protocol. MessageTooLargeError: announced length over ``max_message``.
        SecurityError: signature missing, unexpected or wrong.
        """
        parse_small, data = self._parse_small, self.data
        if parse_small is not None and type(data) is bytes and self._open is None and self._header is None:
            if not data:
                return None
            limit, offset = self._inline_limit, self._offset
            found = parse_small(data, offset, limit if limit < self.max_message else self.max_message, NEVER)
            if found is not None:  # as most are
                message, end = found
                if end == len(data):
                    self.data, end = b"", 0
                self._offset = end
                return message
        if self._broken is not None:
            self._raise_broken()
        try:
            if self._open is None:
                return self._begin() if self._offset < len(self.data) else None
            if self.collected is None:
                return self._next_part()
            return self._collect()
        except PyroError as error:
            self._break(error)
            raise

    def take_plain(self, calls: PlainCalls) -> list[tuple[int, bytes]]:
        """Number and body of the plain answers that come next, as far as they are here; perhaps there are none."""
        data = self.data
        if type(data) is not bytes or self._parse_small is None or self._open is not None or self._header is not None:
            return []
        limit = self._inline_limit
        found, end = calls.answers(data, self._offset, limit if limit < self.max_message else self.max_message)
        if end == len(data):
            self.data, end = b"", 0
        self._offset = end
        return found

    def take_rest(self) -> bytes:
        """Hand out what was fed and has not become an event: its owner goes on by itself, or feeds it again."""
        rest = bytes(memoryview(self.data)[self._offset :])
        self.data, self._offset = b"", 0
        return rest

    def eof(self) -> None:
        """The stream ended. ProtocolError when inside a message; call once ``next_event`` gave None."""
        if self._broken is not None:
            self._raise_broken()
        if self._open is not None or self._offset < len(self.data):
            error = ProtocolError("the stream ended inside a message")
            self._break(error)
            raise error

    def wanted_buffer(self) -> memoryview | None:
        """Where to receive the next bytes of a large collected body directly, or None: use ``feed``.

        Valid until the next call of any method; its owner keeps no slice of it. Tell how much was written with
        ``received``. The memory behind it grows with what has arrived: first 256 KiB, then twice that, then 16 MiB
        at a time; that of an annotation alone as `Assembly` says.
        """
        if self._broken is not None:
            self._raise_broken()
        buffer = self.collected
        if buffer is None or not self._remaining or self._offset < len(self.data):
            return None
        self._take_back()
        filled = self._filled
        if filled == len(buffer):
            wanted = min(filled + min(self._remaining, _LONGEST_STEP), max(2 * filled, _GROWTH))
            assert isinstance(buffer, bytearray), "a place is as large as its piece"
            buffer += _zeros(wanted - filled)
        self._lent = memoryview(buffer)[filled : filled + self._remaining]
        return self._lent

    def received(self, count: int) -> None:
        """``count`` bytes were written to the start of ``wanted_buffer``. ValueError: more than it holds."""
        if self._broken is not None:
            self._raise_broken()
        if self._lent is None or not 0 <= count <= len(self._lent):
            raise ValueError(f"{count} bytes were not asked for")
        self._take_back()
        self._filled += count
        self._remaining -= count

    def _begin(self) -> Event | None:
        header = self._header
        if header is None:
            header = self._parse_header()
            if header is None:
                return None
        assert self.codec is not None
        start = self._offset + self.codec.header_size
        body_start = start + header.annotations_length
        if header.annotations_length > _INLINE_BODY and body_start > len(self.data):
            return self._open_area(header, start)
        if header.body_length <= self._inline_limit:
            end = body_start + header.body_length
            if end <= len(self.data):
                return self._whole(header, start, body_start, end)
        elif body_start <= len(self.data):
            return self._open_body(header, start, body_start)
        self._header = header
        return None

    def _parse_header(self) -> Header | None:
        data, offset, codec = self.data, self._offset, self.codec
        available = len(data) - offset
        if codec is None:
            if available < PREFIX_SIZE:
                return None
            codec = self._choose(recognise(bytes(data[offset : offset + PREFIX_SIZE])))
        if available < codec.header_size:
            if available >= PREFIX_SIZE:
                codec.check_prefix(bytes(data[offset : offset + PREFIX_SIZE]))
            return None
        header = codec.parse_header(data, offset)
        size = header.annotations_length + header.body_length
        if size > self.max_message:
            raise MessageTooLargeError(f"message too large ({size}, max={self.max_message})")
        return header

    def _choose(self, codec: Codec) -> Codec:
        self.codec = codec = codec if self._tap is None else self._tap(codec)
        if self._hmac_key is None and self._max_annotations:
            self._parse_small = codec.parse_small
        if self._hmac_key is not None and codec.signs:
            # A signature covers the whole body: nothing of it may be handed out before it is verified.
            self._collect_limit = codec.max_body
            self._inline_limit = _INLINE_BODY
        return codec

    def _whole(self, header: Header, start: int, body_start: int, end: int) -> Message:
        message = self._message(header, self._slice(start, body_start), self._slice(body_start, end))
        if self._signature is not None:
            self._verify(message)
        self._advance(end)
        return message

    def _open_body(self, header: Header, start: int, body_start: int) -> Event | None:
        message = self._message(header, self._slice(start, body_start), b"")
        self._advance(body_start)
        return self._begin_body(message, header)

    def _begin_body(self, message: Message, header: Header) -> Event | None:
        self._open = message
        self._remaining = header.body_length
        if header.body_length > self._collect_limit:
            self.collected = None
            return Head(message, header.body_length)
        self.collected = bytearray() if message.type != MessageType.PIECE else self._place_piece(header)
        self._filled = 0
        return self._collect()

    def _open_area(self, header: Header, start: int) -> Event | None:
        """Annotations of that size arrive in a buffer of their own, like a large body; one alone where it stays."""
        assert self.codec is not None
        self._area = header
        self._open = Message(header.type, header.seq, header.serializer, header.flags, b"")
        self._remaining = header.annotations_length
        self.collected = bytearray()
        sole = self.codec.sole_annotation(self.data, start, header.annotations_length)
        if sole is not None and self._max_annotations:
            self._sole, self._remaining = sole
            self._assembly = Assembly([self._remaining])
            self.collected = self._assembly.place(self._remaining) or self.collected
            start += header.annotations_length - self._remaining
        self._filled = 0
        self._advance(start)
        return self._collect()

    def _close_area(self, area: bytearray | memoryview, header: Header) -> Event | None:
        """The annotations are complete: on with the body."""
        assembly, self._area, self._assembly = self._assembly, None, None
        if assembly is None:
            self._open = self._message(header, memoryview(area), b"")
        else:
            assembly.add(area)
            self._open = self._message(header, b"", b"")
            self._open.annotations[self._sole] = assembly.buffers[0]
        return self._begin_body(self._open, header)

    def _place_piece(self, header: Header) -> bytearray | memoryview:
        """Where a piece goes: to its place in the body that it belongs to, if it has one already."""
        size = header.body_length
        if size > _PART:
            raise ProtocolError(f"a piece of {size} bytes is too large")
        place = self.place_of(header.seq, size) if self.place_of is not None else None
        return take_buffer() if place is None else place

    def _message(self, header: Header, area: Body, body: bytes) -> Message:
        """The message so far; its signature is left in ``_signature`` until the whole body is there."""
        annotations: dict[str, Body] = {}
        correlation_id, signature = header.correlation_id, None
        codec = self.codec
        assert codec is not None
        if len(area):
            parsed, in_annotations, signature = codec.parse_annotations(area, self._max_annotations)
            annotations.update(parsed)
            correlation_id = correlation_id or in_annotations
        if codec.signs and (signature is None) is not (self._hmac_key is None):
            raise SecurityError("hmac key config not symmetric")
        self._signature = signature
        return Message(header.type, header.seq, header.serializer, header.flags, body, annotations, correlation_id)

    def _verify(self, message: Message) -> None:
        assert self.codec is not None
        assert self._signature is not None
        assert self._hmac_key is not None
        self.codec.verify(self._hmac_key, message, self._signature)
        self._signature = None

    def _collect(self) -> Event | None:
        """Move fed bytes of the body to its buffer; the message, once they are all there."""
        buffer, message = self.collected, self._open
        assert buffer is not None
        assert message is not None
        self._take_back()
        take = min(len(self.data) - self._offset, self._remaining)
        if take:
            end = self._offset + take
            buffer[self._filled : self._filled + take] = memoryview(self.data)[self._offset : end]
            self._filled += take
            self._remaining -= take
            self._advance(end)
        if self._remaining:
            return None
        if self._area is not None:
            return self._close_area(buffer, self._area)
        message.body = memoryview(buffer)[: self._filled] if message.type == MessageType.PIECE else buffer
        if self._signature is not None:
            self._verify(message)
        self._open = self.collected = None
        return message

    def _next_part(self) -> BodyPart | End | None:
        if not self._remaining:
            self._open = None
            return End()
        take = min(len(self.data) - self._offset, self._remaining, _PART)
        if not take:
            return None
        end = self._offset + take
        part = BodyPart(self._slice(self._offset, end))
        self._remaining -= take
        self._advance(end)
        return part

    def _slice(self, start: int, end: int) -> bytes:
        data = self.data
        return data[start:end] if isinstance(data, bytes) else bytes(memoryview(data)[start:end])

    def _advance(self, end: int) -> None:
        self._header = None
        if end == len(self.data):
            self.data = b""
            end = 0
        self._offset = end

    def _take_back(self) -> None:
        """End the loan of the body's buffer: it cannot grow while a view of it exists."""
        if self._lent is not None:
            self._lent.release()
            self._lent = None

    def _break(self, error: PyroError) -> None:
        # Class and arguments instead of the error: its traceback would tie this object to itself.
        self._broken = (type(error), error.args)
        self._parse_small = None
        self.data, self._offset = b"", 0
        self._take_back()
        self._open = self.collected = self._header = self._area = self._assembly = None

    def _raise_broken(self) -> NoReturn:
        assert self._broken is not None
        kind, args = self._broken
        raise kind(*args)
