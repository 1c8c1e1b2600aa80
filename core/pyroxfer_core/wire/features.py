"""What two ends of this library agreed on at connect. Layouts: ``docs/protocol.md``.

A grant counts only when it repeats the nonce of *this* connection: stock daemons hand request annotations on to the
daemons they call, so a grant can arrive where nobody asked.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from dataclasses import dataclass
from typing import Final

from .message import Body
from .proof import AUTH_KEY

FEATURES_KEY: Final = "PXFT"
DEADLINE_KEY: Final = "PXDL"
OUTCOME_KEY: Final = "PXOC"
CALL_KEY: Final = "PXKY"
CHAIN_KEY: Final = "PXCH"
PUSHED_KEY: Final = "PXPS"
HOP_KEYS: Final = frozenset({PUSHED_KEY, FEATURES_KEY, AUTH_KEY, DEADLINE_KEY, OUTCOME_KEY, CALL_KEY, CHAIN_KEY})
"""Annotations that belong to one connection: hidden from handlers and callers, never forwarded."""

NONCE_SIZE: Final = 16
CHAIN_SIZE: Final = 16
MIN_KEY_SIZE: Final = 16
MAX_KEY_SIZE: Final = 64
MAX_DEADLINE_MS: Final = 0xFFFFFFFF

_VERSION: Final = 1
_OFFER: Final = struct.Struct("!BI16s")
_GRANT: Final = struct.Struct("!BI16s16s16s")
_DEADLINE: Final = struct.Struct("!4sI")


class Feature:
    """Feature bits, each independent of the others."""

    CONCURRENT: Final = 0x01
    CANCEL: Final = 0x02
    DEADLINE: Final = 0x04
    TYPED: Final = 0x08
    GOAWAY: Final = 0x10
    KEY: Final = 0x20
    HEARTBEAT: Final = 0x40
    REVERSE: Final = 0x80
    CHAIN: Final = 0x100
    OUT_OF_BAND: Final = 0x200
    PIECES: Final = 0x400
    PUSH: Final = 0x800
    UPLOAD: Final = 0x1000
    ALL: Final = 0x1F | KEY | HEARTBEAT | REVERSE | CHAIN | OUT_OF_BAND | PIECES | PUSH | UPLOAD
    NEED_CONCURRENT: Final = HEARTBEAT | REVERSE | PIECES | PUSH | UPLOAD
    OF_CALLS: Final = CONCURRENT | CANCEL | DEADLINE | TYPED | KEY | HEARTBEAT | REVERSE | CHAIN | OUT_OF_BAND


@dataclass(frozen=True, slots=True)
class Grant:
    """What was agreed: ``bits`` (0 towards a stock peer), the daemon's nonce and its epoch."""

    bits: int = 0
    nonce: bytes = bytes(NONCE_SIZE)
    epoch: bytes = bytes(NONCE_SIZE)

    def __contains__(self, feature: int) -> bool:
        return self.bits & feature != 0

    def is_confirmed_by(self, annotation: Body) -> bool:
        """Whether the ``PXFT`` of a client's first message repeats this grant: only then it is in force."""
        answer = read_offer(annotation)
        return answer is not None and answer[1] == self.nonce

    @property
    def confirmation(self) -> bytes:
        """The ``PXFT`` with which the client's first message puts this grant into force."""
        return write_offer(self.bits, self.nonce)

    def deadline(self, milliseconds: int) -> bytes:
        """The value of a ``PXDL`` annotation on this connection."""
        return _DEADLINE.pack(self.nonce[:4], max(0, min(milliseconds, MAX_DEADLINE_MS)))

    def read_deadline(self, annotation: Body | None) -> int | None:
        """Milliseconds of a ``PXDL`` annotation; None when absent, malformed, not agreed on, or of another peer."""
        if annotation is None or not self.bits & Feature.DEADLINE or len(annotation) != _DEADLINE.size:
            return None
        prefix, milliseconds = _DEADLINE.unpack(annotation)
        return int(milliseconds) if prefix == self.nonce[:4] else None

    def key(self, value: bytes) -> bytes:
        """The value of a ``PXKY`` annotation on this connection."""
        return self.nonce[:4] + value

    def read_key(self, annotation: Body | None) -> bytes | None:
        """The key of a ``PXKY`` annotation; None when absent, malformed, not agreed on, or of another connection."""
        if annotation is None or not self.bits & Feature.KEY:
            return None
        fits = MIN_KEY_SIZE <= len(annotation) - 4 <= MAX_KEY_SIZE and annotation[:4] == self.nonce[:4]
        return bytes(annotation[4:]) if fits else None

    def chain(self, value: bytes) -> bytes:
        """The value of a ``PXCH`` annotation on this connection."""
        return self.nonce[:4] + value

    def read_chain(self, annotation: Body | None) -> bytes | None:
        """The chain of a ``PXCH`` annotation; None when absent, malformed, not agreed on, or of another grant."""
        if annotation is None or not self.bits & Feature.CHAIN or len(annotation) != 4 + CHAIN_SIZE:
            return None
        return bytes(annotation[4:]) if annotation[:4] == self.nonce[:4] else None

    def reversed(self) -> Grant:
        """What holds for calls in the reverse direction: what concerns the bytes of a message stays behind."""
        return Grant(self.bits & Feature.OF_CALLS, self.nonce, self.epoch)

    def stream(self, number: int) -> bytes:
        """The value of a ``PXPS`` annotation on this connection."""
        return self.nonce[:4] + number.to_bytes(2, "big")

    def read_stream(self, annotation: Body | None) -> int | None:
        """The number of a ``PXPS`` annotation; None when absent, malformed, not agreed on, or of another peer."""
        value = bytes(annotation or b"") if self.bits & Feature.PUSH else b""
        return int.from_bytes(value[4:], "big") if len(value) == 6 and value[:4] == self.nonce[:4] else None

    def outcome(self, letter: bytes) -> bytes:
        """The value of a ``PXOC`` annotation on this connection; ``letter`` is ``N`` or ``U``."""
        return self.nonce[:4] + letter

    def read_outcome(self, annotation: Body | None) -> str | None:
        """``N``, ``U``, or None when absent, malformed or of another connection."""
        value = bytes(annotation or b"") if self.bits else b""
        return chr(value[4]) if len(value) == 5 and value[:4] == self.nonce[:4] and value[4:] in b"NU" else None


STOCK: Final = Grant()
"""Nothing agreed: the peer is, or must be treated as, a stock Pyro."""


def write_offer(bits: int, nonce: bytes) -> bytes:
    """The annotation of CONNECT, and (with the daemon's nonce) of the client's first message."""
    return _OFFER.pack(_VERSION, bits, nonce)


def new_offer(bits: int) -> bytes:
    """The annotation of CONNECT on a new connection."""
    return write_offer(bits, secrets.token_bytes(NONCE_SIZE))


def read_offer(annotation: Body | None) -> tuple[int, bytes] | None:
    """Bits and nonce of an offer; None when absent or not of this version."""
    if annotation is None or len(annotation) != _OFFER.size:
        return None
    version, bits, nonce = _OFFER.unpack(annotation)
    return (bits, nonce) if version == _VERSION else None


def consistent(bits: int) -> int:
    """The bits without those that make no sense without others."""
    return bits if bits & Feature.CONCURRENT else bits & ~Feature.NEED_CONCURRENT


def write_grant(grant: Grant, client_nonce: bytes) -> bytes:
    """The annotation of CONNECTOK."""
    return _GRANT.pack(_VERSION, grant.bits, client_nonce, grant.nonce, grant.epoch)


def read_grant(annotation: Body | None, client_nonce: bytes, offered: int) -> Grant:
    """What the daemon granted; STOCK unless the annotation repeats ``client_nonce``. Never more than was offered."""
    if annotation is None or len(annotation) != _GRANT.size:
        return STOCK
    version, bits, echoed, nonce, epoch = _GRANT.unpack(annotation)
    if version != _VERSION or not hmac.compare_digest(echoed, client_nonce):
        return STOCK
    return Grant(bits & offered & Feature.ALL, nonce, epoch)


def overheard(offer: Body | None, grant: Body | None) -> Grant:
    """What two peers agreed on, for a forwarder that their annotations of CONNECT and CONNECTOK pass."""
    offered = read_offer(offer)
    return STOCK if offered is None else read_grant(grant, offered[1], offered[0])
