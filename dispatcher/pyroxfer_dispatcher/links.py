"""Connections to backends: opened in the protocol they speak, used by one call at a time, kept for the next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, Protocol

import trio

from pyroxfer_core import Connection, Settings, Uri, introduce, open_connection
from pyroxfer_core.errors import ConnectionClosedError, Outcome, ProtocolError, PyroError, TimeoutError
from pyroxfer_core.wire import (
    DEADLINE_KEY,
    FEATURES_KEY,
    OUTCOME_KEY,
    BodyPart,
    Codec,
    End,
    Feature,
    Flags,
    Grant,
    Message,
    MessageType,
    last_read,
    with_annotation,
)

from .backends import Backend
from .channel import Channel
from .events import BackendLeaves, Event, Piece, ReplyArrived, ReplyEnded, ReplyPartArrived
from .frames import Sealed, Splitter
from .hub import READ, Hub
from .routes import Service
from .transparent import Link as Opened
from .transparent import Opener, Opening

COLLECT_BYTES: Final = 128 * 1024
"""Bodies up to here are passed on whole, so that no slow sender holds a backend; of larger ones nothing is kept."""
_OFFER: Final = Feature.GOAWAY | Feature.DEADLINE | Feature.CONCURRENT | Feature.CANCEL
"""One call at a time goes over a link; but where that is all that is agreed on, nobody reads while it runs."""
_FAILED: Final = Flags.EXCEPTION | Flags.ITEMSTREAM
_HANGING_UP: Final = (b"errors.SerializeError", b"errors.SecurityError")
MAX_IDLE: Final = 16
"""Idle connections kept per backend and protocol: each may hold a worker thread of a stock server ..."""
SPARE_S: Final = 1.0
"""... and more only as long as calls have needed them within such a time."""

Resolver = Callable[[Uri], Awaitable[Uri]]


class Reader(Protocol):
    """Turns bytes into events: the wire's decoder, or a splitter."""

    @property
    def buffered(self) -> int: ...

    def take(self, data: bytes) -> Piece | None: ...

    def feed(self, data: bytes) -> None: ...

    def next_event(self) -> Piece | None: ...


Goodbye = Callable[[Backend], None]
"""Called with a backend that says it goes away."""


class Owner(Protocol):
    """Whoever uses a link."""

    def link_said(self, data: bytes) -> None: ...

    def link_lost(self, reason: str) -> None: ...


class Link:
    """One connection to a backend after its handshake."""

    __slots__ = (
        "_goodbye", "_grant", "_pool", "_seq", "backend", "channel", "codec", "confirmation", "leaving", "object_id",
        "owner", "reader", "version",
    )  # fmt: skip

    def __init__(
        self,
        backend: Backend,
        hub: Hub,
        connection: Connection,
        codec: Codec,
        reader: Reader,
        object_id: str,
        grant: Grant,
        goodbye: Goodbye,
    ) -> None:
        self.backend = backend
        self._grant = grant
        self._goodbye = goodbye
        self.confirmation = grant.confirmation if grant.bits else None
        """What the first call has to carry, for the backend to say goodbye; None once it has."""
        self.leaving = False
        """The backend has said goodbye, or is about to hang up: it begins no further call."""
        self.object_id = object_id
        self.codec = codec
        self.version = codec.version
        """The protocol spoken."""
        self.reader = reader
        self.owner: Owner | None = None
        """None while it is idle."""
        self._pool: LinkSource | None = None
        self._seq = 0
        self.channel = Channel(hub, connection.sock, self._said, self._lost)

    def next_seq(self) -> int:
        """The number of the next request."""
        self._seq = (self._seq + 1) & 0xFFFF
        return self._seq

    def rest_in(self, pool: LinkSource) -> None:
        """Nobody uses it for now; what it says is wrong, and when it leaves the pool is to know."""
        self.owner = None
        self._pool = pool

    def confirmed(self, message: Message) -> Message:
        """The first call, with what is to be confirmed."""
        confirmation = self.confirmation
        if confirmation is None:
            return message
        self.confirmation = None
        if type(message) is Sealed:
            data = with_annotation(message.data, self.version, FEATURES_KEY, confirmation)
            return replace(message, data=data)
        return replace(message, annotations={**message.annotations, FEATURES_KEY: confirmation})

    def limited(self, message: Message, seconds: float) -> Message:
        """A call whose caller waits no longer than that, where the backend can be told."""
        if Feature.DEADLINE not in self._grant:
            return message
        deadline = self._grant.deadline(int(seconds * 1000))
        return replace(message, annotations={**message.annotations, DEADLINE_KEY: deadline})

    def cancel(self) -> bool:
        """Tell the backend that the answer to the last call is not wanted. False: it would not understand that."""
        understands = Feature.CANCEL in self._grant
        if understands:
            self.channel.write(self.codec.encode(Message(MessageType.CANCEL, self._seq, "ping", 0, b"")))
        return understands

    def leaves(self, piece: Piece) -> bool:
        """Whether the backend says goodbye by this; everybody is told of it then."""
        is_notice = isinstance(piece, Message) and piece.type == MessageType.GOAWAY
        if is_notice and Feature.GOAWAY in self._grant:
            self.leaving = True
            self._goodbye(self.backend)
        return self.leaving and is_notice

    def outcome_of(self, answer: Message) -> str | None:
        """What the backend says of a call that failed otherwise than by its method."""
        annotations = answer.annotations
        return self._grant.read_outcome(annotations.get(OUTCOME_KEY)) if annotations else None

    def note_failure(self, answer: Message, *, is_whole: bool) -> None:
        """A stock backend hangs up behind errors of reading and of safety: the next call would end Unknown.

        Their names stand in the bodies of all serializers; one that is compressed, or comes in pieces, is not read.
        """
        if answer.flags & _FAILED == Flags.EXCEPTION and not self._grant.bits:
            body = answer.data if type(answer) is Sealed else answer.body
            is_read = is_whole and not answer.flags & Flags.COMPRESSED
            if not is_read or any(name in bytes(body) for name in _HANGING_UP):
                self.leaving = True

    def has_begun(self, notice: Message) -> bool:
        """Whether the backend may have begun the last call when it said goodbye."""
        body = notice.data[notice.body_at :] if isinstance(notice, Sealed) else notice.body
        return last_read(body) in (None, self._seq)

    def only_leaves(self, data: bytes) -> bool:
        """Whether what came between two calls is a goodbye, and nothing else."""
        try:
            piece = self.reader.take(data)
        except PyroError:
            return False
        return piece is not None and self.leaves(piece) and not self.reader.buffered

    def discard(self) -> None:
        """It is idle and not fresh: close it, and hear what it has to say before."""
        if not self.channel.closed:
            self.channel.on_ready(READ)
        self.channel.close()

    @property
    def is_fresh(self) -> bool:
        """Whether an idle link can take a call: an idle backend is silent unless it closed."""
        return not self.channel.closed and not self.reader.buffered and self.channel.is_silent

    def _said(self, data: bytes) -> None:
        if self.owner is not None:
            self.owner.link_said(data)
        else:
            said_goodbye = self.only_leaves(data)
            self.channel.close()
            self._lost("it is going away" if said_goodbye else "it spoke without being asked")

    def _lost(self, reason: str) -> None:
        if self.owner is not None:
            self.owner.link_lost(reason)
        elif self._pool is not None:
            self._pool.forget(self)


class LinkSource(Protocol):
    """Where a conversation gets its links from."""

    def idle(self, backend: Backend, version: int) -> Link | None:
        """A link that is there, in the protocol that is tried first, or None."""

    async def open(self, service: Service, backend: Backend, version: int) -> Link:
        """A new link. PyroError: the backend cannot be reached, or refused; nothing was sent of any call."""

    def put(self, link: Link) -> None:
        """Take back a link whose call is over."""

    def forget(self, link: Link) -> None:
        """An idle link is gone."""


class LinkPool:
    """All idle links that any call with a blob may use.

    Args:
        resolve: turns PYRONAME into PYRO; asked at every connect, so that a backend may move.
        goodbye: called with a backend that says it goes away.
        hops: dispatchers that a call over these links has passed, this one included.
    """

    def __init__(self, settings: Settings, resolve: Resolver, hub: Hub, goodbye: Goodbye, hops: int = 1) -> None:
        self._hops = hops
        self._goodbye = goodbye
        self._settings = settings
        self._resolve = resolve
        self._hub = hub
        self._idle: dict[tuple[Backend, int], list[Link]] = {}
        self._spare: dict[tuple[Backend, int], int] = {}
        """How many were there at any time since the last look; nobody needs those."""
        self._looked_at = 0.0

    def look(self, now: float) -> None:
        """Called now and then: close those beyond `MAX_IDLE` that nobody has needed for a while."""
        if now - self._looked_at < SPARE_S:
            return
        self._looked_at = now
        for key, idle in self._idle.items():
            surplus = min(self._spare.get(key, 0), len(idle)) - MAX_IDLE
            for link in idle[: max(surplus, 0)]:
                link.channel.close()
            del idle[: max(surplus, 0)]
            self._spare[key] = len(idle)

    def idle(self, backend: Backend, version: int) -> Link | None:
        """An idle link in the protocol that is tried first, or None."""
        return self._fresh(backend, _versions(backend, version)[0])

    async def open(self, service: Service, backend: Backend, version: int) -> Link:
        """A new link for one call, in the given protocol if the backend speaks it, or an idle one in the other.

        Raises:
            PyroError: the backend cannot be reached, or refused; the text says why. Nothing was sent of any call.
        """
        timeout_s = self._settings.connect_timeout_s
        with trio.move_on_after(timeout_s):
            return await self._open(backend, _versions(backend, version))
        raise TimeoutError(f"no answer from {backend.uri} within {timeout_s:g} s", outcome=Outcome.NOT_SENT)

    def put(self, link: Link) -> None:
        """Take back a link whose call is over."""
        if link.channel.closed or link.channel.pending or link.leaving or link.backend.draining:
            link.channel.close()  # and nothing is kept of a backend that is gone
            return
        link.rest_in(self)
        self._idle.setdefault((link.backend, link.version), []).append(link)

    def forget(self, link: Link) -> None:
        """An idle link is gone."""
        idle = self._idle.get((link.backend, link.version))
        if idle is not None and link in idle:
            idle.remove(link)

    def close_idle(self, backend: Backend) -> None:
        """Close every idle link to one backend."""
        for key in [key for key in self._idle if key[0] is backend]:
            self._spare.pop(key, None)
            for link in self._idle.pop(key):
                link.channel.close()

    def close(self) -> None:
        """Close every idle link."""
        for links in self._idle.values():
            for link in links:
                link.channel.close()
        self._idle.clear()

    def _fresh(self, backend: Backend, version: int) -> Link | None:
        key = backend, version
        idle = self._idle.get(key)
        if not idle:
            return None
        link = _take_fresh(idle)
        if self._spare.get(key, 0) > len(idle):
            self._spare[key] = len(idle)
        return link

    async def _open(self, backend: Backend, order: tuple[int, int]) -> Link:
        """Connect in the first protocol that is understood, and remember which were not.

        A refusal by version may be lost to a reset, so after a connection closed within the handshake the other
        protocol is tried too; but only what was said is remembered.
        """
        uri = await self._resolve(backend.uri)
        refusal: PyroError | None = None
        refused = backend.refused_versions
        for version in order:
            if version == order[1] and (link := self._fresh(backend, version)) is not None:
                return link
            connection = await open_connection(uri, version=version, settings=self._settings, collect=COLLECT_BYTES)
            try:
                offer = _OFFER if version == 502 else 0  # two ends of ours speak 502 with each other
                welcome = await introduce(connection, str(uri.object), self._settings, hops=self._hops, offer=offer)
            except (ProtocolError, ConnectionClosedError) as error:
                connection.close()
                refusal = refusal or error
                if isinstance(error, ProtocolError):
                    refused.add(version)
            except BaseException:
                connection.close()
                raise
            else:
                refused.discard(version)
                codec, reader, object_id = connection.codec, connection.decoder, str(uri.object)
                reader.gives_views = True
                grant = welcome.grant
                return Link(backend, self._hub, connection, codec, reader, object_id, grant, self._goodbye)
        refused.clear()
        assert refusal is not None
        raise refusal


def _take_fresh(idle: list[Link]) -> Link | None:
    """The last of the idle links that its backend still reads from; those that it does not are let go."""
    while idle:
        link = idle.pop()
        if link.is_fresh:
            return link
        link.discard()
    return None


class OwnLinks:
    """The links of one client in transparent mode: each was opened by the client's own CONNECT, and ends with it."""

    def __init__(self, opener: Opener, opening: Opening, hub: Hub, max_message: int, goodbye: Goodbye) -> None:
        self._goodbye = goodbye
        self._opener = opener
        self._opening = opening
        self._hub = hub
        self._max_message = max_message
        self._idle: defaultdict[Backend, list[Link]] = defaultdict(list)

    def adopt(self, opened: Opened) -> Link:
        """Make a link of a connection whose handshake is done."""
        codec = self._opening.codec
        reader = Splitter(codec, max_message=self._max_message)
        if opened.rest:
            reader.feed(opened.rest)
        grant = opened.grant
        return Link(opened.backend, self._hub, opened.connection, codec, reader, "", grant, self._goodbye)

    def idle(self, backend: Backend, version: int) -> Link | None:
        """A link that is there, or None."""
        return _take_fresh(self._idle[backend])

    async def open(self, service: Service, backend: Backend, version: int) -> Link:
        """Repeat the client's CONNECT. PyroError: as `Opener.open`."""
        return self.adopt(await self._opener.open(service, backend, self._opening, offer=Feature.GOAWAY))

    def put(self, link: Link) -> None:
        """Take back a link whose call is over."""
        if link.channel.closed or link.channel.pending or link.leaving:
            link.channel.close()
        else:
            link.rest_in(self)
            self._idle[link.backend].append(link)

    def forget(self, link: Link) -> None:
        """An idle link is gone."""
        idle = self._idle[link.backend]
        if link in idle:
            idle.remove(link)

    def close(self) -> None:
        """The client is gone."""
        for links in self._idle.values():
            for link in links:
                link.channel.close()
        self._idle.clear()


def _versions(backend: Backend, preferred: int) -> tuple[int, int]:
    """Protocols to try; one the backend is known to refuse comes last, in case it was replaced."""
    other = 48 if preferred == 502 else 502
    return (other, preferred) if preferred in backend.refused_versions else (preferred, other)


def from_backend(link: Link, piece: Piece) -> Event:
    """What has come of an answer, or a goodbye."""
    if isinstance(piece, Message):
        if piece.type == MessageType.GOAWAY and link.leaves(piece):
            return BackendLeaves(link.has_begun(piece))
        return _reply(link, piece, None)
    if isinstance(piece, BodyPart):
        return ReplyPartArrived(piece.data)
    return ReplyEnded() if isinstance(piece, End) else _reply(link, piece.message, piece.body_length)


def _reply(link: Link, answer: Message, length: int | None) -> ReplyArrived:
    link.note_failure(answer, is_whole=length is None)
    return ReplyArrived(answer, length, link.outcome_of(answer))
