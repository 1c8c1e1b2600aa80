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
from dataclasses import replace
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
from ..wire.scattered import JOIN_BELOW, buffers_of
from ..wire.session import IN_PIECES, ClientSession, alive, heartbeat
from .background import BackgroundLink
from .connect import BlockingSocket, limit_silence, send_buffers, send_by, time_left, wait_for
from .large import LargeMessages
from .tls import BlockingTls
from .waiting import Waiter, as_ours, copy_for, seconds_left

RECEIVE_BYTES: Final = 64 * 1024
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
        self._buffer = bytearray(RECEIVE_BYTES)
        """The first byte is 0 while no received bytes can be on their way from the socket to their waiter."""
        self._view = memoryview(self._buffer)
        self._lossy = int(isinstance(sock, BlockingTls))
        """Whether an interrupt can lose bytes in the middle of receiving."""
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
        self._guard = threading.Lock()
        """Guards who reads and who sleeps: `_reader`, `_followers` and every `Waiter.wake`."""
        self._reader: Waiter | None = None
        self._followers: dict[Waiter, None] = {}
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
            context = make_context(self.version, False)
            hello = make_serializer(settings.serializer or "serpent", context)
            args = self.session, hello, self.version, self.object_id, handshake, settings, options
            while True:
                self.sock.settimeout(time_left(until))
                self.sock.sendall(self._encode(connect_message(*args), hmac_key=self._hmac_key))
                answer = self._receive_one(until)
                self.session.receive(answer)
                if not self.session.is_challenged:
                    break
            welcome = read_welcome(answer, self.version, self.location, settings, context)
        except BaseException as error:
            self.close()
            raise as_ours(error, "handshake") from error
        self.metadata, self.response, self.welcome = welcome.metadata, welcome.response, answer
        self._context = make_context(self.version, Feature.TYPED in self.grant).granted(self.grant)
        if Feature.TYPED in self.grant:
            self.preferred = "msgpack"
        if Feature.REVERSE in self.grant:
            self._context = replace(self._context, autoproxy=self.offer_served)
        if Feature.PIECES in self.grant:
            self._large = LargeMessages(self, settings.max_message_bytes)
            self._decoder.place_of = self._large.place_of
        self.sock.settimeout(None)
        if settings.heartbeat_s and Feature.HEARTBEAT in self.grant:
            self._heartbeat_s = settings.heartbeat_s
            limits = self._heartbeat_s, self._heartbeat_s * (QUESTIONS + 1)
            if isinstance(self.sock, BlockingTls):
                self.sock.limit_silence(*limits)
            else:
                limit_silence(self.sock, *limits)

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
            return self._await(waiter, message, deadline)
        answer = self._in_turn(waiter, message, deadline)
        assert answer is not None, "of a call that is waited for"
        return answer

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
            self.give_up(waiter, message)
            if isinstance(error, TimeoutError):
                raise TimeoutError(
                    f"the call took too long ({Outcome.UNKNOWN.value})", outcome=error.outcome
                ) from None
            raise
        return self._await(waiter, message, deadline)

    def post(self, waiter: Waiter, message: Message, deadline: float | None) -> None:
        """Send a call; its answer is for `finish`. Errors as `call`."""
        self._post(waiter, message, deadline)

    def finish(self, waiter: Waiter, message: Message, deadline: float | None) -> Message:
        """Wait for the answer to a call that was sent by `post`. Errors as `call`."""
        return self._await(waiter, message, deadline)

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
        self._rouse(waiter)

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
                return None if waiter is None else self._await(waiter, message, deadline)
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
            if self._reader is None and self._poll.poll(0):
                self._look()
            if self.closed or self.session.going_away:
                raise ConnectionClosedError("the connection was lost between calls", outcome=Outcome.NOT_SENT)
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
            except BaseException as error:  # half a request spoils the stream, whatever stopped it
                if isinstance(error, BlockingIOError):
                    error = silent(self.location, self._heartbeat_s)
                self.session.pending.pop(message.seq, None)
                self._fail(ConnectionClosedError("the connection broke while a request was leaving"))
                raise as_ours(error, "call", Outcome.NOT_SENT) from error
        if not small and isinstance(data, Outgoing):
            assert large is not None, "it took the request over"
            large.send(data, waiter, deadline)

    def _head(self, message: Message) -> bytes | Outgoing:
        if self._large is not None and len(message.body) > MAX_PIECE:
            return self._large.leave(message)
        return self._codec.encode_head(message, len(message.body))

    def _look(self) -> None:
        """Something came while nobody was reading: the answer to an abandoned call, a goodbye, or the end."""
        reader = Waiter()
        try:
            if not self.closed and self._may_read(reader):
                while not self.closed and self._poll.poll(0):
                    self._receive_and_take()
        except (PyroError, OSError) as error:
            self._fail(error)
        finally:
            self._settle(reader)

    # --- waiting -----------------------------------------------------------------------------------------------

    def _await(self, waiter: Waiter, message: Message, deadline: float | None) -> Message:
        try:
            try:
                while waiter.reply is None and waiter.error is None:
                    with self._guard:  # as in `_may_read`, which would cost every call another step
                        if self._reader is None:
                            self._reader = waiter
                    if self._reader is waiter:
                        self._read_for_all(waiter, deadline)
                    else:
                        self._follow(waiter, deadline)
            finally:
                self._settle(waiter)
        except (PyroError, OSError) as error:
            if not isinstance(error, builtins.TimeoutError):
                self._fail(error)
            elif waiter.reply is None and waiter.error is None:
                self.give_up(waiter, message)
                text = f"the call took too long ({Outcome.UNKNOWN.value})"
                raise TimeoutError(text, outcome=Outcome.UNKNOWN) from None
        except BaseException:
            self._settle(waiter)  # the interrupt may have come before it was done above
            self.give_up(waiter, message)
            raise
        if waiter.reply is None:
            raise waiter.error or ConnectionClosedError("the connection was lost", outcome=Outcome.UNKNOWN)
        return waiter.reply

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
                    if self._may_read(listener):
                        self._read_for_all(listener, deadline)
                    else:
                        self._follow(listener, deadline)
            finally:
                self._settle(listener)
        except (PyroError, OSError) as error:
            if not isinstance(error, builtins.TimeoutError):
                self._fail(error)
            elif not listener.settled:
                raise TimeoutError("the next item took too long", outcome=Outcome.UNKNOWN) from None
        except BaseException:
            self._settle(listener)  # the interrupt may have come before it was done above
            raise
        if listener.reply is None:
            raise listener.error or ConnectionClosedError("the connection was lost", outcome=Outcome.UNKNOWN)

    def _read_for_all(self, waiter: Waiter, deadline: float | None) -> None:
        while waiter.reply is None and waiter.error is None:
            if deadline is not None:
                self._wait_readable(deadline)
            try:
                self._receive_and_take()
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

    def _may_read(self, waiter: Waiter) -> bool:
        """Whether nobody else reads; the duty is taken then, and given back by `_settle`."""
        with self._guard:
            if self._reader is None:
                self._reader = waiter
            return self._reader is waiter

    def _settle(self, waiter: Waiter) -> None:
        """End a wait, however it ends: give back the duty of reading, and see that somebody takes it up.

        Twice is fine. An interrupt can come between any two steps, but not while a lock is taken by ``with``.
        """
        with self._guard:
            if self._reader is waiter:
                self._reader = None
            self._followers.pop(waiter, None)
            if self._reader is None and self._followers:
                self._wake(next(iter(self._followers)))

    def _follow(self, waiter: Waiter, deadline: float | None) -> None:
        """Sleep until the answer was read by another thread, or nobody reads any more."""
        wake = threading.Lock()
        wake.acquire()
        with self._guard:
            if waiter.reply is not None or waiter.error is not None or self._reader is None:
                return
            waiter.wake = wake
            self._followers[waiter] = None
        if not wake.acquire(timeout=seconds_left(deadline)):
            raise builtins.TimeoutError

    def _wake(self, waiter: Waiter) -> None:
        """Wake a thread that follows; the guard is held."""
        del self._followers[waiter]
        if waiter.wake is not None:
            waiter.wake.release()

    def _rouse(self, waiter: Waiter) -> None:
        """Wake the thread of this call if it sleeps."""
        with self._guard:
            if waiter in self._followers:
                self._wake(waiter)

    def give_up(self, waiter: Waiter, message: Message) -> None:
        """Leave a call that was sent without its answer."""
        waiter.abandoned = True
        if waiter.reply is not None or self.closed:
            return
        if not self.grant.bits & Feature.CANCEL or not self._send_cancel(message.seq):
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

    def _receive_and_take(self) -> None:
        """Wait for bytes, and give every answer among them to its waiter.

        An interrupt may come between any two steps. Until the first byte of the buffer says otherwise, nothing has
        been taken from the socket, and the connection can go on without the interrupted call.
        """
        decoder, buffer = self._decoder, self._buffer
        try:
            place = None if decoder.collected is None else decoder.wanted_buffer()
            if place is None:
                buffer[0] = 0
                count = self.sock.recv_into(buffer)
                event = decoder.take(self._view[:count].tobytes())
            else:
                count = self._receive_into(place)
                event = decoder.next_event()
            if not count:
                decoder.eof()
                raise ConnectionClosedError("the peer closed the connection")
            self._take_all(event)
        except BaseException as error:
            if buffer[0]:
                self._fail(error)
            raise

    def _receive_into(self, place: memoryview) -> int:
        """Take in a part of a large body. What came is kept although an interrupt comes right after it."""
        buffer, decoder = self._buffer, self._decoder
        buffer[0] = self._lossy
        counts: list[int] = []
        try:
            counts.extend(map(self.sock.recv_into, (place,)))  # a step that no interrupt divides
            buffer[0] = 1
        except BaseException:
            if counts:
                buffer[0] = 1
                decoder.received(counts[0])
                self._take_all(decoder.next_event())
            raise
        decoder.received(counts[0])
        return counts[0]

    def _take_all(self, event: object) -> None:
        """Give every answer that is complete to its waiter."""
        decoder = self._decoder
        while event is not None:
            assert type(event) is Message, "a client's decoder collects everything"
            self._take(event)
            event = decoder.next_event() if decoder.data else None
        self._buffer[0] = 0

    def _receive_one(self, deadline: float) -> Message:
        """The answer to the handshake, which nothing can follow; whole by ``deadline``, however it drips in."""
        decoder = self._decoder
        while (event := decoder.next_event()) is None:
            self._wait_for_bytes(deadline)
            data = self.sock.recv(RECEIVE_BYTES)
            decoder.feed(data)
            if not data:
                self.ended = True
                decoder.eof()
                raise ConnectionClosedError("the peer closed the connection")
        assert type(event) is Message, "a client's decoder collects everything"
        return event

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
                self._rouse(waiter)
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
                self._rouse(listener)
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
                if self._may_read(reader):
                    self._read_for_all(reader, None)
                else:
                    self._follow(reader, None)
        except (PyroError, OSError) as error:
            self._fail(error)
        finally:
            self._settle(reader)
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
        with self._guard:
            for follower in list(self._followers):
                self._wake(follower)

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
