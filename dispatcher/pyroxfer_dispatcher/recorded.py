"""Records of calls on connections that belong to one backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from pyroxfer_core.wire import Flags, MessageType

from .commands import Fail
from .frames import Sealed
from .records import ANSWERED, Ending, Records, ending_of, record_of
from .relay import Relay, begun


@dataclass(slots=True)
class _Entry:
    """What is known of a call under way, of which nothing but the header is read."""

    request: Sealed
    size: int
    asked_at: float
    admitted_at: float | None = None
    sent_at: float | None = None
    replied_at: float | None = None
    bytes_out: int = 0
    ending: Ending = ANSWERED


class RecordedRelay(Relay):
    """A `Relay` that writes a record of each call, while anybody wants them.

    Args:
        peer: the address of the client.
        service: the name of the service.
        said: what the backend says of a call by an answer, see `ReplyArrived`.
        args, more: as of `Relay`.
    """

    def __init__(
        self,
        records: Records,
        peer: str,
        service: str,
        said: Callable[[Sealed], str | None],
        *args: Any,
        **more: Any,
    ) -> None:
        super().__init__(*args, **more)
        self._records = records
        self._peer = peer
        self._service = service
        self._said = said
        self._entries: dict[int, _Entry] = {}

    def asked(self, message: Sealed, now: float, deadline: float = inf, size: int = 0) -> bool:
        """As of `Relay`; one-way calls are recorded when they have been handed over."""
        if not self._records.wanted or not self.is_call(message) or message.seq in self._calls:
            return super().asked(message, now, deadline, size)
        if message.type == MessageType.BEGIN:
            size = begun(message)[2]
        entry = self._entries[message.seq] = _Entry(message, size, now)
        admitted = super().asked(message, now, deadline, size)
        if admitted:
            entry.admitted_at = now
        return admitted

    def woken(self, now: float, *, admitted: bool) -> Sealed:
        """As of `Relay`."""
        message = super().woken(now, admitted=admitted)
        entry = self._entries.get(message.seq)
        if entry is not None and admitted:
            entry.admitted_at = now
        return message

    def refuse(self, message: Sealed, now: float, why: str = "") -> None:
        """As of `Relay`."""
        super().refuse(message, now, why)
        self._finish(message.seq, now, "NotSent", why, "dispatcher")

    def handed_over(self, message: Sealed, end: int, now: float) -> None:
        """As of `Relay`."""
        super().handed_over(message, end, now)
        entry = self._entries.get(message.seq)
        if entry is not None and entry.request is message:
            entry.sent_at = now
            if message.flags & Flags.ONEWAY:
                self._finish(message.seq, now, "ok", "", "backend")

    def answered(self, message: Sealed, now: float, *, whole: bool, size: int = 0) -> bool:
        """As of `Relay`."""
        is_answer = super().answered(message, now, whole=whole, size=size)
        entry = self._entries.get(message.seq) if is_answer else None
        if entry is not None:
            entry.replied_at = now
            entry.bytes_out = begun(message)[2] if message.type == MessageType.BEGIN else size
            entry.ending = ending_of(message, self._said(message))
            if whole:
                self._answered(message.seq, now)
        return is_answer

    def answered_whole(self, now: float) -> None:
        """As of `Relay`."""
        seq = self._answering
        super().answered_whole(now)
        if seq is not None:
            self._answered(seq, now)

    def backend_lost(self, sent: int, reason: str, now: float) -> list[Fail]:
        """As of `Relay`."""
        answering = self._answering
        entries, self._entries = self._entries, {}
        fails = super().backend_lost(sent, reason, now)
        self._entries = entries
        for fail in fails:
            self._finish(fail.request.seq, now, fail.outcome.value, fail.text, "backend")
        if answering is not None:
            self._finish(answering, now, "Executed", f"backend lost within its answer: {reason}", "backend")
        for seq in tuple(self._entries):
            self._finish(seq, now, "Unknown", f"backend lost within another answer: {reason}", "backend")
        return fails

    def clear(self, now: float, why: str = "the client left", by: str = "client") -> int:
        """As of `Relay`."""
        for seq in tuple(self._entries):
            self._finish(seq, now, "cancelled", why, by)
        return super().clear(now, why, by)

    def _answered(self, seq: int, now: float) -> None:
        entry = self._entries.get(seq)
        if entry is not None:
            self._finish(seq, now, *entry.ending, "backend")

    def _finish(self, seq: int, now: float, outcome: str, reason: str, by: str) -> None:
        entry = self._entries.pop(seq, None)
        if entry is None:
            return
        admitted = entry.admitted_at
        record = record_of(
            client=self._peer,
            service=self._service,
            backend=self.backend.name,
            correlation_id=entry.request.correlation_id,
            sizes=(entry.size, entry.bytes_out),
            marks=(entry.asked_at, admitted, admitted, entry.sent_at, entry.replied_at, now),
            sends=int(admitted is not None),
            outcome=outcome,
            reason=reason,
            ended_by=by,
        )
        self._records.take(record)
