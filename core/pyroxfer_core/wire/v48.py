"""Protocol 48, spoken by Pyro4: 24-byte header with a checksum, 16-bit annotation lengths, optional HMAC.

Texts of errors are those of Pyro4 4.82 where it has one, because peers show them to their users.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator, Mapping
from typing import Final

from ..errors import MessageTooLargeError, ProtocolError, SecurityError
from .frame import (
    NEVER,
    PREFIX_SIZE,
    TAG,
    Header,
    body_size,
    check_correlation_id,
    join_chunks,
    serializer_name,
    serializer_number,
    sole_chunk,
    split_chunks,
)
from .message import Body, Flags, Message

VERSION: Final = 48
_CHECKSUM_SEED: Final = VERSION + 0x34E9
_PREFIX: Final = TAG + VERSION.to_bytes(2, "big")
_MAX_U16: Final = 0xFFFF
_MAX_BODY: Final = 2**31 - 1

_HEADER: Final = struct.Struct("!4sHHHHiHHHH")
_CHUNK: Final = struct.Struct("!4sH")
_unpack_from = _HEADER.unpack_from
_pack = _HEADER.pack

_NAMES: Final = {
    1: "serpent",
    2: "json",
    3: "marshal",
    4: "pickle",
    5: "dill",
    6: "msgpack",
    7: "cloudpickle",
    42: "ping",
}
_NUMBERS: Final = {name: number for number, name in _NAMES.items()}

_MOVED_BITS: Final = ((0x10, Flags.META_ON_CONNECT), (0x20, Flags.ITEMSTREAM), (0x40, Flags.KEEPSERIALIZED))
_SAME_BITS: Final = Flags.EXCEPTION | Flags.COMPRESSED | Flags.ONEWAY | Flags.BATCH
_KNOWN_BITS: Final = 0x7F


def _to_neutral(flags: int) -> int:
    return (flags & _SAME_BITS) | sum(neutral for wire, neutral in _MOVED_BITS if flags & wire)


_NEUTRAL_OF_WIRE: Final = tuple(map(_to_neutral, range(_KNOWN_BITS + 1)))
_WIRE_OF_NEUTRAL: Final = tuple(map(_NEUTRAL_OF_WIRE.index, range(_KNOWN_BITS + 1)))


class CodecV48:
    """Encodes and decodes protocol 48; stateless. See ``Codec`` for the contract."""

    version = VERSION
    header_size = _HEADER.size
    max_body = _MAX_BODY
    max_annotation_bytes = _MAX_U16
    signs = True

    def check_prefix(self, prefix: bytes) -> None:
        """ProtocolError unless the first six bytes are this protocol's."""
        if prefix[:PREFIX_SIZE] != _PREFIX:
            raise ProtocolError("invalid data or unsupported protocol version")

    def parse_header(self, buffer: Body, offset: int = 0) -> Header:
        """Parse the 24 bytes at ``offset``. ProtocolError: cut short, tag, version, checksum, negative length."""
        try:
            tag, version, kind, flags, seq, body, serializer, annotations, _, checksum = _unpack_from(buffer, offset)
        except struct.error as error:
            raise ProtocolError("the header is cut short") from error
        if tag != TAG or version != VERSION:
            raise ProtocolError("invalid data or unsupported protocol version")
        if (kind + flags + seq + body + serializer + annotations + _CHECKSUM_SEED) & _MAX_U16 != checksum:
            raise ProtocolError("header checksum mismatch")
        if body < 0:
            raise ProtocolError("negative buffersize in recv")
        return Header(
            kind,
            _NEUTRAL_OF_WIRE[flags & _KNOWN_BITS],
            seq,
            _NAMES.get(serializer) or serializer_name(serializer, _NAMES),
            annotations,
            body,
            None,
        )

    def parse_small(self, data: bytes, offset: int, longest: int, apart: int = NEVER) -> tuple[Message, int] | None:
        """Nothing: answers of this protocol have annotations, which are looked at step by step."""
        return None

    def parse_annotations(self, data: Body, limit: int) -> tuple[dict[str, bytes], bytes | None, bytes | None]:
        """Annotations, correlation id and signature. Pyro4 accepts over-long chunks; here they are ProtocolErrors."""
        annotations = split_chunks(data, _CHUNK, limit, "unpack requires a buffer of 6 bytes")
        correlation_id = annotations.pop("CORR", None)
        if correlation_id is not None:
            check_correlation_id(correlation_id)
        return annotations, correlation_id, annotations.pop("HMAC", None)

    def sole_annotation(self, data: Body, offset: int, size: int) -> tuple[str, int] | None:
        """See `Codec.sole_annotation`."""
        return sole_chunk(data, offset, size, _CHUNK)

    def encode(self, message: Message, *, hmac_key: bytes | None = None) -> bytes:
        """The whole message. With a key it is signed; an empty key means none, as in Pyro4."""
        body = message.body
        size = len(body) if type(body) is bytes else body_size(body)
        if not hmac_key and not message.annotations and message.correlation_id is None:
            return self._header(message, size, 0) + body
        annotations = self._annotations(message, hmac_key)
        return b"".join((self._header(message, size, len(annotations)), annotations, body))

    def encode_small(self, kind: int, serializer: str, flags: int, seq: int, body: Body) -> bytes:
        """A message without annotations, correlation id and signature."""
        return self.encode(Message(kind, seq, serializer, flags, body))

    def encode_head(self, message: Message, body_length: int) -> bytes:
        """Header and annotations of a message whose body of ``body_length`` bytes is sent separately, unsigned."""
        annotations = self._annotations(message, None)
        return self._header(message, body_length, len(annotations)) + annotations

    def encode_buffers(self, message: Message) -> list[Body]:
        """The whole message in one buffer: annotations of this protocol are small."""
        return [self.encode(message)]

    def verify(self, key: bytes, message: Message, signature: bytes) -> None:
        """SecurityError unless ``signature`` is that of ``message`` under ``key``."""
        if not hmac.compare_digest(_sign(key, message), signature):
            raise SecurityError("message hmac mismatch")

    def _header(self, message: Message, body: int, annotations: int) -> bytes:
        if not 0 <= body <= _MAX_BODY:
            raise MessageTooLargeError(f"message too large ({body}, max={_MAX_BODY})")
        kind, seq = message.type, message.seq
        flags = _WIRE_OF_NEUTRAL[message.flags & _KNOWN_BITS]
        serializer = _NUMBERS.get(message.serializer)
        if serializer is None:
            serializer = serializer_number(message.serializer, _NAMES, _MAX_U16, VERSION)
        checksum = (kind + flags + seq + body + serializer + annotations + _CHECKSUM_SEED) & _MAX_U16
        try:
            return _pack(TAG, VERSION, kind, flags, seq, body, serializer, annotations, 0, checksum)
        except struct.error as error:
            raise ProtocolError(f"message type {kind} or sequence number {seq} is out of range") from error

    def _annotations(self, message: Message, hmac_key: bytes | None) -> bytes:
        if "CORR" in message.annotations or "HMAC" in message.annotations:
            raise ProtocolError("CORR and HMAC are written by protocol 48 itself, not given as annotations")
        return join_chunks(_in_wire_order(message, hmac_key), _CHUNK, _MAX_U16)


def _in_wire_order(message: Message, hmac_key: bytes | None) -> Iterator[tuple[str, Body]]:
    """The order in which Pyro4 puts them together: the caller's, CORR, the blob info, the signature."""
    for key, value in message.annotations.items():
        if key != "BLBI":
            yield key, value
    if message.correlation_id is not None:
        yield "CORR", check_correlation_id(message.correlation_id)
    if "BLBI" in message.annotations:
        yield "BLBI", message.annotations["BLBI"]
    if hmac_key:
        yield "HMAC", _sign(hmac_key, message)


def _sign(key: bytes, message: Message) -> bytes:
    """HMAC-SHA1 over the body as on the wire, then the values of all annotations in ascending order of their keys."""
    values: Mapping[str, Body] = message.annotations
    if message.correlation_id is not None:
        values = {**values, "CORR": message.correlation_id}
    mac = hmac.new(key, message.body, hashlib.sha1)
    for name in sorted(values):
        mac.update(values[name])
    return mac.digest()


V48: Final = CodecV48()
