"""Large messages of one connection: requests that come in pieces, answers that leave in pieces."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from ..errors import MessageTooLargeError, PyroError, RefusedError, SerializeError
from ..serializers.base import Serializer
from ..transport.turns import TurnSender
from ..wire.features import DEADLINE_KEY
from ..wire.message import Message, MessageType
from ..wire.pieces import Arrival, Incoming, Outgoing
from .execute import failure

if TYPE_CHECKING:
    from .peer import Peer

log = logging.getLogger(__name__)

_FROM_CLIENT: Final = frozenset({MessageType.INVOKE, MessageType.ITEMS})


class LargeMessages:
    """Made with the first large message of a peer that takes them in pieces.

    Args:
        start_soon: makes a task, in which an answer leaves, so that requests are read on meanwhile.
    """

    def __init__(self, peer: Peer, start_soon: Callable[..., None]) -> None:
        limit = peer.settings.max_message_bytes
        self._peer = peer
        self._start_soon = start_soon
        self._incoming = Incoming(limit, limit, _FROM_CLIENT)
        peer.connection.decoder.place_of = self._incoming.place_of
        self.sender = TurnSender(peer.connection)
        self._leaving: dict[int, Outgoing] = {}
        """Answers by sequence number."""
        self._cancelled: set[int] = set()
        self._since: dict[int, float] = {}
        """When requests with a deadline began to come, by sequence number."""

    def take(self, message: Message) -> Message | None:
        """Take a BEGIN or PIECE; the request, or the item of a stream, that it completes.

        Raises:
            ProtocolError: it must not come now, or is malformed.
            MessageTooLargeError: an item is beyond the limit.
        """
        arrival = self._incoming.take(message)
        if message.type == MessageType.BEGIN and DEADLINE_KEY in message.annotations:
            self._since[message.seq] = trio.current_time()
        if arrival is None:
            return None
        request = arrival.message
        if request.type == MessageType.ITEMS:
            if arrival.refusal is not None:
                raise MessageTooLargeError(arrival.refusal)
            return None if arrival.dropped else request
        since = self._since.pop(request.seq, None)
        if arrival.refusal is not None or arrival.dropped:
            self._refuse(arrival)
            return None
        if since is not None:
            self._shorten_deadline(request, since)
        return request

    def _shorten_deadline(self, request: Message, since: float) -> None:
        """Count the deadline from the first byte of the request."""
        grant = self._peer.session.grant
        milliseconds = grant.read_deadline(request.annotations.get(DEADLINE_KEY))
        if milliseconds is not None:
            passed = int((trio.current_time() - since) * 1000)
            request.annotations[DEADLINE_KEY] = grant.deadline(milliseconds - passed)

    def _refuse(self, arrival: Arrival) -> None:
        peer, request = self._peer, arrival.message
        serializer: Serializer | None = None
        try:
            serializer = peer.serializer(request.serializer)
        except SerializeError:
            pass  # said in marshal, then
        error = RefusedError(arrival.refusal or "cancelled before it had come")
        answer = failure(peer, request, serializer, error, dispatched=False)
        if answer is not None:
            peer.connection.queue(answer)

    def leave(self, answer: Message) -> Outgoing:
        """Send a large answer; the call counts as in flight until it has left. Errors as `Connection.queue`."""
        outgoing = Outgoing(answer, self._peer.connection.codec)
        self._leaving[answer.seq] = outgoing
        self._peer.answer_leaves(len(answer.body))
        self._start_soon(self._send, outgoing)
        return outgoing

    async def _send(self, outgoing: Outgoing) -> None:
        seq = outgoing.message.seq
        try:
            await self.sender.send(outgoing, lambda: seq in self._cancelled)
            if seq in self._cancelled:
                self._answer_otherwise(outgoing.message)
        except PyroError as error:
            log.debug("an answer to %s could not be sent: %s", self._peer.address, error)
            self._peer.close()
        finally:
            self._leaving.pop(seq, None)
            self._cancelled.discard(seq)
            self._peer.answer_left(len(outgoing.message.body))

    def _answer_otherwise(self, answer: Message) -> None:
        """Answer a call whose result is not wanted any more: its sequence number is in use until then."""
        peer = self._peer
        error = PyroError("the call was cancelled while its result was leaving")
        other = failure(peer, answer, peer.serializer(answer.serializer), error, dispatched=True)
        if other is not None:
            peer.connection.queue(other)
            peer.connection.flush_nowait()

    def cancel(self, seq: int) -> None:
        """The caller does not want the answer that is leaving."""
        outgoing = self._leaving.get(seq)
        if outgoing is not None and not outgoing.complete:
            self._cancelled.add(seq)
