"""One client of a daemon, from its first byte to its last."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final

import trio

from ..access import Identity
from ..errors import PyroError, SerializeError
from ..objects.context import TrackedResources
from ..objects.table import Entry, ObjectTable
from ..serializers.base import Serializer, SerializerContext
from ..serializers.factory import make_serializer
from ..serializers.vocabulary import ProxyState
from ..settings import Settings
from ..transport.connection import Connection, Event
from ..transport.sockets import ClosedSocket
from ..transport.tls import TlsSocket
from ..transport.turns import TurnSender
from ..wire.features import Feature
from ..wire.message import Message, MessageType
from ..wire.pieces import Outgoing
from ..wire.session import ServerSession
from .calls import Calls
from .crew import Crew, PeerTasks
from .execute import Job
from .handshake import accept_handshake
from .large import LargeMessages
from .poller import Place, Poller
from .push import PushedStreams
from .reverse import ReverseCalls
from .room import AnswerRoom
from .small import Unusual, prepare
from .streams import StreamTable
from .uploads import ArgumentStream, ArgumentStreams
from .workers import WorkerPool

if TYPE_CHECKING:
    from .daemon import Daemon
    from .lending import Loan

log = logging.getLogger(__name__)

LEND_LATER: Final = 64
"""Calls of plain functions before the connection of a client that was busy otherwise is lent to a thread again."""


class Peer:
    """One connection, and what belongs to it. Handlers find it as ``current_call.client``.

    It has no task of its own: the daemon's workers take its turns, and run its calls. Most connections are idle, and
    what few of them need is made when it is.

    Args:
        crew: the workers, which must serve as long as the connection; None: it has others.
    """

    __slots__ = (
        "__weakref__",
        "_instances",
        "_large",
        "_left",
        "_lend_later",
        "_making",
        "_pushed",
        "_release",
        "_room",
        "_tasks",
        "_uploads",
        "annotates",
        "asked",
        "calls",
        "connection",
        "crew",
        "daemon",
        "ended",
        "finishing",
        "heard",
        "identity",
        "kept",
        "known_serializers",
        "loan",
        "place",
        "poller",
        "pool",
        "resources",
        "reverse",
        "sends_tracebacks",
        "session",
        "settings",
        "streams",
        "table",
        "takes_small",
    )

    crew: Crew
    """The workers that serve it."""
    poller: Poller
    """What listens to it between its turns."""

    def __init__(self, daemon: Daemon, connection: Connection, crew: Crew | None) -> None:
        self.daemon = daemon
        self.settings: Settings = daemon.settings
        self.table: ObjectTable = daemon.table
        self.pool: WorkerPool = daemon.pool
        self.streams: StreamTable = daemon.streams
        self.annotates = daemon.adds_annotations
        """Whether the daemon adds annotations to every answer."""
        self.takes_small = not (self.annotates or self.settings.compression or self.settings.hmac_key)
        """Whether usual requests may take the short way."""
        self.asked = daemon.validates
        """Whether the daemon's hook decided about it; one that is set later has not."""
        self.connection = connection
        if crew is not None:
            assert crew.poller is not None, "somebody reads for it"
            self.crew, self.poller = crew, crew.poller
        self.session = ServerSession(daemon.epoch)
        self.calls = Calls(self)
        self.place = Place.TAKEN
        """Who reads."""
        self.heard = False
        """The poller has its socket."""
        self.finishing = False
        """Close once the answer that is due has left."""
        self.ended = False
        """Nothing is read any more; the last things are cut."""
        tracebacks = daemon.settings.remote_tracebacks
        self.sends_tracebacks = connection.is_local if tracebacks is None else tracebacks
        self.identity: Identity | None = None
        """Who the client is; None when nobody asked."""
        self.resources = TrackedResources()
        self.reverse: ReverseCalls | None = None
        """Calls to objects of the client's own daemon."""
        self._left = False
        self.loan: Loan | None = None
        """The thread that has the connection."""
        self._lend_later = 0
        self.kept: Event | None = None
        """What a thread has read of the connection and handed back."""
        self.known_serializers: dict[str, Serializer] = _NONE_YET
        """Those it has used."""
        self._instances: dict[type, Any] | None = None
        self._making: trio.Lock | None = None
        self._tasks: PeerTasks | None = None
        self._large: LargeMessages | None = None
        self._pushed: PushedStreams | None = None
        self._room: AnswerRoom | None = None
        self._uploads: ArgumentStreams | None = None
        self._release: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Peer {self.connection.peer}, protocol {self.version}>"

    # --- who it is --------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """The other side, for people."""
        return self.connection.peer

    @property
    def version(self) -> int:
        """48 or 502."""
        return self.connection.codec.version

    @property
    def sock(self) -> Any:
        """The connection's socket, for looking at; in `Daemon.clientDisconnect` it is closed, and says who it was."""
        sock = self.connection.sock
        return sock if sock.fileno() >= 0 else ClosedSocket(self.connection.peer)

    def identify(self, identity: Identity | None) -> None:
        """Take note of who the client is."""
        self.identity = identity
        if identity is not None and self.settings.remote_tracebacks is None:
            self.sends_tracebacks = True

    def getpeercert(self, binary_form: bool = False) -> Any:
        """The client's certificate, as `ssl.SSLSocket.getpeercert` gives it; None without TLS."""
        sock = self.connection.sock
        return sock.getpeercert(binary_form) if isinstance(sock, TlsSocket) else None

    @property
    def is_own(self) -> bool:
        """Whether the other side is this library, which speaks both protocols."""
        return self.session.grant.bits != 0

    @property
    def is_serial(self) -> bool:
        """Whether the client makes one call after another on this connection."""
        return not self.session.grant.bits & Feature.CONCURRENT

    # --- serializers ------------------------------------------------------------------------------------------

    def serializer(self, name: str) -> Serializer:
        """The serializer of that name for this peer.

        Raises:
            SerializeError: this daemon does not accept it.
        """
        return self.known_serializers.get(name) or self._make_serializer(name)

    def _make_serializer(self, name: str) -> Serializer:
        if name not in self.settings.accepted_serializers:
            raise SerializeError(f"message used serializer that is not accepted: {name}")
        if self.known_serializers is _NONE_YET:
            self.known_serializers = {} if self.is_own else self.daemon.stock_serializers(self.version, self._unsafe)
        serializer = self.known_serializers.get(name)
        if serializer is None:
            serializer = self.known_serializers[name] = make_serializer(name, self.context())
        return serializer

    @property
    def _unsafe(self) -> frozenset[str]:
        return self.settings.unsafe_for(known=self.identity is not None or self.asked)

    def context(self) -> SerializerContext:
        """How values are written for and read from this peer."""
        grant = self.session.grant
        return self.daemon.serializer_context(self.version, Feature.TYPED in grant).granted(
            grant,
            stream_reader=self._make_stream if Feature.UPLOAD in grant else None,
            proxy_factory=self._make_proxy if Feature.REVERSE in grant else None,
            unsafe=self._unsafe,
        )

    def _make_stream(self, number: int) -> ArgumentStream:
        return self.uploads.make(number)

    def _make_proxy(self, state: ProxyState) -> Any:
        """The proxy that arrived in a value; one for an object of the client's calls over this connection."""
        proxy = self.daemon.make_proxy(state)
        if self.reverse is not None:
            self.reverse.lead(proxy, state)
        return proxy

    # --- its objects and calls --------------------------------------------------------------------------------

    @property
    def instances(self) -> dict[type, Any]:
        """The session objects of this connection."""
        if self._instances is None:
            self._instances = {}
        return self._instances

    def known_instance(self, entry: Entry) -> Any:
        """The object that a call goes to if it exists already; None when it must be made."""
        return self.table.known_instance(entry, self.instances)

    async def make_instance(self, entry: Entry, run: Callable[..., Awaitable[Any]]) -> Any:
        """Make the object that a call goes to; one for the whole connection is made once, whoever asks meanwhile.

        Args:
            run: runs a function in a thread.
        """
        if entry.mode != "session":
            return await run(self.table.instance, entry, self.instances)
        if self._making is None:
            self._making = trio.Lock()
        async with self._making:
            instance = self.known_instance(entry)
            return instance if instance is not None else await run(self.table.instance, entry, self.instances)

    def check(self, job: Job) -> None:
        """Whether the client may call this; raises what it is told otherwise."""

    @property
    def in_flight(self) -> int:
        """Calls running or waiting in a lane."""
        return self.calls.in_flight

    def running(self) -> list[Job]:
        """The calls that run."""
        return self.calls.running()

    def unfinished(self) -> list[Job]:
        """The calls that run or wait."""
        return self.calls.unfinished()

    def gave_up(self, job: Job) -> bool:
        """Whether the caller said that it does not want the answer of a running call."""
        return self.calls.gave_up(job)

    def cancel_leaving(self, seq: int) -> None:
        """The caller does not want an answer that may be leaving."""
        if self._large is not None:
            self._large.cancel(seq)

    def answer_leaves(self, size: int) -> None:
        """A large answer counts as a call in flight, and takes room, until it has left."""
        self.calls.in_flight += 1
        self.room.take(size)

    def answer_left(self, size: int) -> None:
        """The end of `answer_leaves`."""
        self.room.free(size)
        self.calls.ended()

    # --- a thread that has the connection ---------------------------------------------------------------------

    def may_be_lent(self) -> bool:
        """Whether a thread may use the connection for a call that is about to begin: nobody else does."""
        connection = self.connection
        if not self.pool.lends or type(connection.sock) is not socket.socket:
            return False
        if connection.unsent or connection.flushing or connection.broken:  # the loop is about to send, or to close
            return False
        if self.is_serial:
            return True
        if self._lend_later:
            self._lend_later -= 1
            return False
        others = self._large, self._pushed, self._uploads, self.reverse
        return self.calls.none and not connection.decoder.data and others == (None, None, None, None)

    def lend_later(self) -> None:
        """The client does more than one thing at once, or long ones: a thread would be in the way for some time."""
        self._lend_later = LEND_LATER

    def prepared(self, message: Message) -> tuple[Job, Callable[..., Any]] | None:
        """What a request that a thread has read calls, if it is another plain function."""
        prepared = prepare(self, message)
        if isinstance(prepared, Unusual) or prepared[2].is_async or prepared[2].is_inline:
            return None
        self.session.last_seq = message.seq
        return prepared[:2]

    async def flush(self) -> None:
        """Send what is queued, and nothing more on the connection of a thread.

        Raises:
            ConnectionClosedError: the client is gone.
        """
        if self.loan is not None:
            self.loan.recall()
        await self.connection.flush()

    # --- what few connections need ----------------------------------------------------------------------------

    @property
    def tasks(self) -> PeerTasks:
        """What runs beside its calls."""
        if self._tasks is None:
            self._tasks = PeerTasks(self.crew, self.close, self.leave_if_over)
        return self._tasks

    @property
    def large(self) -> LargeMessages:
        """Messages in pieces."""
        if self._large is None:
            self._large = LargeMessages(self, self.tasks.start_soon)
        return self._large

    @property
    def room(self) -> AnswerRoom:
        """What its large answers hold."""
        if self._room is None:
            self._room = AnswerRoom(self.connection, self.flush_soon)
        return self._room

    def room_for(self, size: int) -> AbstractAsyncContextManager[None]:
        """See `CallContext.room_for`."""
        return self.room.making(size)

    def _in_pieces(self, answer: Message) -> Outgoing | None:
        if not self.takes_pieces or answer.type != MessageType.RESULT:
            return None
        return self.large.leave(answer)

    @property
    def takes_pieces(self) -> bool:
        """Whether large bodies leave in pieces."""
        return Feature.PIECES in self.session.grant

    def turns(self) -> TurnSender:
        """What sends them."""
        return self.large.sender

    @property
    def uploads(self) -> ArgumentStreams:
        """The streams that this client sends as arguments."""
        if self._uploads is None:
            self._uploads = ArgumentStreams(self)
        return self._uploads

    @property
    def pushed(self) -> PushedStreams:
        """The item streams that this client may be pushed."""
        if self._pushed is None:
            self._pushed = PushedStreams(self, self.tasks.start_soon)
        return self._pushed

    def take_reverse(self, message: Message) -> None:
        """The client serves objects itself, or answers a call to one."""
        if self.reverse is None:
            self.reverse = ReverseCalls(self)
        if message.type == MessageType.SERVES:
            self.reverse.served(message)
        else:
            self.reverse.take(message)

    # --- sending ----------------------------------------------------------------------------------------------

    def flush_some(self) -> None:
        """Let answers that are queued leave before something else is waited for."""
        connection = self.connection
        if connection.unsent:
            try:
                if not connection.flush_nowait() and self.session.grant.bits & Feature.CONCURRENT:
                    self.flush_soon()
            except PyroError as error:
                log.debug("%s", error)
                connection.close()

    def flush_soon(self) -> None:
        """See that what is queued leaves, in a task of its own."""
        if not self.connection.flushing:
            self.tasks.start_soon(self._flush)

    async def _flush(self) -> None:
        try:
            await self.connection.flush()
        except PyroError as error:
            log.debug("%s", error)
            self.connection.close()

    def go_away(self) -> None:
        """Tell a client that can understand it to make no more calls here."""
        if self.session.grant.bits & Feature.GOAWAY:
            if self.loan is not None:
                self.loan.recall()
            try:
                self.connection.queue(self.session.goaway())
                self.connection.flush_nowait()
            except PyroError as error:
                log.debug("%s cannot be told to go away: %s", self.connection.peer, error)

    # --- its life ---------------------------------------------------------------------------------------------

    async def greet(self) -> bool:
        """Do the handshake; False when the client was refused, or left."""
        context, judge = self.daemon.handshake_context(self.connection), self.daemon.judge_for(self)
        return await accept_handshake(self.connection, self.session, self.settings, context, judge) is not None

    def begin(self) -> None:
        """Serve the client, which was greeted, until it leaves.

        Calls that are running when it leaves are cancelled; one-way calls run on in the daemon.
        """
        connection = self.connection
        if connection.decoder.data or connection.pending or connection.broken:
            self.crew.attend(self)
        else:
            self.poller.listen(self)
        self._release = connection.keep()
        connection.decoder.max_message = self.settings.max_message_bytes
        connection.in_pieces = self._in_pieces
        connection.when_closed = self._closed
        self.daemon.peers.add(self)

    def close(self) -> None:
        """Cut the connection, from a method's thread, too: then the loop finds out, and closes it."""
        if trio.lowlevel.in_trio_run():
            self.connection.close()
        else:
            self.connection.cut()

    def _closed(self) -> None:
        """The connection is being closed, by anybody: whoever reads finds out, and if nobody does, somebody must.

        A thread that has the connection must not use the descriptor any more, which the next client may get.
        """
        if self.loan is not None:
            self.loan.recall()
        self.poller.forget(self)
        if self.place is Place.LISTENED and not self.ended:
            self.place = Place.TAKEN
            self.crew.attend(self)

    def go_on_with_rest(self) -> None:
        """A thread has given the connection back: see that somebody takes what it had read."""
        if self.place is Place.LISTENED and (self.kept is not None or self.connection.decoder.data):
            self.place = Place.TAKEN
            self.crew.attend(self)

    async def end(self) -> None:
        """The connection is over: what runs is cancelled."""
        self.ended = True
        self.connection.close()
        self.calls.cut_all()
        if self._tasks is not None:
            self._tasks.cancel()
        await self.leave_if_over()

    async def leave_if_over(self) -> None:
        """Let go of everything, once the last thing that was cut has ended."""
        if self.ended and not self._tasks and not self.calls.any_running:
            await self.leave()

    async def leave(self) -> None:
        """Let go of everything that belongs to the connection. Twice is fine."""
        if self._left:
            return
        self._left = self.ended = True
        self.daemon.peers.discard(self)
        self.daemon.call_ended()
        self.connection.in_pieces = None
        if self._uploads is not None:
            self._uploads.lose()
        self.connection.close()
        if self._release is not None:
            self._release()
        if self.reverse is not None:
            self.reverse.end()
        self.resources.close_all()
        await self.streams.connection_lost(self)
        self.daemon.client_left(self)


_NONE_YET: dict[str, Serializer] = {}
