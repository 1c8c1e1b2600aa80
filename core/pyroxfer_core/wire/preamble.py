"""How a connection opens: the preamble of a raw side stream, and telling the kinds of stream apart on one port."""

from __future__ import annotations

import struct
from typing import Final, Literal

from ..errors import ProtocolError
from .frame import PREFIX_SIZE, TAG
from .message import Body
from .v48 import V48
from .v502 import V502

RAW_MAGIC: Final = b"PXRW"
TOKEN_SIZE: Final = 120
_VERSION: Final = 1
_LAYOUT: Final = struct.Struct(f"!4sHH{TOKEN_SIZE}s")
PREAMBLE_SIZE: Final = _LAYOUT.size
"""128 bytes."""

_TLS_HANDSHAKE: Final = 0x16

StreamKind = Literal["48", "502", "raw", "tls", "unknown", "need-more"]

_PROTOCOLS: Final[dict[bytes, StreamKind]] = {
    TAG + V48.version.to_bytes(2, "big"): "48",
    TAG + V502.version.to_bytes(2, "big"): "502",
}


def encode_preamble(token: bytes) -> bytes:
    """The 128 bytes that open a raw side stream: magic, version 1, reserved 0, token padded with NULs.

    ProtocolError: the token is longer than 120 bytes.
    """
    if len(token) > TOKEN_SIZE:
        raise ProtocolError(f"a side stream's token has at most {TOKEN_SIZE} bytes, not {len(token)}")
    return _LAYOUT.pack(RAW_MAGIC, _VERSION, 0, token)


def parse_preamble(data: Body) -> bytes:
    """The token (120 bytes, NULs included) of a preamble. ProtocolError: length, magic, version or reserved field."""
    if len(data) != PREAMBLE_SIZE:
        raise ProtocolError(f"a side stream's preamble has {PREAMBLE_SIZE} bytes, not {len(data)}")
    magic, version, reserved, token = _LAYOUT.unpack(data)
    if magic != RAW_MAGIC:
        raise ProtocolError("not the preamble of a side stream")
    if version != _VERSION or reserved:
        raise ProtocolError(f"unsupported side stream version: {version}")
    assert isinstance(token, bytes)
    return token


def sniff(data: bytes) -> StreamKind:
    """What a connection's first bytes say it is; ``need-more`` while they cannot tell (never from six bytes on).

    One byte tells TLS, four a raw side stream, six a Pyro protocol. Six bytes that are none of these are ``unknown``:
    as many as Pyro5 reads before it answers, so that its version probe works.
    """
    if data[:1] == bytes((_TLS_HANDSHAKE,)):
        return "tls"
    if data.startswith(RAW_MAGIC):
        return "raw"
    if len(data) < PREFIX_SIZE:
        return "need-more"
    return _PROTOCOLS.get(data[:PREFIX_SIZE], "unknown")
