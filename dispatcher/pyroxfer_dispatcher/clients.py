"""The client of a conversation, and what can be said to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from pyroxfer_core import StreamSocket, error_body
from pyroxfer_core.wire import Body, Codec, Flags, Head, Message, MessageType

from .channel import Channel, Lose, Take
from .events import BlobArrived, Event, Piece
from .frames import Sealed
from .hub import Hub

_JOIN_BELOW: Final = 32 * 1024
"""Head and body up to this size leave as one buffer."""


class ClientSide(Protocol):
    """The client of a conversation: a connection, or what one call of several at once has of it."""

    @property
    def closed(self) -> bool:
        """Whether it is gone."""

    @property
    def pending(self) -> int:
        """Bytes that wait to go out."""

    @property
    def moved(self) -> int:
        """Bytes that went through so far, both ways."""

    @property
    def is_clogged(self) -> bool:
        """Whether enough waits to go out."""

    @property
    def is_paused(self) -> bool:
        """Whether nothing is taken in for now."""

    def pause(self) -> None:
        """Take nothing more in for now."""

    def resume(self) -> None:
        """Go on taking in."""

    def on_drained(self, call: Callable[[], None]) -> None:
        """Call this once when everything has left."""

    def send(self, message: Message, body_length: int | None = None) -> None:
        """A message, or the head of one. ProtocolError, MessageTooLargeError: it cannot be written."""

    def send_part(self, data: Body) -> None:
        """A piece of the body of the last head."""

    def close(self) -> None:
        """Close at once. Twice is fine."""

    def give_up(self) -> None:
        """Serving it failed: close, and tell whoever has it that it is gone."""


class DirectClient(Channel):
    """A client that makes one call after another on its connection."""

    __slots__ = ("_codec",)

    def __init__(self, hub: Hub, sock: StreamSocket, codec: Codec, on_data: Take, on_lost: Lose) -> None:
        super().__init__(hub, sock, on_data, on_lost)
        self._codec = codec

    def send(self, message: Message, body_length: int | None = None) -> None:
        """As of `ClientSide`."""
        write_message(self, self._codec, message, body_length)

    def send_part(self, data: Body) -> None:
        """As of `ClientSide`."""
        self.write(data)


def refusal_of(request: Message, version: int, text: str) -> Message:
    """The answer to a call which the dispatcher itself refuses."""
    body = error_body(request.serializer, version, text)
    answer = Message(MessageType.RESULT, request.seq, request.serializer, Flags.EXCEPTION, body)
    answer.correlation_id = request.correlation_id
    return answer


def write_message(channel: Channel, codec: Codec, message: Message, body_length: int | None) -> None:
    """Send a message, or the head of one.

    Raises:
        ProtocolError, MessageTooLargeError: it cannot be written in this protocol; nothing was sent.
    """
    if type(message) is Sealed:
        channel.write(message.data)
    elif body_length is not None:
        channel.write(codec.encode_head(message, body_length))
    elif len(message.body) <= _JOIN_BELOW:
        channel.write(codec.encode(message))
    else:
        channel.write_both(codec.encode_head(message, len(message.body)), message.body)


def from_client(piece: Piece) -> Event:
    """What has come of a request."""
    if isinstance(piece, Message):
        return BlobArrived(piece)
    return BlobArrived(piece.message, piece.body_length) if isinstance(piece, Head) else piece
