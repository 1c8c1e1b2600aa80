"""Grants: signed, single-use permissions to open one side stream.

The key that signs them is made anew for every book and never leaves it, as does the list of those that were used:
after a restart, or at another server of the same files, no grant from before opens anything.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .errors import DeniedError

LIFETIME_S: Final = 30.0
"""A grant not used within this time is void."""
UPLOAD: Final = 1
DOWNLOAD: Final = 2

_BODY: Final = struct.Struct(">BBH16sQQQ16s")
"""Layout version, direction, issuer, transfer id, offset, length, expiry in milliseconds of its clock, nonce."""
_VERSION: Final = 2
_MAX_ISSUER: Final = 2**16 - 1
TOKEN_BYTES: Final = _BODY.size + hashlib.sha256().digest_size
"""92: within the 120 opaque bytes that a side stream's preamble carries."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One range of one transfer, one way."""

    direction: int
    transfer_id: str
    offset: int
    length: int


def issuer_of(token: bytes) -> int | None:
    """The number of the book that a token names, which alone can tell whether it is good; None when it is none."""
    if len(token) < TOKEN_BYTES or token[0] != _VERSION:
        return None
    issuer: int = _BODY.unpack_from(token)[2]
    return issuer


class GrantBook:
    """Issues grants under a key of its own and redeems each once.

    Args:
        clock: gives seconds that never go back.
        issuer: the number of this book, where several serve one folder: up to 65,535.
    """

    def __init__(self, clock: Callable[[], float], issuer: int = 0) -> None:
        if not 0 <= issuer <= _MAX_ISSUER:
            raise ValueError(f"a book of grants has a number from 0 to {_MAX_ISSUER}")
        self._clock = clock
        self._issuer = issuer
        self._key = secrets.token_bytes(32)
        self._used: dict[bytes, float] = {}

    def issue(self, grant: Grant) -> bytes:
        """The token of a new grant, valid for half a minute."""
        expiry = int((self._clock() + LIFETIME_S) * 1000)
        body = _BODY.pack(
            _VERSION,
            grant.direction,
            self._issuer,
            bytes.fromhex(grant.transfer_id),
            grant.offset,
            grant.length,
            expiry,
            secrets.token_bytes(16),
        )
        return body + self._sign(body)

    def redeem(self, token: bytes) -> Grant:
        """The grant behind a token, which is void afterwards.

        Raises:
            DeniedError: forged, expired, or used before; the text does not tell which of the first two.
        """
        body, signature = token[: _BODY.size], token[_BODY.size : TOKEN_BYTES]
        if len(body) < _BODY.size or not hmac.compare_digest(signature, self._sign(body)):
            raise DeniedError("the side stream's grant is not valid")
        version, direction, _, transfer_id, offset, length, expiry, nonce = _BODY.unpack(body)
        now = self._clock()
        if version != _VERSION or expiry / 1000 < now:
            raise DeniedError("the side stream's grant is not valid")
        self._forget(now)
        if nonce in self._used:
            raise DeniedError("the side stream's grant was used before")
        self._used[nonce] = now + LIFETIME_S
        return Grant(direction, transfer_id.hex(), offset, length)

    def _forget(self, now: float) -> None:
        """Drop nonces whose grants have expired; they stand in the order of their use."""
        while self._used and next(iter(self._used.values())) < now:
            del self._used[next(iter(self._used))]

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")
