"""Proving within the handshake that a client knows a token, without showing it. Layouts: ``docs/protocol.md``.

The daemon answers the first CONNECT with a challenge in CONNECTFAIL, and the client sends CONNECT once more on the
same connection, with a proof. A stock client that hands on an annotation it does not know is just refused.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from .message import Body

AUTH_KEY: Final = "PXAU"
NONCE_SIZE: Final = 16
PROOF_SIZE: Final = 32

_VERSION: Final = 1
_DENIED, _HELLO, _CHALLENGE, _PROOF = range(4)
_LABEL: Final = b"pyroxfer client proof 1\0"


def _write(kind: int, *parts: bytes) -> bytes:
    return bytes((_VERSION, kind)) + b"".join(parts)


def _read(annotation: Body | None, kind: int, size: int) -> bytes | None:
    value = bytes(annotation or b"")
    return value[2:] if value[:2] == bytes((_VERSION, kind)) and len(value) == 2 + size else None


def prove(token: str, client_nonce: bytes, daemon_nonce: bytes) -> bytes:
    """What only who knows the token can say on this connection."""
    return hmac.digest(token.encode(), _LABEL + client_nonce + daemon_nonce, hashlib.sha256)


class Prover:
    """The client's side of one connection."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._nonce = secrets.token_bytes(NONCE_SIZE)
        self._proof: bytes | None = None

    def annotation(self) -> bytes:
        """What CONNECT carries."""
        return _write(_HELLO, self._nonce) if self._proof is None else _write(_PROOF, self._proof)

    def is_challenge(self, annotation: Body | None) -> bool:
        """Take note of the daemon's challenge in a CONNECTFAIL. One that came before, or is no answer, is none."""
        value = _read(annotation, _CHALLENGE, 2 * NONCE_SIZE)
        if value is None or self._proof is not None or not hmac.compare_digest(value[:NONCE_SIZE], self._nonce):
            return False
        self._proof = prove(self._token, self._nonce, value[NONCE_SIZE:])
        return True


class Challenge:
    """The daemon's side of one connection."""

    def __init__(self, client_nonce: bytes) -> None:
        self.client_nonce = client_nonce
        self.daemon_nonce = secrets.token_bytes(NONCE_SIZE)

    @staticmethod
    def asked_for(annotation: Body | None) -> Challenge | None:
        """The challenge for a client whose CONNECT says that it can prove something; None when it does not."""
        nonce = _read(annotation, _HELLO, NONCE_SIZE)
        return None if nonce is None else Challenge(nonce)

    def annotation(self) -> bytes:
        """What CONNECTFAIL carries."""
        return _write(_CHALLENGE, self.client_nonce, self.daemon_nonce)

    def is_proof(self, annotation: Body | None, token: str) -> bool:
        """Whether a CONNECT proves that its client knows the token. Takes the same time whatever is wrong."""
        proof = _read(annotation, _PROOF, PROOF_SIZE) or bytes(PROOF_SIZE)
        return hmac.compare_digest(proof, prove(token, self.client_nonce, self.daemon_nonce))


def denial() -> bytes:
    """What a CONNECTFAIL carries when it is about who the client is."""
    return _write(_DENIED)


def is_denial(annotation: Body | None) -> bool:
    """Whether a CONNECTFAIL is about who the client is."""
    return _read(annotation, _DENIED, 0) is not None
