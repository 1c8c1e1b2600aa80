"""One call through the dispatcher: where it stands, and what is known of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from math import inf

from pyroxfer_core.errors import Outcome
from pyroxfer_core.wire import Message

from .admission import Ticket
from .backends import Backend
from .dialects import Target
from .routes import Service


class Phase(enum.IntEnum):
    """Where a conversation stands."""

    IDLE = 0
    QUEUED = 1
    OPENING = 2
    SENDING = 3
    WAITING = 4
    REPLYING = 5
    DRAINING = 6
    CLOSED = 7


@dataclass(slots=True)
class Call:
    """The call under way, or the last one."""

    request: Message
    body_pending: bool
    """The end of the body has not come yet."""
    body_length: int | None
    target: Target | None = None
    """None while it is not known; see `aim_at`."""
    service: Service = field(init=False)
    """The one it is meant for, once its target is known."""
    ticket: Ticket | None = None
    backend: Backend | None = None
    deadline: float = inf
    """When its caller gives up."""
    uses_kept: bool = False
    seq: int = 0
    version: int = 0
    """Of the connection to the backend."""
    sends: int = 0
    passed_over: dict[Backend, str] = field(default_factory=dict)
    """Backends that could not be had for this call, and why."""
    listeners: list[Backend] | None = None
    """Those that still get the blob, where all listeners of a topic get it; the next one is the last."""
    may_have_run: str | None = None
    """Why nobody knows what became of an earlier sending of a call that may run twice."""
    error: tuple[Outcome, str] | None = None
    """What to say once the body has been drained."""
    is_wanted: bool = True
    """Its client has not given it up."""

    def aim_at(self, target: Target) -> None:
        """From now on it is known where it is meant to go."""
        self.target, self.service = target, target.service

    @property
    def is_whole(self) -> bool:
        """Whether all of it is here, and stays until it is answered."""
        return self.body_length is None
