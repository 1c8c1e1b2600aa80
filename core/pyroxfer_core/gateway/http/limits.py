"""What a caller may ask of the server. Sizes are bytes, times are seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...settings import KIB, MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server."""

    connections: int = 1_000
    """Held at once. For one more, the one that has been idle for the longest time is closed."""
    header_bytes: int = 16 * KIB
    """Request line and headers together."""
    headers: int = 100
    """Header lines of one request."""
    body_bytes: int = 1 * MIB
    """Of one request."""
    buffered_bytes: int = 64 * MIB
    """Request bodies of all connections together, until their answers are sent."""
    idle_s: float = 30.0
    """How long a connection may stay without a request."""
    request_s: float = 30.0
    """How long a request may take to arrive, from its first byte."""
    send_s: float = 30.0
    """How long PIECE bytes of an answer may take to leave."""
    handshake_s: float = 10.0
    """How long the TLS handshake may take."""
    grace_s: float = 5.0
    """How long running requests may go on when the server stops."""


PIECE: Final = 256 * KIB
"""Bytes of an answer that are sent in one step."""


LINGER_S: Final = 1.0
"""How long a refused caller may go on sending, so that it gets to read why."""


class HttpError(Exception):
    """The request cannot be read; the connection ends with this answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Budget:
    """Bytes that may be kept at once."""

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> None:
        """Reserve.

        Raises:
            HttpError: 503, there is no more.
        """
        if size > self.left:
            raise HttpError(503, "too many large requests at once")
        self.left -= size

    def give_back(self, size: int) -> None:
        self.left += size
