"""A connected client for programs without a loop: the same session as everywhere, on a plain blocking socket.

Going through a loop in another thread would cost 42 to 150 µs a call, a blocking socket costs 10 to 20.

Any number of threads may call. Towards a peer of ours their calls are in flight together: whichever thread finds
nobody reading reads for all, and hands that duty on when its own answer came. Towards a stock peer they take turns.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ..client.calls import CallOptions
from ..client.handshake import HelloSerializer, Welcome, connect_message, read_welcome
from ..client.outbound import Outbound
from ..client.readers import StreamReaders
from ..errors import (
    ConnectionClosedError,
    Outcome,
    ProtocolError,
    SerializeError,
    TimeoutError,
)
from ..objects.expose import Metadata
from ..serializers.base import Serializer, SerializerContext
from ..serializers.factory import make_serializer
from ..settings import Settings
from ..transport.wirelog import wire_log
from ..wire import Decoder, codec_for
from ..wire.features import Feature, Grant
from ..wire.message import Body, Message, MessageType
from ..wire.plain import plain_calls
from ..wire.scattered import JOIN_BELOW
from ..wire.session import IN_PIECES, ClientSession, alive
from ..wire.v502 import V502
from .background import Offers
from .connect import BlockingSocket
from .duty import ReadingDuty
from .large import LargeMessages
from .reading import Reading
from .sending import Sending
from .tls import BlockingTls
from .turn import CallTurn
from .waiting import Waiter, as_ours, copy_for

_OFFERS: Final = {True: Feature.ALL, False: Feature.ALL & ~Feature.REVERSE}
"""What is offered with, and without, a thread that reads all the time."""

ContextFactory = Callable[[int], SerializerContext]
"""Makes what serializers know about a peer that speaks this protocol, and agreed to nothing."""


class BlockingLink:
    """One connection, made by `greet` or `assume_connected`."""

    def __init__(
        self,
        sock: BlockingSocket,
        version: int,
        settings: Settings,
        object_id: str,
        location: str,
        first_seq: int = 0,
        *,
        background: bool = False,
    ) -> None:
        self.sock = sock
        hmac_key = settings.hmac_key if version == 48 else None
        self._decoder = Decoder(
            codec_for(version),
            max_message=settings.max_message_bytes,
            max_annotations=settings.max_annotations,
            collect=settings.max_message_bytes,
            hmac_key=hmac_key,
            tap=wire_log(settings, lambda: location),
        )
        assert self._decoder.codec is not None, "it was given"
        self.codec = self._decoder.codec
        self.version = version
        self.object_id = object_id
        self.location = location
        offer = _OFFERS[background] if version == 502 else 0
        self.session: ClientSession[Waiter] = ClientSession(first_seq, offer, settings.token)
        self.reading = Reading(self, self._decoder)
        self.sending = Sending(self, hmac_key)
        self._turn = CallTurn(self)
        """For a peer that takes one call at a time."""
        self.uploads = Outbound()
        """The streams that are arguments of calls."""
        self.readers: StreamReaders[Waiter] = StreamReaders()
        """Who waits for the items of pushed streams."""
        self.serializers: dict[str, Serializer] = {}
        """Those made so far; see `serializer`."""
        self.preferred = "serpent"
        """The serializer for this peer when the user asks for none."""
        self._max_body = settings.max_message_bytes
        self.large: LargeMessages | None = None
        """Large messages in both directions, once there is one."""
        self.metadata: Metadata | None = None
        self.plain_methods: frozenset[str] = frozenset()
        """What `call_plain` takes."""
        self.closed = False
        self.first_seq = first_seq
        _links.add(weakref.ref(self, _links.discard))

    # What most connections leave as it is stands in the class.
    takes_pieces = False
    """Whether large messages travel in pieces."""
    response: Any = None
    """The daemon's handshake response."""
    welcome: Message | None = None
    lent = False
    """The socket belongs to the user and is never closed here."""
    released = False
    """The user closed the proxy: calls that were waiting end, instead of moving to a fresh connection."""
    offers: Offers | None = None
    """The objects of this process that the daemon may call on this connection; None if it does not."""
    forsaken = False
    """It belongs to the process that this one was forked from."""
    _context: SerializerContext | None = None
    _make_context: ContextFactory

    def greet(
        self, settings: Settings, make_context: ContextFactory, handshake: Any, options: CallOptions, until: float
    ) -> None:
        """Shake hands. The connection is closed when that fails.

        Args:
            make_context: gives what serializers know about the peer, before anything was agreed with it.
            until: on the monotonic clock.

        Raises:
            CommunicationError: the daemon refused, hung up, or was silent for too long.
            ProtocolError: the peer speaks another protocol, or none.
        """
        try:
            self.sock.settimeout(None)  # what waits here has the limit as an argument
            self._make_context = make_context
            hello = HelloSerializer(settings.serializer or "serpent", self._first_context)
            args = self.session, hello, self.version, self.object_id, handshake, settings, options
            while True:
                self.sending.greet(connect_message(*args), until)
                answer = self.reading.receive_one(until)
                self.session.receive(answer)
                if not self.session.is_challenged:
                    break
            self.welcome = answer
            self._begin(read_welcome(answer, self.version, self.location, settings, hello), settings)
        except BaseException as error:
            self.close()
            raise as_ours(error, "handshake") from error

    def _begin(self, welcome: Welcome, settings: Settings) -> None:
        """Get ready for calls, as agreed in the handshake."""
        self.metadata, self.response = welcome.metadata, welcome.response
        granted = self.session.grant.bits
        if granted & Feature.REVERSE:
            self.offers = Offers(self)
        if granted & Feature.TYPED:
            self.preferred = "msgpack"
        if granted & Feature.PIECES:
            self.takes_pieces = True
        if welcome.metadata is not None and self._takes_plain_calls(settings):
            self.plain_methods = welcome.plain
        if settings.heartbeat_s and granted & Feature.HEARTBEAT:
            self.reading.watch(settings.heartbeat_s)

    def _first_context(self) -> SerializerContext:
        return self._make_context(self.version)

    def _takes_plain_calls(self, settings: Settings) -> bool:
        return self.session.concurrent and self.codec is V502 and not settings.compression

    def assume_connected(self, make_context: ContextFactory) -> None:
        """Skip the handshake: the socket is the user's, and both ends know what they connected."""
        self.lent = True
        self.sock.settimeout(None)
        self.session.assume_connected()
        self._make_context = make_context

    @property
    def grant(self) -> Grant:
        """What was agreed with the peer."""
        return self.session.grant

    def getpeercert(self, binary_form: bool = False) -> Any:
        """The daemon's certificate, as `ssl.SSLSocket.getpeercert` gives it; None without TLS."""
        return self.sock.getpeercert(binary_form) if isinstance(self.sock, BlockingTls) else None

    @property
    def usable(self) -> bool:
        """Whether new calls may be sent."""
        return not (self.closed or self.session.going_away)

    @property
    def context(self) -> SerializerContext:
        """What serializers know about the peer."""
        if self._context is None:
            context = self._first_context()
            autoproxy = None if self.offers is None else self.offers.offer
            self._context = context.granted(self.grant, autoproxy=autoproxy)
        return self._context

    def in_pieces(self) -> LargeMessages:
        """Large messages, where they travel in pieces."""
        if self.large is None:  # the first two may be met at once, by a thread that sends and the one that reads
            self.large = self.__dict__.setdefault("_made_large", LargeMessages(self, self._max_body))
            self._decoder.place_of = self.large.place_of
        return self.large

    def serializer(self, name: str) -> Serializer:
        """The serializer of that name for this peer."""
        serializer = self.serializers.get(name)
        if serializer is None:
            serializer = self.serializers[name] = make_serializer(name, self.context)
        return serializer

    def call(self, message: Message, deadline: float | None) -> Message:
        """Send a call and wait for its RESULT.

        Args:
            deadline: on the monotonic clock.

        Raises:
            CommunicationError: with its outcome.

        When the deadline passes or an interrupt comes, a peer of ours is told to stop; the connection to a stock peer
        is closed, because the answer would be taken for that of the next call.
        """
        waiter = Waiter()
        if self.session.grant.bits & Feature.CONCURRENT:
            self.sending.post(waiter, message, deadline)
            return self.reading.wait(waiter, message.seq, deadline)
        answer = self._turn.run(waiter, message, deadline)
        assert answer is not None, "of a call that is waited for"
        return answer

    def call_plain(self, serializer: str, body: Body, flags: int = 0) -> bytes | Message:
        """`call` one of the `plain_methods` without deadline and options, in fewer steps. Errors as `call`.

        Returns:
            The body of the answer if that says nothing else; else the whole answer.
        """
        large = self.large
        if type(body) is bytes and len(body) <= JOIN_BELOW and (large is None or not large.active):
            waiter, calls = Waiter(), plain_calls(serializer, flags)
            seq = self.sending.post_plain(waiter, calls, body)
            if seq is not None:
                return self.reading.wait_plain(waiter, calls, seq)
        return self.call(Message(MessageType.INVOKE, 0, serializer, flags, body), None)

    def call_beside(
        self, waiter: Waiter, message: Message, deadline: float | None, work: Callable[[], None]
    ) -> Message:
        """`call` towards a peer of ours, with something to do until the answer is there.

        Args:
            work: is done in this thread when the request has left, and returns when ``waiter`` is settled.
        """
        self.sending.post(waiter, message, deadline)
        try:
            work()
        except BaseException as error:
            self.give_up(waiter, message.seq)
            if isinstance(error, TimeoutError):
                raise TimeoutError(
                    f"the call took too long ({Outcome.UNKNOWN.value})", outcome=error.outcome
                ) from None
            raise
        return self.reading.wait(waiter, message.seq, deadline)

    def send_oneway(self, message: Message, deadline: float | None = None) -> None:
        """Send a call that has no answer. Errors have outcome NotSent."""
        if self.session.concurrent:
            self.sending.post(None, message, deadline)
        else:
            self._turn.run(None, message, deadline)

    def try_oneway(self, message: Message) -> None:
        """Send a call that has no answer without waiting: for finalizers, which may run inside a call.

        It is left out while a call to a peer that takes one at a time is in flight.
        """
        if not self.closed and not self._turn.taken:
            self.sending.aside(message)

    def give_up(self, waiter: Waiter, seq: int) -> None:
        """Leave a call that was sent without its answer."""
        waiter.abandoned = True
        if waiter.reply is not None or self.closed:
            return
        if not self.grant.bits & Feature.CANCEL or not self.sending.cancel(seq):
            self.fail(ConnectionClosedError("a call on this connection was given up"))

    # --- what comes in -------------------------------------------------------------------------------------------

    def take(self, message: Message) -> None:
        """Give a message to whom it is for.

        Raises:
            ProtocolError: it must not come now, or not from a daemon.
            SerializeError: it is an answer that cannot be used.
            ConnectionClosedError: the connection was closed meanwhile.
        """
        session = self.session
        try:
            waiter = session.receive(message)
        except (KeyError, SerializeError, ProtocolError) as error:
            self._check_open()
            if isinstance(error, SerializeError):
                session.pending[message.seq].answered = True
            raise
        if waiter is None:
            self._take_other(message)
        elif not waiter.abandoned:
            waiter.reply = message
            if waiter.wake is not None:
                self.reading.duty.rouse(waiter)
        if session.going_away and not session.pending:
            self.close()

    def _check_open(self) -> None:
        """A message does not fit: whether it is one of a session that another thread ended at this very moment."""
        if self.closed:
            raise ConnectionClosedError("the connection was closed") from None

    def _take_other(self, message: Message) -> None:
        self.reading.heard()
        if self.takes_pieces and message.type in IN_PIECES:
            try:
                whole = self.in_pieces().take(message)
            except ProtocolError:
                self._check_open()
                raise
            if whole is not None:
                self.take(whole)
        elif message.type == MessageType.ITEMS:
            listener = self.readers.take(message)
            if listener is not None:
                listener.reply = message
                self.reading.duty.rouse(listener)
        elif message.type in (MessageType.CREDIT, MessageType.STOP):
            end = self.uploads.take(message, self.serializer("msgpack"))
            if end is not None:
                self.sending.aside(end)
        elif message.type == MessageType.HEARTBEAT:
            self.sending.aside(alive())
        elif message.type in (MessageType.INVOKE, MessageType.CANCEL):
            assert self.offers is not None, "the session takes these only where it was agreed"
            self.offers.take(message)

    # --- the end -------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """Close. Calls in flight in other threads end with this error, and what is certain about each."""
        self._close_socket()
        session = self.session
        # a list of the keys makes nothing that could collect garbage, and let other threads go on, on its way
        unread = {session.pending.get(seq) for seq in list(session.pending) if session.is_unread(seq)}
        waiters = (*session.drop_pending(), *self.readers.waiting.values())
        for waiter in waiters:
            outcome = Outcome.EXECUTED if waiter.answered else Outcome.UNKNOWN
            waiter.error = copy_for(error, Outcome.NOT_SENT if waiter in unread else outcome)
        self.reading.duty.rouse_all()

    def close(self) -> None:
        """Close. Calls in flight in other threads end with a ConnectionClosedError."""
        self.fail(_CLOSED)

    def _close_socket(self) -> None:
        self.closed = True
        if self.lent:
            return
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.reading.over()
        self.let_go()

    def let_go(self) -> None:
        """Close the descriptor of a connection that is over; a thread that is using it does so afterwards.

        Closed earlier, its number could be that of another connection when the thread comes to use it.
        """
        if self.lent:
            return
        duty = self.reading.duty
        while self.sending.while_free(partial(duty.while_free, self.sock.close)) and duty.reader is None:
            pass  # somebody stopped reading at that moment, and came here while this thread kept others from sending

    def forsake(self) -> None:
        """Give the connection to the parent after a fork: two processes cannot share it.

        Threads that were using it stay there, too, with what they had locked.
        """
        self.closed = self.forsaken = True
        self.sending.lock, self._turn, self.reading.duty = threading.Lock(), CallTurn(self), ReadingDuty()
        if isinstance(self.sock, BlockingTls):
            self.sock.forsake()
        elif not self.lent:
            self.sock.close()


_CLOSED: Final = ConnectionClosedError("the proxy was closed")
"""Never raised itself: calls in flight end with copies."""
_links: Final[set[weakref.ref[BlockingLink]]] = set()


def _forsake_all() -> None:
    for found in list(_links):
        link = found()
        if link is not None:
            link.forsake()


os.register_at_fork(after_in_child=_forsake_all)
