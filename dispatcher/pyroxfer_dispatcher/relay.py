"""One client and the one backend it belongs to: which calls are under way between them. Pure.

Messages pass unread as they came, numbers included, so whatever both ends agreed on at connect (several calls at
once, cancelling, deadlines) works through it. What is kept is one entry per call that waits for its answer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import inf
from typing import Final

from pyroxfer_core.errors import Outcome, ProtocolError
from pyroxfer_core.wire import Flags, MessageType, last_read, sent_after

from .admission import Admission, Ticket
from .backends import Backend
from .commands import Fail
from .frames import Sealed

FIRST_OWN_TYPE: Final = 64
"""Message types from here on exist only where both ends agreed on them: the receiver judges."""
_BEGIN: Final = struct.Struct("!BxHI")
GRACE_S: Final = 1.0
"""How much later than its caller's deadline an answer may come: the backend itself answers at the deadline."""
_HALF: Final = 0x8000
"""Numbers that are further apart tell no order."""
MAX_UNDER_WAY: Final = 4096
"""Calls of one client that wait for an answer; a client with more breaks every rule."""


@dataclass(slots=True)
class _UnderWay:
    request: Sealed
    ticket: Ticket
    place: int
    """Which call of the client it is."""
    end: int = 0
    """Of the request, in bytes handed over to the backend; 0 while its end has not come."""
    sent_at: float = inf
    """When that was; for a call in pieces of which only the first is followed here it is never."""
    is_late: bool = False
    """That its answer is overdue has been told."""


class Relay:
    """The calls between one client and its backend.

    Args:
        admission: of the backend's service; shared by all conversations.
        client: whose calls these are, for taking turns.
        wake: called with what became of a call that had to wait.
        has_agreed: both ends are of this library and agreed on more than Pyro has: they judge each other.
        first_seq: the number of CONNECT.
    """

    def __init__(
        self,
        admission: Admission,
        backend: Backend,
        client: Hashable,
        wake: Callable[[Backend | str], None],
        *,
        has_agreed: bool = False,
        first_seq: int = 0,
    ) -> None:
        self._has_agreed = has_agreed
        self._dropped: dict[int, int] = {}
        """Bodies in pieces of refused calls: their number, and how much of them is still to come."""
        self.backend = backend
        self._admission = admission
        self._client = client
        self._wake = wake
        self._calls: dict[int, _UnderWay] = {}
        self._queued: _UnderWay | None = None
        self._pings: list[int] = []
        self._answering: int | None = None
        self._newest = first_seq
        """The newest number of a call, large ones that come late left out of account."""
        self._places = 0
        self._leaves = False
        self._last_read: int | None = None
        backend.clients += 1

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer."""
        return not self._calls and self._queued is None

    @property
    def under_way(self) -> int:
        """Calls that wait for an answer."""
        return len(self._calls)

    @property
    def began_at(self) -> float | None:
        """When the last of the calls went to the backend that it should have answered; None when there is none."""
        if self._leaves:
            return None
        return max((call.ticket.started_at for call in self._calls.values()), default=None)

    def newly_late(self, now: float, answer_timeout_s: float) -> int:
        """How many calls should have been answered by now and were not, each told once.

        Args:
            answer_timeout_s: what calls have at most; those with a deadline have no more than that.
        """
        late = [
            call
            for call in self._calls.values()
            if not call.is_late and now >= min(call.sent_at + answer_timeout_s, call.ticket.deadline + GRACE_S)
        ]
        for call in late:
            call.is_late = True
        return len(late)

    @staticmethod
    def is_call(message: Sealed) -> bool:
        """Whether the client asks for something by this, or begins to."""
        return message.type == MessageType.INVOKE or (
            message.type == MessageType.BEGIN and begun(message)[0] == MessageType.INVOKE
        )

    def asked(self, message: Sealed, now: float, deadline: float = inf, size: int = 0) -> bool:
        """The client sent a message. Whether it may go to the backend now; a call may have to wait for that.

        Args:
            deadline: when the caller gives up.
            size: bytes of its body.

        Raises:
            NotAdmitted: it is a call, and refused.
            ProtocolError: a client must not send this.
        """
        if self.is_call(message):
            self._places += 1
            if (message.seq - self._newest) & 0xFFFF < _HALF:
                self._newest = message.seq
            return bool(message.flags & Flags.ONEWAY) or self._call(message, now, deadline)
        if message.type == MessageType.PING:
            if len(self._pings) >= MAX_UNDER_WAY:
                raise ProtocolError("too many pings wait for an answer")
            self._pings.append(message.seq)
        elif message.type < FIRST_OWN_TYPE and not (self._has_agreed and message.type == MessageType.RESULT):
            raise ProtocolError(f"unexpected message of type {message.type}")
        return True

    def is_dropped(self, message: Sealed, size: int) -> bool:
        """Whether this is a piece, with so many bytes, of a body whose call was refused: nobody waits for it."""
        left = self._dropped.get(message.seq) if message.type == MessageType.PIECE and self._dropped else None
        if left is None:
            return False
        self._dropped[message.seq] = left - size
        if left <= size or not size:
            del self._dropped[message.seq]
        return True

    def refuse(self, message: Sealed, now: float, why: str = "") -> None:
        """The call was refused, and why: what still comes of its body is dropped."""
        if message.type == MessageType.BEGIN:
            _, number, length = begun(message)
            self._dropped[number] = length

    def _call(self, message: Sealed, now: float, deadline: float) -> bool:
        if message.seq in self._calls or len(self._calls) >= MAX_UNDER_WAY:
            raise ProtocolError(f"call number {message.seq} is under way already, or too many are")
        ticket = Ticket(self._client, self._wake, None, self.backend, deadline=deadline)
        call = _UnderWay(message, ticket, self._places)
        if self._admission.ask(ticket, now) is None:
            self._queued = call
            return False
        self._calls[message.seq] = call
        return True

    def woken(self, now: float, *, admitted: bool) -> Sealed:
        """The call that had to wait: it goes to the backend now, or is refused."""
        assert self._queued is not None, "no call waits"
        call, self._queued = self._queued, None
        if admitted:
            self._calls[call.request.seq] = call
        return call.request

    def has(self, seq: int) -> bool:
        """Whether a call with this number is under way, or waits."""
        return seq in self._calls or self.waits(seq)

    def waits(self, seq: int) -> bool:
        """Whether this is the number of the call that waits."""
        return self._queued is not None and self._queued.request.seq == seq

    def withdraw(self, now: float) -> Sealed:
        """The call that waits is not wanted any more."""
        assert self._queued is not None, "no call waits"
        self._admission.leave(self._queued.ticket)
        return self.woken(now, admitted=False)

    def handed_over(self, message: Sealed, end: int, now: float) -> None:
        """The last byte of a message was handed over to the backend: ``end`` bytes have been, so far."""
        call = self._calls.get(message.seq)
        if call is not None and call.request is message:
            call.end = end
            if message.type == MessageType.INVOKE:
                call.sent_at = now

    def answered(self, message: Sealed, now: float, *, whole: bool, size: int = 0) -> bool:
        """A message of the backend goes to the client, with so many bytes in its body. Whether it answers a call.

        Raises:
            ProtocolError: it answers nothing that was asked.
        """
        kind = message.type
        if kind == MessageType.BEGIN and whole:
            kind = begun(message)[0]
        if self._has_agreed and (kind == MessageType.INVOKE or message.seq not in self._calls):
            return False  # a call in the other direction, an answer after one that broke off: the client knows
        if kind == MessageType.RESULT:
            if message.seq not in self._calls or self._answering is not None:
                raise ProtocolError(f"the backend answered number {message.seq}, which nobody asked for")
            if message.seq == self._answering:
                raise ProtocolError(f"the backend answered number {message.seq} inside its answer")
            if whole:
                self._over(message.seq, now)
            else:
                self._answering = message.seq
        elif kind == MessageType.PING:
            if message.seq not in self._pings:
                raise ProtocolError("the backend answered a ping that nobody sent")
            self._pings.remove(message.seq)
        elif kind < FIRST_OWN_TYPE:
            raise ProtocolError(f"the backend sent a message of type {message.type}")
        return kind == MessageType.RESULT

    def answered_whole(self, now: float) -> None:
        """The last piece of an answer has passed."""
        if self._answering is not None:
            self._over(self._answering, now)
            self._answering = None

    def backend_leaves(self, notice: Sealed) -> None:
        """The backend said that it goes away, and perhaps which call is the last that it has begun."""
        self._leaves = True
        self._last_read = last_read(notice.data[notice.body_at :])

    def _unread(self) -> set[int]:
        """Calls that a backend which goes away has not begun. Of one that is in flight for long nothing is known."""
        recent = (seq for seq, call in self._calls.items() if self._places - call.place < _HALF)
        return set(sent_after(self._last_read, recent, self._newest))

    def backend_lost(self, sent: int, reason: str, now: float) -> list[Fail]:
        """What to tell the client before its connection ends; nothing when half an answer has reached it.

        Args:
            sent: bytes that left for the backend.
        """
        half = self._answering is not None
        calls = [*self._calls.values(), *([] if self._queued is None else [self._queued])]
        unread = self._unread()
        self.clear(now)
        return [] if half else [_fail(call, sent, reason, call.request.seq in unread) for call in calls]

    def clear(self, now: float, why: str = "", by: str = "") -> int:
        """Nothing is under way any more, why, and whose doing that is. How many calls were."""
        calls = tuple(self._calls)
        for seq in calls:
            self._over(seq, now)
        if self._queued is not None:
            self._admission.leave(self._queued.ticket)
            self._queued = None
        self._answering = None
        return len(calls)

    def end(self, now: float) -> None:
        """The client and its backend part. Once, after everything else."""
        self.clear(now)
        self.backend.clients -= 1

    def _over(self, seq: int, now: float) -> None:
        self._admission.release(self._calls.pop(seq).ticket, self.backend, now)


def begun(message: Sealed) -> tuple[int, int, int]:
    """Of a BEGIN: the type of the message that it begins, the number of its body, and that body's length.

    Raises:
        ProtocolError: it is too short for that.
    """
    try:
        kind, number, length = _BEGIN.unpack_from(message.data, message.body_at)
    except struct.error:
        raise ProtocolError("BEGIN is too short") from None
    return kind, number, length


def _fail(call: _UnderWay, sent: int, reason: str, is_unread: bool) -> Fail:
    if is_unread:
        return Fail(call.request, Outcome.NOT_SENT, "the backend went away before it read the call")
    if call.end and call.end <= sent:
        return Fail(call.request, Outcome.UNKNOWN, f"backend lost before it answered: {reason}")
    return Fail(call.request, Outcome.NOT_SENT, f"backend lost while sending: {reason}")
