"""What can happen in a conversation. Pieces of a request are the wire's own BodyPart and End."""

from __future__ import annotations

from dataclasses import dataclass

from pyroxfer_core.wire import Body, BodyPart, End, Head, Message

from .backends import Backend


@dataclass(slots=True)
class BlobArrived:
    """A message came from the client: whole, or (``body_length`` given) its head only, with the body to follow."""

    message: Message
    body_length: int | None = None


@dataclass(slots=True)
class SlotFree:
    """A call that had to wait may run, in this backend."""

    backend: Backend


@dataclass(slots=True)
class SlotRefused:
    """A call that had to wait may not run."""

    reason: str


@dataclass(slots=True)
class BackendOpened:
    """A connection to the chosen backend is there, in protocol ``version``.

    The request is to carry ``seq`` and to name ``object_id``.
    """

    seq: int
    object_id: str
    version: int


@dataclass(slots=True)
class BackendLost:
    """The connection to the backend cannot be made, or broke."""

    reason: str


@dataclass(slots=True)
class BackendRefused:
    """The backend is there, but takes no further connection, or not for this object."""

    reason: str


@dataclass(slots=True)
class RequestSent:
    """The request, which had come whole, left whole. (For one that came in pieces ``End`` says the same.)"""


@dataclass(slots=True)
class BackendLeaves:
    """The backend said that it goes away, and whether it has begun the call."""

    has_begun: bool


@dataclass(slots=True)
class Overdue:
    """The backend has not answered in time."""


@dataclass(slots=True)
class CannotCarry:
    """The last Forward or Reply cannot be written in the receiver's protocol; nothing of it was sent."""

    reason: str


@dataclass(slots=True)
class ReplyArrived:
    """A message came from the backend: whole, or its head only."""

    message: Message
    body_length: int | None = None
    outcome: str | None = None
    """What a backend of ours says of a call that failed otherwise than by its method: ``N`` or ``U``."""


@dataclass(slots=True)
class ReplyPartArrived:
    """A piece of the reply's body came."""

    data: Body


@dataclass(slots=True)
class ReplyEnded:
    """The reply's body is complete."""


@dataclass(slots=True)
class CallDropped:
    """The client does not want the answer any more, or will not send the rest of the request."""


@dataclass(slots=True)
class CannotCancel:
    """The backend would not understand that its answer is not wanted."""


@dataclass(slots=True)
class ClientLost:
    """The client left, or stalled in the middle of a message."""


Event = (
    BlobArrived
    | BodyPart
    | End
    | SlotFree
    | SlotRefused
    | BackendOpened
    | BackendLost
    | BackendRefused
    | BackendLeaves
    | Overdue
    | RequestSent
    | CannotCarry
    | ReplyArrived
    | ReplyPartArrived
    | ReplyEnded
    | CallDropped
    | CannotCancel
    | ClientLost
)

Piece = Message | Head | BodyPart | End
"""What a connection says, whoever reads it."""
