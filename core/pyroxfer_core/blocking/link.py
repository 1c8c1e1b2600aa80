"""A connected client for programs without a loop: the same session as everywhere, on a plain blocking socket.

Going through a loop in another thread would cost 42 to 150 µs a call, a blocking socket costs 10 to 20.

Any number of threads may call. Towards a peer of ours their calls are in flight together: whichever thread finds
nobody reading reads for all, and hands that duty on when its own answer came. Towards a stock peer they take turns.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

from ..client.calls import CallOptions
from ..client.handshake import connect_message, read_welcome
from ..client.heartbeat import QUESTIONS, silent
from ..client.outbound import Outbound
from ..client.readers import StreamReaders
from ..errors import (
    CommunicationError,
    ConnectionClosedError,
    Outcome,
    ProtocolError,
    PyroError,
    SerializeError,
    TimeoutError,
)
from ..objects.expose import Metadata
from ..objects.invoke import BATCH_METHOD
from ..serializers.base import Serializer, SerializerContext
from ..serializers.factory import make_serializer
from ..serializers.vocabulary import ProxyState, served_as
from ..settings import Settings
from ..transport.sockets import is_local
from ..transport.wirelog import wire_log
from ..wire import Codec, Decoder, codec_for
from ..wire.features import Feature, Grant
from ..wire.message import Body, Message, MessageType
from ..wire.pieces import MAX_PIECE, Outgoing
from ..wire.plain import PlainCalls, plain_calls
from ..wire.scattered import JOIN_BELOW, buffers_of
from ..wire.session import IN_PIECES, ClientSession, alive, heartbeat
from ..wire.v502 import V502
from .background import BackgroundLink
from .connect import BlockingSocket, limit_silence, send_buffers, send_by, wait_for
from .duty import ReadingDuty
from .intake import Intake
from .large import LargeMessages
from .tls import BlockingTls
from .waiting import Waiter, as_ours, copy_for, seconds_left

CANCEL_CHECK_S: Final = 0.001
CANCEL_GRACE_S: Final = 1.0
"""How long giving up a call may take: another thread may be sending at that moment."""
TURN_CHECK_S: Final = 1.0
"""How often a thread that waits for its turn looks whether the connection is still there."""

_OFFERS: Final = {True: Feature.ALL, False: Feature.ALL & ~Feature.REVERSE}
"""What is offered with, and without, a thread that reads all the time."""

ContextFactory = Callable[[int, bool], SerializerContext]


class _Poll(Protocol):
    """Tells whether something came on a connection."""

    def poll(self, milliseconds: int, /) -> object: ...


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
        self._poll: _Poll
        self._wait_for_bytes: Callable[[float | None], None]
        if isinstance(sock, BlockingTls):
            self._poll = sock
            self._wait_for_bytes = sock.wait_readable
        else:
            self._wait_for_bytes = partial(wait_for, sock, select.POLLIN)
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)
        self._hmac_key = settings.hmac_key if version == 48 else None
        self._decoder = Decoder(
            codec_for(version),
            max_message=settings.max_message_bytes,
            max_annotations=settings.max_annotations,
            collect=settings.max_message_bytes,
            hmac_key=self._hmac_key,
            tap=wire_log(settings, lambda: location),
        )
        assert self._decoder.codec is not None, "it was given"
        self._codec = self._decoder.codec
        self._encode = self._codec.encode
        self._intake = Intake(sock, self._decoder, self._take, self._fail)
        self.version = version
        self.object_id = object_id
        self.location = location
        offer = _OFFERS[background] if version == 502 else 0
        self.session: ClientSession[Waiter] = ClientSession(first_seq, offer, settings.token)
        self.turn = threading.Lock()
        """Held during a call towards a peer that takes one at a time."""
        self._in_flight: Message | None = None
        """The call that has the turn."""
        self.sending = threading.Lock()
        self._duty = ReadingDuty()
        self.serializers: dict[str, Serializer] = {}
        """Those made so far; see `serializer`."""
        self.preferred = "serpent"
        """The serializer for this peer when the user asks for none."""
        self._context: SerializerContext | None = None
        self._large: LargeMessages | None = None
        self.uploads = Outbound()
        """The streams that are arguments of calls."""
        self.readers: StreamReaders[Waiter] = StreamReaders()
        """Who waits for the items of pushed streams."""
        self.metadata: Metadata | None = None
        self.plain_methods: frozenset[str] = frozenset()
        """What `call_plain` takes."""
        self.response: Any = None
        """The daemon's handshake response."""
        self.welcome: Message | None = None
        self.lent = False
        """The socket belongs to the user and is never closed here."""
        self.released = False
        """The user closed the proxy: calls that were waiting end, instead of moving to a fresh connection."""
        self._heartbeat_s = 0.0
        """How long a peer of ours may owe an answer before it is asked; 0: it is not asked."""
        self._unanswered = 0
        self._background: BackgroundLink | None = None
        """Answers what the daemon calls on this connection."""
        self._offering = threading.Lock()
        self.closed = False
        self.ended = False
        """The peer closed the connection during the handshake."""
        self.forsaken = False
        """It belongs to the process that this one was forked from."""
        self.first_seq = first_seq
        _links.add(self)

    def greet(
        self, settings: Settings, make_context: ContextFactory, handshake: Any, options: CallOptions, until: float
    ) -> None:
        """Shake hands. The connection is closed when that fails.

        Args:
            until: on the monotonic clock.

        Raises:
            CommunicationError: the daemon refused, hung up, or was silent for too long.
            ProtocolError: the peer speaks another protocol, or none.
        """
        try:
            self.sock.settimeout(None)  # what waits here has the limit as an argument
            context = make_context(self.version, False)
            hello = make_serializer(settings.serializer or "serpent", context)
            args = self.session, hello, self.version, self.object_id, handshake, settings, options
            while True:
                send_by(self.sock, self._encode(connect_message(*args), hmac_key=self._hmac_key), until)
                answer = self._receive_one(until)
                self.session.receive(answer)
                if not self.session.is_challenged:
                    break
            welcome = read_welcome(answer, self.version, self.location, settings, hello)
        except BaseException as error:
            self.close()
            raise as_ours(error, "handshake") from error
        self.metadata, self.response, self.welcome = welcome.metadata, welcome.response, answer
        may_offer = Feature.REVERSE in self.grant
        self._context = context.granted(self.grant, self.offer_served if may_offer else context.autoproxy)
        if Feature.TYPED in self.grant:
            self.preferred = "msgpack"
        if Feature.PIECES in self.grant:
            self._large = LargeMessages(self, settings.max_message_bytes)
            self._decoder.place_of = self._large.place_of
        if welcome.metadata is not None and self._takes_plain_calls(settings):
            self.plain_methods = welcome.metadata.methods - welcome.metadata.oneway | {BATCH_METHOD}
        if settings.heartbeat_s and Feature.HEARTBEAT in self.grant:
            self._heartbeat_s = settings.heartbeat_s
            limits = self._heartbeat_s, self._heartbeat_s * (QUESTIONS + 1)
            if isinstance(self.sock, BlockingTls):
                self.sock.limit_silence(*limits)
            else:
                limit_silence(self.sock, *limits)

    def _takes_plain_calls(self, settings: Settings) -> bool:
        return self.session.concurrent and self._codec is V502 and not settings.compression

    def assume_connected(self, make_context: ContextFactory) -> None:
        """Skip the handshake: the socket is the user's, and both ends know what they connected."""
        self.lent = True
        self.sock.settimeout(None)
        self.session.assume_connected()
        self._context = make_context(self.version, False)

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

    def serializer(self, name: str) -> Serializer:
        """The serializer of that name for this peer."""
        serializer = self.serializers.get(name)
        if serializer is None:
            assert self._context is not None, "made with the handshake"
            serializer = self.serializers[name] = make_serializer(name, self._context)
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
            self._post(waiter, message, deadline)
            return self._await(waiter, message.seq, deadline)
        answer = self._in_turn(waiter, message, deadline)
        assert answer is not None, "of a call that is waited for"
        return answer

    def call_plain(self, serializer: str, body: Body, flags: int = 0) -> bytes | Message:
        """`call` one of the `plain_methods` without deadline and options, in fewer steps. Errors as `call`.

        Returns:
            The body of the answer if that says nothing else; else the whole answer.
        """
        large = self._large
        if type(body) is bytes and len(body) <= JOIN_BELOW and (large is None or not large.active):
            waiter, calls = Waiter(), plain_calls(serializer, flags)
            seq = self._post_plain(waiter, calls, body)
            if seq is not None:
                return self._await_plain(waiter, calls, seq)
        return self.call(Message(MessageType.INVOKE, 0, serializer, flags, body), None)

    def call_beside(
        self, waiter: Waiter, message: Message, deadline: float | None, work: Callable[[], None]
    ) -> Message:
        """`call` towards a peer of ours, with something to do until the answer is there.

        Args:
            work: is done in this thread when the request has left, and returns when ``waiter`` is settled.
        """
        self._post(waiter, message, deadline)
        try:
            work()
        except BaseException as error:
            self.give_up(waiter, message.seq)
            if isinstance(error, TimeoutError):
                raise TimeoutError(
                    f"the call took too long ({Outcome.UNKNOWN.value})", outcome=error.outcome
                ) from None
            raise
        return self._await(waiter, message.seq, deadline)

    def post(self, waiter: Waiter, message: Message, deadline: float | None) -> None:
        """Send a call; its answer is for `finish`. Errors as `call`."""
        self._post(waiter, message, deadline)

    def finish(self, waiter: Waiter, message: Message, deadline: float | None) -> Message:
        """Wait for the answer to a call that was sent by `post`. Errors as `call`."""
        return self._await(waiter, message.seq, deadline)

    def send_item(self, message: Message) -> None:
        """Send an item of a stream, in pieces when it is large.

        Raises:
            ConnectionClosedError: the connection is gone.
        """
        if self._large is not None and len(message.body) > MAX_PIECE:
            self._large.send(Outgoing(message, self._codec), None, None)
        else:
            self.send_signal(message)

    def rouse(self, waiter: Waiter) -> None:
        """Wake the thread that sleeps for this."""
        self._duty.rouse(waiter)

    @property
    def context(self) -> SerializerContext:
        """What serializers know about the peer."""
        assert self._context is not None, "made with the handshake"
        return self._context

    def send_oneway(self, message: Message, deadline: float | None = None) -> None:
        """Send a call that has no answer. Errors have outcome NotSent."""
        if self.session.concurrent:
            self._post(None, message, deadline)
        else:
            self._in_turn(None, message, deadline)

    def _in_turn(self, waiter: Waiter | None, message: Message, deadline: float | None) -> Message | None:
        """Run a call when no other is in flight.

        An interrupt that may have swallowed the turn ends the connection, so that nobody waits for it.
        """
        try:
            self._take_turn(message, deadline)
            try:
                self._post(waiter, message, deadline)
                return None if waiter is None else self._await(waiter, message.seq, deadline)
            finally:
                self._in_flight = None
                self.turn.release()
        except Exception:
            raise
        except BaseException as error:
            if self._in_flight is message or (self._in_flight is None and self.turn.locked()):
                self._fail(error)
            raise

    def _take_turn(self, message: Message, deadline: float | None) -> None:
        left = seconds_left(deadline)
        while not self.turn.acquire(timeout=TURN_CHECK_S if left < 0 else min(left, TURN_CHECK_S)):
            if self.closed:
                raise ConnectionClosedError("the connection was lost", outcome=Outcome.NOT_SENT)
            left = seconds_left(deadline)
            if left == 0:
                raise TimeoutError("the call waited too long for its turn", outcome=Outcome.NOT_SENT)
        self._in_flight = message

    def try_oneway(self, message: Message) -> None:
        """Send a call that has no answer if that takes no waiting: for finalizers, which may run inside a call."""
        if self.closed or self.turn.locked() or self.sending.locked():
            return
        self.send_oneway(message, time.monotonic() + CANCEL_GRACE_S)

    # --- sending -----------------------------------------------------------------------------------------------

    def _post(self, waiter: Waiter | None, message: Message, deadline: float | None) -> None:
        large = self._large
        if large is not None and large.active:
            large.announce(message)
        with self.sending:
            if large is not None and large.active:
                large.arrived(message)
            self._check_line()
            numbered = False
            try:
                self.session.invoke(waiter, message)
                numbered = True
                small = len(message.body) <= JOIN_BELOW or self._hmac_key is not None
                data = self._encode(message, hmac_key=self._hmac_key) if small else self._head(message)
            except BaseException as error:
                if numbered or (waiter is not None and self.session.pending.get(message.seq) is waiter):
                    self.session.forget(message)
                if isinstance(error, CommunicationError):
                    error.outcome = Outcome.NOT_SENT
                raise
            try:
                if isinstance(data, Outgoing):
                    pass  # it shares the connection with others, who need the lock
                elif not small:
                    send_buffers(self.sock, [data, *buffers_of(message.body)], deadline)
                elif deadline is None:
                    self.sock.sendall(data)
                else:
                    send_by(self.sock, data, deadline)
            except BaseException as error:
                raise self._spoiled(message.seq, error) from error
        if not small and isinstance(data, Outgoing):
            assert large is not None, "it took the request over"
            large.send(data, waiter, deadline)

    def _post_plain(self, waiter: Waiter, calls: PlainCalls, body: bytes) -> int | None:
        """`_post` a plain call, in fewer steps; its number. None: not yet, the first message has more to say."""
        session, data = self.session, b""
        with self.sending:
            self._check_line()
            if not session.settled:
                return None
            try:
                seq = session.number(waiter, calls.serializer)
                data = calls.request(seq, body)
                self.sock.sendall(data)
            except BaseException as error:
                if data:
                    raise self._spoiled(session.seq, error) from error
                if session.pending.get(session.seq) is waiter:
                    session.drop(session.seq)
                if isinstance(error, CommunicationError):
                    error.outcome = Outcome.NOT_SENT
                raise
        return seq

    def _check_line(self) -> None:
        """See that the connection is still there, before a request leaves.

        Raises:
            ConnectionClosedError: it is not (outcome NotSent).
        """
        if self._duty.reader is None and self._poll.poll(0):
            self._look()
        if self.closed or self.session.going_away:
            raise ConnectionClosedError("the connection was lost between calls", outcome=Outcome.NOT_SENT)

    def _spoiled(self, seq: int, error: BaseException) -> BaseException:
        """Half a request spoils the stream, whatever stopped it: the connection is closed. What to raise for it."""
        if isinstance(error, BlockingIOError):
            error = silent(self.location, self._heartbeat_s)
        self.session.pending.pop(seq, None)
        self._fail(ConnectionClosedError("the connection broke while a request was leaving"))
        return as_ours(error, "call", Outcome.NOT_SENT)

    def _head(self, message: Message) -> bytes | Outgoing:
        if self._large is not None and len(message.body) > MAX_PIECE:
            return self._large.leave(message)
        return self._codec.encode_head(message, len(message.body))

    def _look(self) -> None:
        """Something came while nobody was reading: the answer to an abandoned call, a goodbye, or the end."""
        reader = Waiter()
        try:
            if not self.closed and self._duty.take(reader):
                while not self.closed and self._poll.poll(0):
                    self._intake.receive()
        except (PyroError, OSError) as error:
            self._fail(error)
        finally:
            self._duty.settle(reader)

    # --- waiting -----------------------------------------------------------------------------------------------

    def _await(self, waiter: Waiter, seq: int, deadline: float | None) -> Message:
        try:
            try:
                while waiter.reply is None and waiter.error is None:
                    if self._duty.take(waiter):
                        self._read_for_all(waiter, deadline)
                    else:
                        self._duty.follow(waiter, deadline)
            finally:
                self._duty.settle(waiter)
        except BaseException as error:
            self._stop_waiting(waiter, seq, error)
        if waiter.reply is None:
            raise waiter.error or ConnectionClosedError("the connection was lost", outcome=Outcome.UNKNOWN)
        return waiter.reply

    def _await_plain(self, waiter: Waiter, calls: PlainCalls, seq: int) -> bytes | Message:
        """`_await`, in fewer steps as long as nobody else reads and just the plain answer comes: then its body."""
        body = None
        try:
            try:
                if self._duty.take(waiter):
                    body = self._intake.receive_plain(calls, seq, self.session.drop)
            finally:
                self._duty.settle(waiter)
        except BlockingIOError:
            pass  # a long silence, of which `_await` makes something
        except BaseException as error:
            self._stop_waiting(waiter, seq, error)
        if body is None:
            return self._await(waiter, seq, None)
        if self.session.going_away and not self.session.pending:
            self.close()
        return body

    def _stop_waiting(self, waiter: Waiter, seq: int, error: BaseException) -> None:
        """What becomes of a call whose wait ended with this error, which is raised unless the answer is there."""
        if isinstance(error, PyroError | OSError):
            if not isinstance(error, builtins.TimeoutError):
                self._fail(error)
            elif waiter.reply is None and waiter.error is None:
                self.give_up(waiter, seq)
                text = f"the call took too long ({Outcome.UNKNOWN.value})"
                raise TimeoutError(text, outcome=Outcome.UNKNOWN) from None
        else:
            self._duty.settle(waiter)  # the interrupt may have come before it was done above
            self.give_up(waiter, seq)
            raise error

    def listen(self, listener: Waiter, deadline: float | None) -> None:
        """Wait until something has come for who is among the `readers`.

        Args:
            deadline: on the monotonic clock.

        Raises:
            TimeoutError: nothing came in time.
            ConnectionClosedError: the connection is gone.
        """
        try:
            try:
                while not listener.settled:
                    if self._duty.take(listener):
                        self._read_for_all(listener, deadline)
                    else:
                        self._duty.follow(listener, deadline)
            finally:
                self._duty.settle(listener)
        except (PyroError, OSError) as error:
            if not isinstance(error, builtins.TimeoutError):
                self._fail(error)
            elif not listener.settled:
                raise TimeoutError("the next item took too long", outcome=Outcome.UNKNOWN) from None
        except BaseException:
            self._duty.settle(listener)  # the interrupt may have come before it was done above
            raise
        if listener.reply is None:
            raise listener.error or ConnectionClosedError("the connection was lost", outcome=Outcome.UNKNOWN)

    def _read_for_all(self, waiter: Waiter, deadline: float | None) -> None:
        while waiter.reply is None and waiter.error is None:
            if deadline is not None:
                self._wait_readable(deadline)
            try:
                self._intake.receive()
            except BlockingIOError:
                self._heard_nothing()

    def _wait_readable(self, deadline: float) -> None:
        step = self._heartbeat_s
        while step and time.monotonic() + step < deadline:
            try:
                self._wait_for_bytes(time.monotonic() + step)
                return
            except builtins.TimeoutError:
                self._heard_nothing()
        self._wait_for_bytes(deadline)

    def give_up(self, waiter: Waiter, seq: int) -> None:
        """Leave a call that was sent without its answer."""
        waiter.abandoned = True
        if waiter.reply is not None or self.closed:
            return
        if not self.grant.bits & Feature.CANCEL or not self._send_cancel(seq):
            self._fail(ConnectionClosedError("a call on this connection was given up"))

    def _send_cancel(self, seq: int) -> bool:
        data = self._encode(self.session.cancel(seq), hmac_key=self._hmac_key)
        until = time.monotonic() + CANCEL_GRACE_S
        while self.sending.locked():  # acquire() with a time limit would lose the lock to a second interrupt
            if time.monotonic() > until:
                return False
            time.sleep(CANCEL_CHECK_S)
        with self.sending:
            try:
                return self.sock.send(data, socket.MSG_DONTWAIT) == len(data)
            except OSError:
                return False

    # --- reading, by one thread at a time ------------------------------------------------------------------------

    def _receive_one(self, deadline: float) -> Message:
        """The answer to the handshake, which nothing can follow; whole by ``deadline``, however it drips in."""
        answer = self._intake.receive_one(lambda: self._wait_for_bytes(deadline))
        if answer is None:
            self.ended = True
            self._decoder.eof()
            raise ConnectionClosedError("the peer closed the connection")
        return answer

    def _take(self, message: Message) -> None:
        session = self.session
        try:
            waiter = session.receive(message)
        except SerializeError:
            session.pending[message.seq].answered = True
            raise
        except KeyError:  # another thread ended the session at this very moment
            raise ConnectionClosedError("the connection was closed") from None
        if waiter is None:
            self._take_other(message)
        elif not waiter.abandoned:
            waiter.reply = message
            if waiter.wake is not None:
                self._duty.rouse(waiter)
        if session.going_away and not session.pending:
            self.close()

    def _take_other(self, message: Message) -> None:
        self._unanswered = 0
        if self._large is not None and message.type in IN_PIECES:
            whole = self._large.take(message)
            if whole is not None:
                self._take(whole)
        elif message.type == MessageType.ITEMS:
            listener = self.readers.take(message)
            if listener is not None:
                listener.reply = message
                self._duty.rouse(listener)
        elif message.type in (MessageType.CREDIT, MessageType.STOP):
            end = self.uploads.take(message, self.serializer("msgpack"))
            if end is not None:
                self.send_aside(end)
        elif message.type == MessageType.HEARTBEAT:
            self.send_aside(alive())
        elif message.type in (MessageType.INVOKE, MessageType.CANCEL):
            if self._background is None:
                raise ProtocolError("the daemon calls an object here, where none was offered")
            self._background.put(message)

    def _heard_nothing(self) -> None:
        """The time for a sign of life is over: ask, or give the peer up after a few questions.

        Raises:
            ConnectionClosedError: it is given up.
        """
        if not self.session.pending and not self.readers.waiting:
            return
        if self._unanswered >= QUESTIONS:
            raise silent(self.location, self._heartbeat_s)
        self._unanswered += 1
        self.send_aside(heartbeat())

    def send_signal(self, message: Message) -> None:
        """Send a small message of our own that must not be left out.

        Raises:
            ConnectionClosedError: the connection is gone.
        """
        try:
            with self.sending:
                if len(message.body) <= JOIN_BELOW:
                    self.sock.sendall(self._encode(message, hmac_key=self._hmac_key))
                else:
                    head = self._codec.encode_head(message, len(message.body))
                    send_buffers(self.sock, [head, *buffers_of(message.body)], None)
        except BaseException as error:
            self._fail(ConnectionClosedError("the connection broke while a message was leaving"))
            raise as_ours(error, "message", Outcome.UNKNOWN) from error

    def send_aside(self, message: Message) -> None:
        """Send a small message of our own, unless a thread is sending a request: then there is no need to."""
        if self.sending.locked():
            return
        data = self._encode(message, hmac_key=self._hmac_key)
        with self.sending:
            try:
                sent = self.sock.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return  # it takes nothing at all at the moment
        if sent != len(data):
            raise ConnectionClosedError(f"{self.location} takes nothing any more")

    # --- being called back ------------------------------------------------------------------------------------------

    @property
    def codec(self) -> Codec:
        """The protocol spoken."""
        return self._codec

    @property
    def is_local(self) -> bool:
        """Whether the peer is on this machine."""
        return is_local(self.sock)  # type: ignore[arg-type]  # it looks at addresses, which any kind has

    def offer_served(self, value: object) -> ProxyState | None:
        """What stands for an object of a daemon of this process, which may be called over this connection now."""
        state = served_as(value)
        if state is not None:
            daemon = value._pyroDaemon  # type: ignore[attr-defined]  # of our own making: `served_as` asked it
            with self._offering:
                home = None if daemon.is_guarded else daemon.home
                if home is not None and (self._background is None or self._background.callee.over):
                    self._background = BackgroundLink(self, daemon, home)
                    self._send_now(self.session.serves(daemon.published_location))
                    home.run_sync_soon(daemon.begin_answering, self._background.callee)
                if self._background is not None and self._background.callee.daemon is daemon:
                    self._background.callee.offer(value._pyroId)  # type: ignore[attr-defined]
        return state

    def read_for_others(self) -> None:
        """Read as long as the connection lives; for a thread of its own."""
        reader = Waiter()
        try:
            while not self.closed:
                if self._duty.take(reader):
                    self._read_for_all(reader, None)
                else:
                    self._duty.follow(reader, None)
        except (PyroError, OSError) as error:
            self._fail(error)
        finally:
            self._duty.settle(reader)
            if self._background is not None:
                self._background.end()

    def _send_now(self, message: Message) -> None:
        self.send_buffers([self._encode(message, hmac_key=self._hmac_key)])

    def send_buffers(self, buffers: list[Body]) -> None:
        """Send encoded messages, from any thread.

        Raises:
            ConnectionClosedError: the connection is lost.
        """
        with self.sending:
            try:
                send_buffers(self.sock, buffers, None)
            except BaseException as error:
                self._fail(ConnectionClosedError("the connection broke while an answer was leaving"))
                raise as_ours(error, "answer") from error

    # --- the end -------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """The connection is finished: every waiting call gets to know, with what is certain about it."""
        self._close_socket()
        session = self.session
        unread = [session.pending.get(seq) for seq in session.unread]
        for waiter in (*session.drop_pending(), *self.readers.waiting.values()):
            outcome = Outcome.EXECUTED if waiter.answered else Outcome.UNKNOWN
            waiter.error = copy_for(error, Outcome.NOT_SENT if waiter in unread else outcome)
        self._duty.rouse_all()

    def fail(self, error: BaseException) -> None:
        """Close. Calls in flight in other threads end with this error."""
        self._fail(error)

    def close(self) -> None:
        """Close. Calls in flight in other threads end with a ConnectionClosedError."""
        self._fail(ConnectionClosedError("the proxy was closed"))

    def _close_socket(self) -> None:
        self.closed = True
        if self.lent:
            return
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def forsake(self) -> None:
        """Give the connection to the parent after a fork: two processes cannot share it."""
        self.closed = self.forsaken = True
        if not self.lent:
            self.sock.close()


_links: weakref.WeakSet[BlockingLink] = weakref.WeakSet()


def _forsake_all() -> None:
    for link in list(_links):
        link.forsake()


os.register_at_fork(after_in_child=_forsake_all)
