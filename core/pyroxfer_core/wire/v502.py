"""Protocol 502, spoken by Pyro5: 40-byte header with the correlation id in it, 32-bit annotation lengths, no HMAC.

Texts of errors are those of Pyro5 5.17, because peers show them to their users.
"""

from __future__ import annotations

import struct
from typing import Final

from ..errors import MessageTooLargeError, ProtocolError
from .frame import (
    CHUNK_TOO_LONG,
    CORRELATION_ID_SIZE,
    KEY_SIZE,
    NEVER,
    PREFIX_SIZE,
    TAG,
    Header,
    body_size,
    check_correlation_id,
    chunks_of,
    join_chunks,
    serializer_name,
    serializer_number,
    sole_chunk,
    split_chunks,
)
from .message import Body, Message, MessageType

VERSION: Final = 502
_MAGIC: Final = 0x4DC5
_MAX_U8: Final = 0xFF
_MAX_U32: Final = 2**32 - 1
_NO_CORRELATION_ID: Final = bytes(CORRELATION_ID_SIZE)

_HEADER: Final = struct.Struct("!4sHBBHHII16sHH")
_CHUNK: Final = struct.Struct("!4sI")
_SIZE: Final = _HEADER.size
_pack_annotated: Final = struct.Struct(_HEADER.format + _CHUNK.format.removeprefix("!")).pack
_unpack_from = _HEADER.unpack_from
_pack = _HEADER.pack

_NAMES: Final = {1: "serpent", 2: "marshal", 3: "json", 4: "msgpack", 42: "ping"}
_NUMBERS: Final = {name: number for number, name in _NAMES.items()}

APART: Final = 64 * 1024
"""Bytes of an annotation from which copying it costs more than a buffer of its own."""
PLAIN_HEADER: Final = struct.Struct("!10sHI24s")
"""The same header: what identifies the message (up to its flags), sequence number, length of the body, the rest."""
_unpack_plain_from = PLAIN_HEADER.unpack_from
_NOTHING_ELSE: Final = _HEADER.pack(b"", 0, 0, 0, 0, 0, 0, 0, _NO_CORRELATION_ID, 0, _MAGIC)[16:]
"""The rest of most headers."""
_PLAIN_HEADS: Final = {
    _HEADER.pack(TAG, VERSION, kind, number, 0, 0, 0, 0, b"", 0, 0)[:10]: (kind, name)
    for kind in (MessageType.INVOKE, MessageType.RESULT)
    for number, name in _NAMES.items()
}
"""What most messages begin with."""
_HEADS_OF: Final = {names: head for head, names in _PLAIN_HEADS.items()}
_pack_plain: Final = PLAIN_HEADER.pack
_NEUTRAL_BITS: Final = 0x3F
"""The neutral flags took their numbers from this protocol, except META_ON_CONNECT, which it does not have."""
_CORR_ID: Final = 0x40


class CodecV502:
    """Encodes and decodes protocol 502; stateless. See ``Codec`` for the contract."""

    version = VERSION
    header_size = _HEADER.size
    max_body = _MAX_U32
    max_annotation_bytes = _MAX_U32
    signs = False

    def check_prefix(self, prefix: bytes) -> None:
        """ProtocolError unless the first six bytes are this protocol's."""
        if prefix[: len(TAG)] != TAG:
            raise ProtocolError("invalid data")
        version = int.from_bytes(prefix[len(TAG) : PREFIX_SIZE], "big")
        if version != VERSION:
            raise ProtocolError(f"invalid protocol version: {version}")

    def parse_header(self, buffer: Body, offset: int = 0) -> Header:
        """Parse the 40 bytes at ``offset``. ProtocolError: cut short, tag, version, magic."""
        try:
            tag, version, kind, serializer, flags, seq, body, annotations, correlation_id, _, magic = _unpack_from(
                buffer, offset
            )
        except struct.error as error:
            raise ProtocolError("the header is cut short") from error
        if tag != TAG or version != VERSION:
            self.check_prefix(bytes(buffer[offset : offset + PREFIX_SIZE]))
        if magic != _MAGIC:
            raise ProtocolError("invalid message or protocol version")
        return Header(
            kind,
            flags & _NEUTRAL_BITS,
            seq,
            _NAMES.get(serializer) or serializer_name(serializer, _NAMES),
            annotations,
            body,
            correlation_id if flags & _CORR_ID else None,
        )

    def parse_small(self, data: bytes, offset: int, longest: int, apart: int = NEVER) -> tuple[Message, int] | None:
        """A small message with at most one annotation in one step; None to look at it step by step."""
        start = offset + _SIZE
        if start > len(data):
            return None
        first, seq, size, rest = _unpack_plain_from(data, offset)
        plain = _PLAIN_HEADS.get(first)
        if plain is not None and rest == _NOTHING_ELSE:
            end = start + size
            if size > longest or end > len(data):
                return None
            body = data[start:end] if size < apart else memoryview(data)[start:end]
            return Message(plain[0], seq, plain[1], 0, body, {}), end
        tag, version, kind, serializer, flags, seq, size, area, correlation_id, _, magic = _unpack_from(data, offset)
        body_at = start + area
        end = body_at + size
        if area + size > longest or end > len(data) or magic != _MAGIC or version != VERSION or tag != TAG:
            return None
        name = _NAMES.get(serializer)
        if name is None:
            return None
        annotations: dict[str, Body] = {}
        if area:
            if area < _CHUNK.size:
                return None
            key, length = _CHUNK.unpack_from(data, start)
            if length + _CHUNK.size != area or not key.isascii():
                return None
            annotations[key.decode()] = data[start + _CHUNK.size : body_at]
        if not flags & _CORR_ID:
            correlation_id = None
        body = data[body_at:end] if size < apart else memoryview(data)[body_at:end]
        return Message(kind, seq, name, flags & _NEUTRAL_BITS, body, annotations, correlation_id), end

    def parse_annotations(self, data: Body, limit: int) -> tuple[dict[str, bytes], bytes | None, bytes | None]:
        """Annotations; correlation id and signature are never among them in this protocol."""
        return split_chunks(data, _CHUNK, limit, CHUNK_TOO_LONG), None, None

    def sole_annotation(self, data: Body, offset: int, size: int) -> tuple[str, int] | None:
        """See `Codec.sole_annotation`."""
        return sole_chunk(data, offset, size, _CHUNK)

    def encode(self, message: Message, *, hmac_key: bytes | None = None) -> bytes:
        """The whole message. ``hmac_key`` has no effect: this protocol cannot sign."""
        body = message.body
        if type(body) is bytes and message.correlation_id is None:
            if not message.annotations:
                return self.encode_small(message.type, message.serializer, message.flags, message.seq, body)
            if len(message.annotations) == 1 and (data := self._annotated(message, body)) is not None:
                return data
        size = len(body) if type(body) is bytes else body_size(body)
        if not message.annotations:
            return self._header(message, size, 0) + body
        annotations = self._area(message)
        return b"".join((self._header(message, size, len(annotations)), annotations, body))

    def encode_small(self, kind: int, serializer: str, flags: int, seq: int, body: Body) -> bytes:
        """A message without annotations and correlation id, as most are, in one step."""
        head = None if flags else _HEADS_OF.get((kind, serializer))
        if head is not None and type(body) is bytes:
            try:
                return _pack_plain(head, seq, len(body), _NOTHING_ELSE) + body
            except struct.error:
                pass  # what is wrong is said below
        return self._header(Message(kind, seq, serializer, flags, body), body_size(body), 0) + body

    @staticmethod
    def _annotated(message: Message, body: bytes) -> bytes | None:
        """A message with one annotation, as of most that have any, in one step; None to write it step by step."""
        ((key, value),) = message.annotations.items()
        number = _NUMBERS.get(message.serializer)
        usual = type(value) is bytes and type(key) is str and len(key) == KEY_SIZE and key.isascii()
        if number is None or not usual:
            return None
        kind, bits, area = message.type, message.flags & _NEUTRAL_BITS, _CHUNK.size + len(value)
        head = TAG, VERSION, kind, number, bits, message.seq, len(body), area, _NO_CORRELATION_ID, 0, _MAGIC
        try:
            return b"".join((_pack_annotated(*head, key.encode(), len(value)), value, body))
        except struct.error:
            return None  # what is wrong is said there

    def encode_head(self, message: Message, body_length: int) -> bytes:
        """Header and annotations of a message whose body of ``body_length`` bytes is sent separately."""
        annotations = self._area(message)
        return self._header(message, body_length, len(annotations)) + annotations

    def _area(self, message: Message) -> bytes:
        if len(message.annotations) == 1:  # as a blob's, which is the only one of most messages that have any
            ((key, value),) = message.annotations.items()
            if (
                type(value) is bytes
                and len(value) <= APART
                and type(key) is str
                and len(key) == KEY_SIZE
                and key.isascii()
            ):
                return _CHUNK.pack(key.encode(), len(value)) + value
        return join_chunks(message.annotations.items(), _CHUNK, _MAX_U32)

    def encode_buffers(self, message: Message) -> list[Body]:
        """The whole message, in one buffer, or several when an annotation of bytes is large enough to stay apart."""
        if len(message.annotations) == 1 and len(message.body) <= APART:
            (value,) = message.annotations.values()
            if type(value) is bytes and len(value) <= APART:
                return [self.encode(message)]
        chunks = chunks_of(message.annotations.items(), _CHUNK, _MAX_U32)
        size = sum(map(body_size, chunks))
        buffers: list[Body] = [self._header(message, body_size(message.body), size)]
        for chunk in (*chunks, message.body):
            if type(chunk) is bytes and len(chunk) > APART:
                buffers.append(chunk)
            elif len(buffers[-1]) > APART:
                buffers.append(bytes(chunk))
            else:
                buffers[-1] = b"".join((buffers[-1], chunk))
        return buffers

    def verify(self, key: bytes, message: Message, signature: bytes) -> None:
        """Nothing to verify: ``signs`` is False and no signature is ever parsed."""

    def _header(self, message: Message, body: int, annotations: int) -> bytes:
        if not 0 <= body <= _MAX_U32:
            raise MessageTooLargeError(f"message too large ({body}, max={_MAX_U32})")
        kind, seq = message.type, message.seq
        flags = message.flags & _NEUTRAL_BITS
        correlation_id = message.correlation_id
        if correlation_id is None:
            correlation_id = _NO_CORRELATION_ID
        else:
            flags |= _CORR_ID
            check_correlation_id(correlation_id)
        serializer = _NUMBERS.get(message.serializer)
        if serializer is None:
            serializer = serializer_number(message.serializer, _NAMES, _MAX_U8, VERSION)
        try:
            return _pack(TAG, VERSION, kind, serializer, flags, seq, body, annotations, correlation_id, 0, _MAGIC)
        except struct.error as error:
            raise ProtocolError(f"message type {kind} or sequence number {seq} is out of range") from error


V502: Final = CodecV502()
