"""What every channel is: one way to move the bytes of a transfer, in both directions.

Offer, ticket, digests, commit and receipt are the same for all and live elsewhere. The client's half of a channel is
a ``Channel``; the server's half is a class of exposed methods (or a handler of side streams) that finds the transfer
in ``Transfers`` and moves its bytes.
"""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final

from ..conversation import Conversation
from ..errors import PeerError
from ..offer import End, Ticket
from ..sink import Sink
from ..source import Source

MAX_BLOCK: Final = 1024 * 1024
"""Largest block of one call that a server takes or gives."""

Acknowledged = Callable[[int], None]
"""Told how many more bytes the receiver has written."""


class ChannelUnavailableError(Exception):
    """The channel could not be opened and nothing was moved: another one may be tried. The text says why."""


class Channel(ABC):
    """The client's half of one way to move bytes."""

    name: ClassVar[str]

    @abstractmethod
    async def push(self, talk: Conversation, ticket: Ticket, source: Source, acknowledged: Acknowledged) -> End:
        """Move the whole source to the server; returns the source's own count and digest.

        Raises:
            ChannelUnavailableError: nothing was moved.
            SourceChangedError: the source changed meanwhile.
            TransferError: what the receiver reported.
            CommunicationError: the connection broke.
        """

    @abstractmethod
    async def pull(self, talk: Conversation, ticket: Ticket, sink: Sink, acknowledged: Acknowledged) -> End:
        """Move the whole file from the server into the sink; returns the sender's count and digest.

        Raises:
            ChannelUnavailableError: nothing was moved.
            TransferError: what the sender reported, or the sink.
            CommunicationError: the connection broke.
        """


def as_bytes(value: object) -> bytes | bytearray | memoryview:
    """The bytes of a value that a peer sent, also in serpent's form for them.

    Raises:
        PeerError: the value is not bytes.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return value
    if isinstance(value, dict) and value.get("encoding") == "base64" and isinstance(value.get("data"), str):
        return _from_base64(value["data"])
    raise PeerError(f"expected a block of bytes, got {type(value).__name__}")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise PeerError("a block of bytes is not valid base64") from None
