"""What comes in on a connection, from the socket to whole messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..errors import ConnectionClosedError
from ..wire import Decoder
from ..wire.message import Message
from ..wire.plain import HEAD_SIZE, PlainCalls
from .connect import BlockingSocket
from .tls import BlockingTls

RECEIVE_BYTES: Final = 64 * 1024
_NONE_YET: Final = bytearray()


class Intake:
    """Receives in the thread that reads for all.

    An interrupt may come between any two steps. Until the first byte of the buffer says otherwise, nothing has been
    taken from the socket, and the connection can go on without the interrupted call.

    Args:
        take: gets every message.
        fail: ends the connection when an error or an interrupt costs bytes of it.
    """

    def __init__(
        self,
        sock: BlockingSocket,
        decoder: Decoder,
        take: Callable[[Message], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._sock = sock
        self.decoder = decoder
        self._take = take
        self._fail = fail
        self._buffer = _NONE_YET
        """The first byte is 0 while no received bytes can be on their way from the socket to their waiter."""
        self._lossy = int(isinstance(sock, BlockingTls))
        """Whether an interrupt can lose bytes in the middle of receiving."""

    def _take_buffer(self) -> bytearray:
        """Made when something is waited for: the memory costs a short connection more than all else of it."""
        self._buffer = buffer = bytearray(RECEIVE_BYTES)
        return buffer

    def over(self) -> None:
        """The connection was closed. Whoever is receiving at the moment keeps the buffer until that fails."""
        self._buffer = _NONE_YET

    def receive(self) -> None:
        """Wait for bytes, and hand over every message that is complete with them.

        Raises:
            BlockingIOError: nothing came within the limit on silence.
            ConnectionClosedError, OSError: the connection is at its end, between two messages or within one.
            ProtocolError: what came is not the protocol, or must not come now.
        """
        decoder, buffer = self.decoder, self._buffer or self._take_buffer()
        try:
            place = None if decoder.collected is None else decoder.wanted_buffer()
            if place is None:
                buffer[0] = 0
                self._hand_on(buffer, self._sock.recv_into(buffer))
            else:
                count = self._receive_into(place, buffer)
                self._take_all(decoder.next_event(), count, buffer)
        except BaseException as error:
            if buffer[0]:
                self._fail(error)
            raise

    def receive_plain(self, calls: PlainCalls, seq: int, answered: Callable[[int], None]) -> bytes | None:
        """`receive`; just the plain answer to that call is not handed over, but its body returned.

        Args:
            answered: is called with ``seq`` before.
        """
        decoder, buffer = self.decoder, self._buffer or self._take_buffer()
        if decoder.data or decoder.collected is not None:  # the end of something that began earlier comes first
            return None
        body = None
        try:
            buffer[0] = 0
            count = self._sock.recv_into(buffer)
            if calls.is_answer(buffer, count, seq):
                body = memoryview(buffer)[HEAD_SIZE:count].tobytes()
                answered(seq)
                buffer[0] = 0
            else:
                self._hand_on(buffer, count)
        except BaseException as error:
            if buffer[0]:
                self._fail(error)
            raise
        return body

    def receive_one(self, wait: Callable[[], None]) -> Message | None:
        """The first message, which nothing can follow; None at the end of the input.

        Args:
            wait: returns when something may have come.
        """
        decoder = self.decoder
        event = decoder.next_event() if decoder.data else None
        while event is None:
            wait()
            data = self._sock.recv(RECEIVE_BYTES)
            if not data:
                return None
            event = decoder.take(data)
        assert type(event) is Message, "a client's decoder collects everything"
        return event

    def _hand_on(self, buffer: bytearray, count: int) -> None:
        self._take_all(self.decoder.take(memoryview(buffer)[:count].tobytes()), count, buffer)

    def _receive_into(self, place: memoryview, buffer: bytearray) -> int:
        """Take in a part of a large body. What came is kept although an interrupt comes right after it."""
        decoder = self.decoder
        buffer[0] = self._lossy
        counts: list[int] = []
        try:
            counts.extend(map(self._sock.recv_into, (place,)))  # a step that no interrupt divides
            buffer[0] = 1
        except BaseException:
            if counts:
                buffer[0] = 1
                decoder.received(counts[0])
                self._take_all(decoder.next_event(), counts[0], buffer)
            raise
        decoder.received(counts[0])
        return counts[0]

    def _take_all(self, event: object, count: int, buffer: bytearray) -> None:
        """Hand over every message that is complete with ``count`` bytes more."""
        decoder = self.decoder
        if not count:
            within = decoder.data or decoder.collected is not None
            raise ConnectionClosedError(f"the peer closed the connection{' within a message' if within else ''}")
        while event is not None:
            assert type(event) is Message, "a client's decoder collects everything"
            self._take(event)
            event = decoder.next_event() if decoder.data else None
        buffer[0] = 0
