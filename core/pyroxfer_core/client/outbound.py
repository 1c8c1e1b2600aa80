"""The streams that a client sends on one connection, by number."""

from __future__ import annotations

from typing import Final, Protocol

from ..errors import ProtocolError, PyroError
from ..serializers.base import Serializer
from ..wire.message import Flags, Message, MessageType

ENDED: Final = "the call that this stream was an argument of has ended"


def ended(number: int, serializer: Serializer, error: BaseException) -> Message:
    """The end of a stream by an error."""
    return Message(MessageType.ITEMS, number, serializer.name, Flags.EXCEPTION, serializer.dumps_exception(error))


class Sender(Protocol):
    """Who sends one stream."""

    number: int

    def take(self, message: Message) -> None:
        """A CREDIT or STOP has arrived."""


class Outbound:
    """Gives out numbers, and passes on what the reader says. May be used by several threads."""

    def __init__(self) -> None:
        self._senders: dict[int, Sender] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._senders)

    def add(self, sender: Sender) -> int:
        """A number for a new stream.

        Raises:
            ProtocolError: there is none left.
        """
        for _ in range(0xFFFF):
            self._last = number = (self._last + 1) & 0xFFFF
            if self._senders.setdefault(number, sender) is sender:
                return number
        raise ProtocolError("65535 streams are being sent on this connection already")

    def take(self, message: Message, serializer: Serializer) -> Message | None:
        """Give a CREDIT or STOP to the stream that it is for; what to answer if there is none."""
        sender = self._senders.get(message.seq)
        if sender is not None:
            sender.take(message)
            return None
        return None if message.type == MessageType.STOP else ended(message.seq, serializer, PyroError(ENDED))

    def remove(self, sender: Sender) -> None:
        """A stream has ended. Twice is fine."""
        if self._senders.get(sender.number) is sender:
            del self._senders[sender.number]
