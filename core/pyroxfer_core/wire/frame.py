"""What both codecs share: the parsed header, the walk over annotation chunks, and serializer names."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ..errors import MessageTooLargeError, ProtocolError
from .message import Body

TAG: Final = b"PYRO"
PREFIX_SIZE: Final = 6
"""Tag and version: the first bytes of both headers, enough to tell the protocols apart."""
KEY_SIZE: Final = 4
CORRELATION_ID_SIZE: Final = 16

NEVER: Final = sys.maxsize
"""No body is as long."""
CHUNK_TOO_LONG: Final = "annotation chunk length exceeds remaining data"
BAD_CORRELATION_ID: Final = "bytes is not a 16-char string"


@dataclass(slots=True)
class Header:
    """One parsed header in neutral terms. Not frozen for the same reason as Message."""

    type: int
    flags: int
    """Neutral bits of ``Flags``."""
    seq: int
    serializer: str
    annotations_length: int
    body_length: int
    correlation_id: bytes | None
    """Protocol 502 only; protocol 48 has it among the annotations."""


def body_size(body: Body) -> int:
    """Bytes in ``body``; the length of a memoryview counts items, which may be wider."""
    return body.nbytes if isinstance(body, memoryview) else len(body)


def split_chunks(data: Body, head: struct.Struct, limit: int, short_text: str) -> dict[str, bytes]:
    """Split an annotation area; ``head`` is the layout of a chunk's key and length. The last of equal keys wins.

    ProtocolError: a chunk does not fit (``short_text`` when not even its head does), a key is not ASCII, or there
    are more than ``limit`` chunks.
    """
    annotations: dict[str, bytes] = {}
    offset, end, count = 0, len(data), 0
    while offset < end:
        count += 1
        if count > limit:
            raise ProtocolError(f"more than {limit} annotations")
        if end - offset < head.size:
            raise ProtocolError(short_text)
        key, length = head.unpack_from(data, offset)
        offset += head.size
        if length > end - offset:
            raise ProtocolError(CHUNK_TOO_LONG)
        annotations[_text_of_key(key)] = bytes(data[offset : offset + length])
        offset += length
    return annotations


def sole_chunk(data: Body, offset: int, size: int, head: struct.Struct) -> tuple[str, int] | None:
    """Key and length of the chunk that fills an area of ``size`` bytes by itself, if what is there says so."""
    if len(data) - offset < head.size:
        return None
    key, length = head.unpack_from(data, offset)
    return (key.decode(), length) if length + head.size == size and key.isascii() else None


def _text_of_key(key: bytes) -> str:
    try:
        return key.decode("ascii")
    except UnicodeDecodeError as error:
        raise ProtocolError(str(error)) from error


def join_chunks(items: Iterable[tuple[str, Body]], head: struct.Struct, limit: int) -> bytes:
    """The annotation area for ``items``, in their order. Errors as ``chunks_of``."""
    return b"".join(chunks_of(items, head, limit))


def chunks_of(items: Iterable[tuple[str, Body]], head: struct.Struct, limit: int) -> list[Body]:
    """The buffers of the annotation area for ``items``: head and value of each, in their order.

    ProtocolError: a key is not 4 ASCII characters, or a value is not bytes. MessageTooLargeError: all chunks together
    exceed ``limit`` bytes.
    """
    parts: list[Body] = []
    total = 0
    for key, value in items:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise ProtocolError(f"the value of an annotation is bytes, not {type(value).__name__}")
        size = body_size(value)
        total += head.size + size
        if total > limit:
            raise MessageTooLargeError(f"annotations too large ({total}, max={limit})")
        parts.append(head.pack(_key_of_text(key), size))
        parts.append(value)
    return parts


def _key_of_text(key: str) -> bytes:
    if not isinstance(key, str) or len(key) != KEY_SIZE or not key.isascii():
        raise ProtocolError(f"an annotation key is 4 ASCII characters, not {key!r}")
    return key.encode("ascii")


def check_correlation_id(value: bytes) -> bytes:
    """``value``, when it is the 16 bytes of a UUID; ProtocolError otherwise."""
    if len(value) != CORRELATION_ID_SIZE:
        raise ProtocolError(BAD_CORRELATION_ID)
    return value


def serializer_name(number: int, names: Mapping[int, str]) -> str:
    """The neutral name of a wire number; ``unknown-N`` for numbers without a name."""
    return names.get(number) or f"unknown-{number}"


def serializer_number(name: str, names: Mapping[int, str], largest: int, version: int) -> int:
    """The wire number of a name that is not in the protocol's table: only ``unknown-N`` has one.

    ProtocolError for every other name, so that nothing is sent under a wrong number.
    """
    digits = name.removeprefix("unknown-")
    if digits != name and digits.isdecimal() and digits.isascii() and len(digits) <= len(str(largest)):
        number = int(digits)
        if number <= largest and name == serializer_name(number, names):
            return number
    raise ProtocolError(f"protocol {version} has no serializer {name!r}")
