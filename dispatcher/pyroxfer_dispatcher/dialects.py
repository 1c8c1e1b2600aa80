"""The two ways to speak through the dispatcher: calls with one blob, and calls of clients that know nothing of it."""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import dataclass
from math import inf
from typing import Final, Protocol

from pyroxfer_core import ServerSession, plain_call
from pyroxfer_core.errors import ProtocolError
from pyroxfer_core.wire import (
    BLOB_INFO,
    DEADLINE_KEY,
    FEATURES_KEY,
    HOP_KEYS,
    OUTCOME_KEY,
    STOCK,
    Body,
    Feature,
    Flags,
    Grant,
    Message,
    MessageType,
    codec_for,
    renumber,
)

from .backends import Backend
from .frames import Sealed, rewritten
from .routes import Aim, Directory, Service

ANSWERABLE: Final = frozenset({"serpent", "json", "marshal", "msgpack"})
"""Serializers in which the dispatcher can write an error."""
NONE: Final = {"serpent": b"# serpent utf-8 python3.2\nNone", "json": b"null", "marshal": b"N", "msgpack": b"\xc0"}
"""None in each of them."""
MAX_ANNOTATIONS: Final = 64
"""Of one message, where the dispatcher looks for what concerns it."""
MAX_OWN_CALL: Final = 16 * 1024
"""Bytes of the body of a call to the dispatcher itself."""
STREAM_KEY: Final = "STRM"
_DAEMON: Final = b"Pyro.Daemon"
_LOOK_AT: Final = 96
"""Bytes of a body within which every serializer has the object's id."""
_INFLATE_FROM: Final = 512


@dataclass(slots=True)
class Target:
    """Where a call is meant to go."""

    service: Service
    aim: Aim | None = None
    """None for a call that is passed on without a change."""
    backend: Backend | None = None
    """The only one that can take it."""
    idempotent: bool = False
    """It may run twice."""
    key: str | None = None
    """Equal keys go to the same backend, where the service says so."""
    time_left_s: float = inf
    """For how long the caller waits."""


def farewell() -> Message:
    """GOAWAY of a dispatcher, which says nothing of requests that are on their way: all of them are still served."""
    return Message(MessageType.GOAWAY, 0, "ping", 0, b"")


class Dialect(Protocol):
    """What a conversation needs to know of the messages it passes on."""

    def done_here(self, request: Message) -> bool:
        """Whether the request was for the dispatcher itself, and is done.

        Raises:
            LookupError: it was, and cannot be done; with a sentence for the caller.
        """

    def aim(self, request: Message) -> Target | None:
        """Where a request goes. None: to the backend of the client's item streams.

        Raises:
            LookupError, CommunicationError: nowhere, with a sentence for the caller.
        """

    def request_for(self, request: Message, target: Target, seq: int, object_id: str) -> Message:
        """The same request under the head that the backend expects."""

    def reply_for(self, request: Message, reply: Message, outcome: str | None) -> Message:
        """The same reply under the head that the client expects.

        Args:
            outcome: what the backend says of the call, see `ReplyArrived`.
        """

    def goodbye(self) -> Message | None:
        """What tells the client to make no more calls on this connection; None where it would not understand."""

    @property
    def grant(self) -> Grant:
        """What the dispatcher has agreed on with the client."""

    def begins_stream(self, reply: Message) -> bool:
        """Whether the reply announces an item stream, which only the backend that made it can go on with."""

    def can_answer(self, request: Message) -> bool:
        """Whether the dispatcher can answer in a backend's place."""


class BlobDialect:
    """Calls with one SerializedBlob, led by its routing annotation, which is rewritten."""

    def __init__(self, directory: Directory, session: ServerSession | None = None) -> None:
        self._directory = directory
        self._session = session

    def done_here(self, request: Message) -> bool:
        """Registering a listener."""
        if not self._directory.takes_listeners or request.flags & Flags.KEEPSERIALIZED:
            return False
        if len(request.body) > MAX_OWN_CALL:
            return False
        call = plain_call(request.serializer, request.body, request.flags, MAX_OWN_CALL)
        return call is not None and self._directory.call_here(*call)

    def aim(self, request: Message) -> Target | None:
        """By the topic of the blob; without a blob it can only be about a stream."""
        if self._session is not None and not self._session.settled:
            self._session.receive(request)
        if request.flags & Flags.KEEPSERIALIZED and BLOB_INFO in request.annotations:
            aim = self._directory.find(request.annotations[BLOB_INFO])
            return Target(aim.service, aim, None, aim.idempotent, aim.key, self._time_left(request))
        return None

    def _time_left(self, request: Message) -> float:
        """Seconds for which the caller waits, where it says so."""
        told = request.annotations.get(DEADLINE_KEY)
        milliseconds = self.grant.read_deadline(told)
        return inf if milliseconds is None else milliseconds / 1000

    def request_for(self, request: Message, target: Target, seq: int, object_id: str) -> Message:
        """Another number, object and method."""
        annotations = _end_to_end(request.annotations)
        if target.aim is not None:
            annotations = {**annotations, BLOB_INFO: target.aim.annotation_for(object_id)}
        return Message(
            MessageType.INVOKE,
            seq,
            request.serializer,
            request.flags,
            request.body,
            annotations,
            request.correlation_id,
        )

    def reply_for(self, request: Message, reply: Message, outcome: str | None) -> Message:
        """Another number: nobody else has the reply."""
        reply.seq = request.seq
        if reply.annotations:
            reply.annotations = _end_to_end(reply.annotations)
        if outcome is not None and self.grant.bits:
            reply.annotations = {**reply.annotations, OUTCOME_KEY: self.grant.outcome(outcome.encode())}
        return reply

    @property
    def grant(self) -> Grant:
        """As of `Dialect`."""
        return STOCK if self._session is None else self._session.grant

    def goodbye(self) -> Message | None:
        """The notice that the dispatcher goes away, for a client that has agreed to get it."""
        return farewell() if Feature.GOAWAY in self.grant else None

    def begins_stream(self, reply: Message) -> bool:
        """A stream that can be asked for items has a number."""
        return STREAM_KEY in reply.annotations

    def can_answer(self, request: Message) -> bool:
        """In any serializer but the pickle family."""
        return request.serializer in ANSWERABLE


class SealedDialect:
    """Calls of a client in transparent mode, spread over the backends: nothing but the number is changed.

    Args:
        home: the backend that answered the client's CONNECT; it gets the calls to its daemon.
        key: what the client is told apart by.
        signed: the client signs its messages.
        session: what the dispatcher itself has offered to the client, if anything.
    """

    def __init__(
        self,
        service: Service,
        version: int,
        home: Backend,
        key: str,
        *,
        signed: bool,
        session: ServerSession | None = None,
    ) -> None:
        self._version = version
        self._signed = signed
        self._session = session
        idempotent = "*" in service.idempotent
        self._anywhere = Target(service, None, None, idempotent, key)
        self._home = Target(service, None, home, idempotent)

    def done_here(self, request: Message) -> bool:
        """Nothing is: the client knows of no dispatcher."""
        return False

    def aim(self, request: Message) -> Target:
        """To any backend, unless it is for the daemon."""
        assert isinstance(request, Sealed)
        return self._home if _is_for_daemon(request) else self._anywhere

    def request_for(self, request: Message, target: Target, seq: int, object_id: str) -> Message:
        """Another number. What the first call says of the agreement with the dispatcher is for that alone."""
        if self._session is not None and not self._session.settled:
            assert isinstance(request, Sealed)
            self._settle(self._session, request)
        return self._renumbered(request, seq)

    def _settle(self, session: ServerSession, request: Sealed) -> None:
        """Hear what the first call confirms, and take it out. Of a large one the annotations have not come yet: what
        they confirm is not in force."""
        codec = codec_for(self._version)
        annotations: dict[str, Body] = {}
        if request.body_at <= len(request.data):
            with contextlib.suppress(ProtocolError):  # the backend says so, too
                area = request.data[codec.header_size : request.body_at]
                annotations = dict(codec.parse_annotations(area, MAX_ANNOTATIONS)[0])
        confirmed = annotations.pop(FEATURES_KEY, None)
        said = {} if confirmed is None else {FEATURES_KEY: confirmed}
        session.receive(Message(MessageType.INVOKE, request.seq, request.serializer, 0, b"", said))
        if confirmed is not None:
            body_size = len(request.data) - request.body_at
            request.data = rewritten(request, codec, annotations, MAX_ANNOTATIONS)
            request.body_at = len(request.data) - body_size

    def reply_for(self, request: Message, reply: Message, outcome: str | None) -> Message:
        """Another number."""
        return self._renumbered(reply, request.seq)

    def _renumbered(self, message: Message, seq: int) -> Sealed:
        assert isinstance(message, Sealed)
        data = renumber(message.data, self._version, seq)
        return Sealed(
            message.type,
            seq,
            message.serializer,
            message.flags,
            b"",
            {},
            message.correlation_id,
            data,
            message.body_at,
        )

    @property
    def grant(self) -> Grant:
        """As of `Dialect`."""
        return STOCK if self._session is None else self._session.grant

    def goodbye(self) -> Message | None:
        """The notice that the dispatcher goes away, for a client that has agreed to get it."""
        return farewell() if Feature.GOAWAY in self.grant else None

    def begins_stream(self, reply: Message) -> bool:
        """The flag says so."""
        return bool(reply.flags & Flags.ITEMSTREAM)

    def can_answer(self, request: Message) -> bool:
        """Not in place of somebody who signs."""
        return not self._signed and request.serializer in ANSWERABLE


def _is_for_daemon(request: Sealed) -> bool:
    """Whether a call may be one for ``Pyro.Daemon``: the name stands where an object's id stands in every serializer.

    Taking another call for one is harmless: it runs, on the backend that the client is connected with anyway.
    """
    data, start = request.data, request.body_at
    if request.flags & Flags.COMPRESSED:
        try:
            return _DAEMON in zlib.decompressobj().decompress(data[start : start + _INFLATE_FROM], _LOOK_AT)
        except zlib.error:
            return False
    return data.find(_DAEMON, start, start + _LOOK_AT) >= 0


def _end_to_end(annotations: dict[str, Body]) -> dict[str, Body]:
    """Annotations without those that belong to one connection; the same dict when there are none."""
    if HOP_KEYS.isdisjoint(annotations):
        return annotations
    return {key: value for key, value in annotations.items() if key not in HOP_KEYS}
