"""One client and the one backend it belongs to: which calls are under way between them. Pure.

Messages pass unread as they came, numbers included, so whatever both ends agreed on at connect (several calls at
once, cancelling, deadlines) works through it. What is kept is one entry per call that waits for its answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyroxfer_core.errors import Outcome, ProtocolError
from pyroxfer_core.wire import Flags, MessageType

from .backends import Backend, BackendGroup
from .commands import Fail
from .frames import Sealed

FIRST_OWN_TYPE: Final = 64
"""Message types from here on exist only where both ends agreed on them: the receiver judges."""
MAX_UNDER_WAY: Final = 4096
"""Calls of one client that wait for an answer; a client with more breaks every rule."""


@dataclass(slots=True)
class _Waiting:
    request: Sealed
    end: int
    """Of the request, in bytes handed over to the backend; 0 while its end has not come."""


class Relay:
    """The calls between one client and its backend.

    Args:
        group: the backend's; shared by all conversations.
    """

    def __init__(self, group: BackendGroup, backend: Backend) -> None:
        self.backend = backend
        self._group = group
        self._calls: dict[int, _Waiting] = {}
        self._pings: list[int] = []
        self._answering: int | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer."""
        return not self._calls

    @property
    def under_way(self) -> int:
        """Calls that wait for an answer."""
        return len(self._calls)

    def asked(self, message: Sealed, end: int) -> None:
        """A message of the client goes to the backend.

        Args:
            end: see `asked_whole`; 0 when the message comes in pieces.

        Raises:
            ProtocolError: a client must not send this.
        """
        if message.type == MessageType.INVOKE:
            if message.flags & Flags.ONEWAY:
                return
            if message.seq in self._calls or len(self._calls) >= MAX_UNDER_WAY:
                raise ProtocolError(f"call number {message.seq} is under way already, or too many are")
            self._calls[message.seq] = _Waiting(message, end)
            self._group.take(self.backend)
        elif message.type == MessageType.PING:
            if len(self._pings) >= MAX_UNDER_WAY:
                raise ProtocolError("too many pings wait for an answer")
            self._pings.append(message.seq)
        elif message.type < FIRST_OWN_TYPE:
            raise ProtocolError(f"unexpected message of type {message.type}")

    def asked_whole(self, message: Sealed, end: int) -> None:
        """The last piece of a message was handed over: ``end`` bytes have been, so far."""
        waiting = self._calls.get(message.seq)
        if waiting is not None and waiting.request is message:
            waiting.end = end

    def answered(self, message: Sealed, *, whole: bool) -> None:
        """A message of the backend goes to the client.

        Raises:
            ProtocolError: it answers nothing that was asked.
        """
        if message.type == MessageType.RESULT:
            if message.seq not in self._calls:
                raise ProtocolError(f"the backend answered number {message.seq}, which nobody asked for")
            if message.seq == self._answering:
                raise ProtocolError(f"the backend answered number {message.seq} inside its answer")
            if whole:
                self._over(message.seq)
            else:
                self._answering = message.seq
        elif message.type == MessageType.PING:
            if message.seq not in self._pings:
                raise ProtocolError("the backend answered a ping that nobody sent")
            self._pings.remove(message.seq)
        elif message.type < FIRST_OWN_TYPE:
            raise ProtocolError(f"the backend sent a message of type {message.type}")

    def answered_whole(self) -> None:
        """The last piece of an answer has passed."""
        if self._answering is not None:
            self._over(self._answering)
            self._answering = None

    def backend_lost(self, sent: int, reason: str) -> list[Fail]:
        """What to tell the client before its connection ends; nothing when half an answer has reached it.

        Args:
            sent: bytes that left for the backend.
        """
        half = self._answering is not None
        fails = [] if half else [_fail(waiting, sent, reason) for waiting in self._calls.values()]
        self.end()
        return fails

    def end(self) -> int:
        """Nothing is under way any more. How many calls were."""
        count = len(self._calls)
        for _ in range(count):
            self._group.release(self.backend)
        self._calls.clear()
        self._answering = None
        return count

    def _over(self, seq: int) -> None:
        del self._calls[seq]
        self._group.release(self.backend)


def _fail(waiting: _Waiting, sent: int, reason: str) -> Fail:
    if waiting.end and waiting.end <= sent:
        return Fail(waiting.request, Outcome.UNKNOWN, f"backend lost before it answered: {reason}")
    return Fail(waiting.request, Outcome.NOT_SENT, f"backend lost while sending: {reason}")
