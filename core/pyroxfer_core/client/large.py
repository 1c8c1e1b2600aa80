"""Large messages of a client: requests that leave in pieces, answers that come in pieces."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final

from ..errors import MessageTooLargeError, ProtocolError
from ..transport.connection import Connection
from ..transport.turns import TurnSender
from ..wire.message import Message, MessageType
from ..wire.pieces import MAX_BODIES, Incoming, Outgoing
from ..wire.session import ClientSession

ANSWERS: Final = frozenset({MessageType.RESULT, MessageType.ITEMS})


def _is_answer(begin: Message) -> bool:
    return len(begin.body) > 0 and begin.body[0] == MessageType.RESULT


class LargeAnswers:
    """Puts answers together.

    Args:
        limit: bytes of one body.
        pending: the sequence numbers of calls in flight.
    """

    def __init__(self, limit: int, pending: Container[int]) -> None:
        self._incoming = Incoming(limit, limit * MAX_BODIES, ANSWERS)
        self._pending = pending

    def place_of(self, number: int, size: int) -> memoryview | None:
        """See `Incoming.place_of`."""
        return self._incoming.place_of(number, size)

    def take(self, message: Message) -> Message | None:
        """Take a BEGIN or PIECE; the answer that it completes.

        Raises:
            ProtocolError: it must not come now, is malformed, or answers no call.
            MessageTooLargeError: the announced size is over the limit; nothing of it was kept.
        """
        if message.type == MessageType.BEGIN and _is_answer(message) and message.seq not in self._pending:
            raise ProtocolError(f"invalid sequence number received: {message.seq} answers no call")
        arrival = self._incoming.take(message)
        if arrival is None or arrival.dropped:
            return None
        if arrival.refusal is not None:
            raise MessageTooLargeError(arrival.refusal)
        return arrival.message


class LargeMessages:
    """Both ways of one connection; requests are sent by the task that waits for the answer."""

    def __init__(self, connection: Connection, session: ClientSession[Any]) -> None:
        self._codec = connection.codec
        self._session = session
        self._answers = LargeAnswers(connection.decoder.max_message, session.pending)
        connection.decoder.place_of = self._answers.place_of
        self.sender = TurnSender(connection)

    def take(self, message: Message) -> Message | None:
        """See `LargeAnswers.take`."""
        return self._answers.take(message)

    def leave(self, message: Message) -> Outgoing | None:
        """A request as one to be sent in pieces; None for anything else. Errors as `Connection.queue`."""
        if message.type != MessageType.INVOKE:
            return None
        self._session.postpone(message)
        return Outgoing(message, self._codec, self._session.confirm)
