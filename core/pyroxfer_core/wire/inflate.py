"""Bounded inflate, and deflate by each protocol's rules. Called late: the decoder never inflates."""

from __future__ import annotations

import zlib
from typing import Final

from ..errors import MessageTooLargeError, ProtocolError
from .frame import body_size
from .message import Body, Flags, MessageType

_V48_SMALLEST: Final = 200
_V502_SMALLEST: Final = 101
_V502_LEVEL: Final = 4


def inflate(body: Body, limit: int) -> bytes:
    """Inflate one zlib stream to at most ``limit`` bytes.

    MessageTooLargeError: it gives more; no more than ``limit`` + 1 bytes were made to find out. ProtocolError: not
    zlib, cut short, or followed by other bytes.
    """
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise ProtocolError(str(error)) from error
    if len(data) > limit:
        raise MessageTooLargeError(f"message too large after inflating (max={limit})")
    if not inflater.eof:
        raise ProtocolError("the compressed body is cut short")
    if inflater.unused_data:
        raise ProtocolError("the compressed body is followed by other data")
    return data


def deflate_for(version: int, body: Body, *, message_type: int, flags: int) -> bytes | None:
    """The deflated body, or None when it goes as it is: by the protocol's rules, or because it would not shrink.

    Protocol 48: from 200 bytes, never CONNECTFAIL nor exceptions, zlib's default level. Protocol 502: over 100 bytes,
    level 4. Pyro5 also sends what grew; both libraries read either.
    """
    size = body_size(body)
    if version == 48:
        if size < _V48_SMALLEST or message_type == MessageType.CONNECTFAIL or flags & Flags.EXCEPTION:
            return None
        level = zlib.Z_DEFAULT_COMPRESSION
    else:
        if size < _V502_SMALLEST:
            return None
        level = _V502_LEVEL
    deflated = zlib.compress(body, level)
    return deflated if len(deflated) < size else None
