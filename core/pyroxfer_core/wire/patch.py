"""Single fields of encoded messages, read and changed without decoding: for those who pass messages on as they are.

Annotations and body are never looked at, so a signature (which does not cover the header) stays valid.
"""

from __future__ import annotations

import struct
from typing import Final

from .message import Body

_SEQ: Final = struct.Struct("!H")
_SEQ_AT: Final = 10
"""In both protocols."""
_RESERVED_AT: Final = {48: 20, 502: 36}
_CHECKSUM_AT: Final = 22
"""Protocol 48 only. Its checksum is a sum that includes the sequence number, and not the reserved field."""


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
