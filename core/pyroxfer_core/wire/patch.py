"""Single fields of encoded messages, read and changed without decoding: for those who pass messages on as they are.

Body and annotations that are there are never looked at. A signature does not cover the header, and stays valid where
no annotation is added.
"""

from __future__ import annotations

import struct
from typing import Final

from .message import Body

_SEQ: Final = struct.Struct("!H")
_SEQ_AT: Final = 10
"""In both protocols."""
_RESERVED_AT: Final = {48: 20, 502: 36}
_ANNOTATIONS_AT: Final = {48: (24, 18), 502: (40, 16)}
"""The size of a header, and where in it the length of the annotations stands."""
_LENGTH: Final = {48: _SEQ, 502: struct.Struct("!I")}
_CHUNK: Final = {48: struct.Struct("!4sH"), 502: struct.Struct("!4sI")}
_CHECKSUM_AT: Final = 22
"""Protocol 48 only. Its checksum is a sum that includes all numbers but the reserved field."""


def renumber(data: bytes, version: int, seq: int) -> bytes:
    """The same bytes, which begin with a header of protocol ``version``, under another sequence number."""
    (old,) = _SEQ.unpack_from(data, _SEQ_AT)
    if old == seq:
        return data
    changed = bytearray(data)
    _SEQ.pack_into(changed, _SEQ_AT, seq)
    if version == 48:
        (checksum,) = _SEQ.unpack_from(data, _CHECKSUM_AT)
        _SEQ.pack_into(changed, _CHECKSUM_AT, (checksum - old + seq) & 0xFFFF)
    return bytes(changed)


def hops_of(data: Body, version: int) -> int:
    """How many forwarders a CONNECT has passed: the reserved field, which every peer sends as 0 and ignores."""
    (hops,) = _SEQ.unpack_from(data, _RESERVED_AT[version])
    return int(hops)


def with_hops(data: bytes, version: int, hops: int) -> bytes:
    """The same bytes, with another count of forwarders passed."""
    changed = bytearray(data)
    _SEQ.pack_into(changed, _RESERVED_AT[version], hops)
    return bytes(changed)


def with_annotation(data: bytes, version: int, key: str, value: bytes) -> bytes:
    """The same bytes, which begin with a header, with one more annotation in front of all others.

    Returns:
        ``data`` itself, when protocol 48 has no room for it.
    """
    length, chunk, (header_size, at) = _LENGTH[version], _CHUNK[version], _ANNOTATIONS_AT[version]
    added = chunk.pack(key.encode(), len(value)) + value
    (old,) = length.unpack_from(data, at)
    changed = bytearray(data[:header_size])
    try:
        length.pack_into(changed, at, old + len(added))
    except struct.error:
        return data
    if version == 48:
        (checksum,) = _SEQ.unpack_from(data, _CHECKSUM_AT)
        _SEQ.pack_into(changed, _CHECKSUM_AT, (checksum + len(added)) & 0xFFFF)
    return bytes(changed) + added + data[header_size:]
