"""What every channel is: one way to move the bytes of a transfer, in both directions.

Offer, ticket, digests, commit and receipt are the same for all and live elsewhere. The client's half of a channel is
a ``Channel``; the server's half is a class of exposed methods (or a handler of side streams) that finds the transfer
in ``Transfers`` and moves its bytes.
"""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from ..conversation import Conversation
from ..errors import PeerError
from ..offer import End, Ticket
from ..pace import FREE, Pace
from ..packing import Packing
from ..sink import Sink
from ..source import Source

MAX_BLOCK: Final = 1024 * 1024
"""Largest block of one call that a server takes or gives."""

Acknowledged = Callable[[int], None]
"""Told how many more bytes the receiver has written."""


AUTO_STREAMS: Final = 0
MOST_STREAMS: Final = 16
_LONG_LINE_S: Final = 0.005
_SEVERAL: Final = 4
_WORTH_IT: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Manner:
    """How the bytes are to be moved, whatever the channel."""

    pace: Pace = FREE
    streams: int = 1
    """Side streams at once; ``AUTO_STREAMS`` decides by the length of the line."""
    round_trip_s: float = 0.0
    """How long a call takes that does nothing."""
    packing: Packing | None = None
    """What packs blocks in calls where it pays; None never packs."""

    def streams_for(self, ticket: Ticket) -> int:
        """Side streams for one transfer: several fill a long line that one window cannot, and only cost on a short
        one."""
        missing = sum(length for _, length in ticket.missing)
        if self.streams != AUTO_STREAMS:
            return max(1, min(self.streams, MOST_STREAMS))
        return _SEVERAL if self.round_trip_s >= _LONG_LINE_S and missing >= _WORTH_IT else 1


AS_FAST_AS_CAN_BE: Final = Manner()


class ChannelUnavailableError(Exception):
    """The channel could not be opened and nothing was moved: another one may be tried. The text says why."""


class Channel(ABC):
    """The client's half of one way to move bytes."""

    name: ClassVar[str]

    @abstractmethod
    async def push(
        self, talk: Conversation, ticket: Ticket, source: Source, acknowledged: Acknowledged, manner: Manner
    ) -> End:
        """Move what the ticket says is missing to the server; returns the source's own count and digest of the whole.

        Raises:
            ChannelUnavailableError: nothing was moved.
            SourceChangedError: the source changed meanwhile.
            TransferError: what the receiver reported.
            CommunicationError: the connection broke.
        """

    @abstractmethod
    async def pull(
        self, talk: Conversation, ticket: Ticket, sink: Sink, acknowledged: Acknowledged, manner: Manner
    ) -> End:
        """Move what the ticket says is missing into the sink; returns the sender's count and digest of the whole.

        Raises:
            ChannelUnavailableError: nothing was moved.
            TransferError: what the sender reported, or the sink.
            CommunicationError: the connection broke.
        """


def credit_in(reply: Mapping[str, Any]) -> int:
    """How many bytes the server takes or gives at once from now on, by its answer to a block.

    Raises:
        PeerError: it does not say.
    """
    credit = reply.get("credit")
    if isinstance(credit, bool) or not isinstance(credit, int) or credit < 1:
        raise PeerError("the server answered to a block without a credit")
    return credit


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
