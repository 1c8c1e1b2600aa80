"""What a shell is told to do, in order. Only the last command of a list can lead to another event."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from pyroxfer_core.errors import Outcome
from pyroxfer_core.wire import Body, Flags, Message

from .backends import Backend
from .ejection import Verdict


@dataclass(slots=True)
class OpenBackend:
    """Get a connection to the backend, best one that speaks ``version``."""

    backend: Backend
    version: int


@dataclass(slots=True)
class StopOpening:
    """The connection to the backend that is being made is not wanted any more."""


@dataclass(slots=True)
class UseKeptBackend:
    """Go on with the connection that was kept."""


@dataclass(slots=True)
class Forward:
    """Send to the backend: the whole request, or (``body_length`` given) its head."""

    message: Message
    body_length: int | None = None
    deadline: float = inf
    """When the caller gives up, on the clock of the events."""


@dataclass(slots=True)
class ForwardPart:
    """Send a piece of the request's body."""

    data: Body


@dataclass(slots=True)
class CancelCall:
    """Tell the backend that its answer is not wanted; it gives one all the same."""


@dataclass(slots=True)
class ReleaseBackend:
    """The connection to the backend is free for other calls."""


@dataclass(slots=True)
class KeepBackend:
    """The connection to the backend belongs to this client from now on."""


@dataclass(slots=True)
class CloseBackend:
    """The connection to the backend must not be used again."""


@dataclass(slots=True)
class Reply:
    """Send to the client: a whole reply, or its head."""

    message: Message
    body_length: int | None = None


@dataclass(slots=True)
class ReplyStream:
    """Announce an item stream of the other protocol to the client.

    The body of such an answer is no result but a fixed error that nobody looks at. Yet clients decode it, and each
    library knows the classes of its own protocol only: so it is written anew.
    """

    message: Message


@dataclass(slots=True)
class ReplyPart:
    """Send a piece of the reply's body."""

    data: Body


@dataclass(slots=True)
class Fail:
    """The call ended in an error of the dispatcher's own; tell the client, unless the call was one-way."""

    request: Message
    outcome: Outcome
    text: str
    was_wanted: bool = True
    """False: the client itself gave the call up."""

    @property
    def wants_answer(self) -> bool:
        """Whether the client waits for it."""
        return not self.request.flags & Flags.ONEWAY


@dataclass(slots=True)
class Answer:
    """The dispatcher itself has done what was asked: the result is None."""

    request: Message


@dataclass(slots=True)
class Announce:
    """A backend went down, or came back."""

    backend: Backend
    is_up: bool


@dataclass(slots=True)
class AnnounceEjection:
    """Calls of a backend fail one after the other: it is ejected, or is needed and stays."""

    backend: Backend
    verdict: Verdict
    reason: str


@dataclass(slots=True)
class CloseClient:
    """The conversation is over."""

    reason: str


Command = (
    OpenBackend
    | StopOpening
    | UseKeptBackend
    | Forward
    | ForwardPart
    | CancelCall
    | ReleaseBackend
    | KeepBackend
    | CloseBackend
    | Reply
    | ReplyStream
    | ReplyPart
    | Fail
    | Answer
    | Announce
    | AnnounceEjection
    | CloseClient
)
