"""One record for each call that is over: whose, where, how large, how long each step took, and how it ended."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final
from uuid import UUID

import trio

from pyroxfer_core.wire import End, Flags, Message

from .calls import Phase
from .commands import CloseClient, Command, Fail
from .events import (
    BackendLost,
    BackendOpened,
    BlobArrived,
    ClientLost,
    Event,
    ReplyArrived,
    RequestSent,
    SlotFree,
)
from .forwarding import Forwarding
from .frames import Sealed
from .linefile import LineFile

MAX_BEHIND: Final = 1000
"""Records that wait for somebody who follows calls; more are left out."""
_OVER: Final = frozenset({Phase.IDLE, Phase.CLOSED})
_STEPS: Final = ("queue_s", "connect_s", "send_s", "execute_s", "answer_s")
_ENDED_BY: Final = {"cancelled": "client", "NotSent": "dispatcher", "Unknown": "backend"}

Record = dict[str, Any]
Ending = tuple[str, str]
"""The outcome of a call, and the reason."""
ANSWERED: Final[Ending] = ("ok", "")
_RAISED: Final[Ending] = ("exception", "")
_SAID: Final[dict[str | None, Ending]] = {
    "N": ("NotSent", "the backend did not run it"),
    "U": ("Unknown", "the backend cut it short"),
}


class Records:
    """Takes records, for a file and for those who follow calls; does nothing while there is neither.

    Args:
        path: of the file, to which one JSON object a line is added.
    """

    def __init__(self, path: str | None) -> None:
        self._file = None if path is None else LineFile("access_log", path)
        self._followers: set[trio.MemorySendChannel[Record]] = set()
        self.wanted = self._file is not None
        """Whether anybody takes them."""

    def open(self) -> None:
        """Open the file, or open it again after it was renamed. CommunicationError: it cannot be written."""
        if self._file is not None:
            self._file.open()

    def flush(self) -> None:
        """Write what has gathered."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """The last record has come."""
        if self._file is not None:
            self._file.close()

    def take(self, record: Record) -> None:
        """One call is over."""
        record = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record}
        if self._file is not None:
            self._file.add(json.dumps(record).encode())
        for follower in self._followers:
            try:
                follower.send_nowait(record)
            except trio.WouldBlock:
                pass

    async def follow(self) -> AsyncGenerator[Record, None]:
        """Every record from now on, without those that come faster than they are taken."""
        send, receive = trio.open_memory_channel[Record](MAX_BEHIND)
        self._followers.add(send)
        self.wanted = True
        try:
            while True:
                yield await receive.receive()
        finally:
            self._followers.discard(send)
            self.wanted = self._file is not None or bool(self._followers)


def correlation_text(correlation_id: bytes | None) -> str | None:
    """As it is written everywhere."""
    return str(UUID(bytes=bytes(correlation_id))) if correlation_id and len(correlation_id) == 16 else None


def ending_of(answer: Message, said: str | None) -> Ending:
    """How a call ended that was answered.

    Args:
        said: what the backend says of a call that failed, see `ReplyArrived`.
    """
    return _SAID.get(said, _RAISED) if answer.flags & Flags.EXCEPTION else ANSWERED


def record_of(
    *,
    client: str,
    service: str,
    backend: str | None,
    correlation_id: bytes | None,
    sizes: tuple[int, int],
    marks: Sequence[float | None],
    sends: int,
    outcome: str,
    reason: str,
    ended_by: str,
) -> Record:
    """One record.

    Args:
        sizes: bytes of the request's body, and of the answer's.
        marks: when it came, was admitted, had its connection, had left, was answered, was over; None for what never
            happened. The step in which it ended has the rest of the time.
    """
    times: list[float] = []
    for mark in reversed(marks):
        times.append(mark if mark is not None else times[-1])
    took = [round(later - earlier, 6) for later, earlier in pairwise(times)][::-1]
    return {
        "client": client,
        "service": service,
        "backend": backend,
        "correlation_id": correlation_text(correlation_id),
        "bytes_in": sizes[0],
        "bytes_out": sizes[1],
        **dict(zip(_STEPS, took, strict=True)),
        "sends": sends,
        "outcome": outcome,
        "reason": reason,
        "ended_by": ended_by,
    }


class Watcher:
    """Looks at what a `Forwarding` is told and what it does, and writes records of it.

    Args:
        client: its address.
    """

    def __init__(self, forwarding: Forwarding, client: str, records: Records) -> None:
        self._inner = forwarding
        self._client = client
        self._records = records
        self._at: dict[str, float] = {}
        self._bytes = [0, 0]
        self._answer = ANSWERED

    def handle(self, event: Event, now: float) -> list[Command]:
        """In place of `Forwarding.handle`."""
        if not self._records.wanted:
            if self._at:
                self._at.clear()
            return self._inner.handle(event, now)
        self._note(event, now)
        commands = self._inner.handle(event, now)
        if type(event) is BlobArrived and self._inner.phase is Phase.OPENING:
            self._at["admitted"] = now
        if self._at and self._inner.phase in _OVER:
            self._finish(event, commands, now)
        return commands

    def _note(self, event: Event, now: float) -> None:
        if isinstance(event, BlobArrived):
            self._at = {"arrived": now}
            self._bytes = [_size(event), 0]
            self._answer = ANSWERED
        elif self._at and isinstance(event, ReplyArrived):
            self._at["replied"] = now
            self._bytes[1] = _size(event)
            self._answer = ending_of(event.message, event.outcome)
        elif self._at and (name := _MARKS.get(type(event))):
            self._at[name] = now

    def _finish(self, event: Event, commands: list[Command], now: float) -> None:
        at, self._at = self._at, {}
        call = self._inner.call_or_none
        if call is None or call.target is None:
            return
        ending = self._ended_otherwise(event, commands)
        outcome, reason = ending or self._answer
        self._records.take(
            record_of(
                client=self._client,
                service=call.service.name,
                backend=None if call.backend is None else call.backend.name,
                correlation_id=call.request.correlation_id,
                sizes=(self._bytes[0], self._bytes[1]),
                marks=[*(at.get(name) for name in ("arrived", "admitted", "opened", "sent", "replied")), now],
                sends=call.sends,
                outcome=outcome,
                reason=reason,
                ended_by="backend" if ending is None else _ENDED_BY.get(outcome, "backend"),
            )
        )

    def _ended_otherwise(self, event: Event, commands: list[Command]) -> Ending | None:
        """How a call ended without its whole answer; None: it was answered, or nobody waits for an answer."""
        if isinstance(event, ClientLost):
            return "cancelled", "the client left"
        if not self._inner.call.is_wanted:
            return "cancelled", "the client gave it up"
        for command in commands:
            if isinstance(command, Fail):
                return command.outcome.value, command.text
            if isinstance(event, BackendLost) and isinstance(command, CloseClient):
                return "Executed", command.reason
        return None


_MARKS: Final[dict[type, str]] = {SlotFree: "admitted", BackendOpened: "opened", RequestSent: "sent", End: "sent"}


def _size(event: BlobArrived | ReplyArrived) -> int:
    message = event.message
    if event.body_length is not None:
        return event.body_length
    return len(message.data) - message.body_at if isinstance(message, Sealed) else len(message.body)
