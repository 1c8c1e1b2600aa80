"""A connected client for programs without a loop: the same session as everywhere, on a plain blocking socket.

Going through a loop in another thread would cost 42 to 150 µs a call, a blocking socket costs 10 to 20.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from ..client.calls import CallOptions
from ..client.handshake import connect_message, read_welcome
from ..errors import CommunicationError, ConnectionClosedError, Outcome, TimeoutError
from ..objects.expose import Metadata
from ..serializers.base import Serializer, SerializerContext
from ..serializers.factory import make_serializer
from ..settings import Settings
from ..transport.sockets import reason_of, set_keepalive
from ..uri import Uri
from ..wire import Decoder, codec_for
from ..wire.features import Feature, Grant
from ..wire.message import Message
from ..wire.session import ClientSession

RECEIVE_BYTES: Final = 64 * 1024
JOIN_BELOW: Final = 64 * 1024

ContextFactory = Callable[[int, bool], SerializerContext]


def connect(uri: Uri, timeout_s: float) -> socket.socket:
    """A connected blocking socket.

    Raises:
        ConnectionClosedError, TimeoutError: nobody there, or no answer in time (outcome NotSent).
    """
    try:
        if uri.sockname is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(timeout_s)
                sock.connect(uri.sockname)
            except BaseException:
                sock.close()
                raise
        else:
            sock = socket.create_connection((uri.host or "localhost", uri.port or 0), timeout_s)
            set_keepalive(sock)
    except builtins.TimeoutError as error:
        text = f"cannot connect to {uri.location}: no answer within {timeout_s:g} s"
        raise TimeoutError(text, outcome=Outcome.NOT_SENT) from error
    except (OSError, ValueError) as error:
        text = f"cannot connect to {uri.location}: {reason_of(error)}"
        raise ConnectionClosedError(text, outcome=Outcome.NOT_SENT) from error
    return sock


class BlockingLink:
    """One connection after its handshake, used by one thread at a time.

    Raises on making:
        CommunicationError: the daemon refused, or hung up.
        ProtocolError: the peer speaks another protocol, or none.
    """

    def __init__(
        self,
        sock: socket.socket,
        version: int,
        settings: Settings,
        make_context: ContextFactory,
        *,
        object_id: str,
        location: str,
        handshake: Any,
        first_seq: int = 0,
    ) -> None:
        self._sock = sock
        self._process = os.getpid()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._hmac_key = settings.hmac_key if version == 48 else None
        self._codec = codec_for(version)
        self._decoder = Decoder(
            self._codec,
            max_message=settings.max_message_bytes,
            max_annotations=settings.max_annotations,
            collect=settings.max_message_bytes,
            hmac_key=self._hmac_key,
        )
        self.version = version
        self.object_id = object_id
        self.location = location
        self.session: ClientSession[object] = ClientSession(first_seq, Feature.ALL if version == 502 else 0)
        self.lock = threading.Lock()
        self._serializers: dict[str, Serializer] = {}
        self.metadata: Metadata | None = None
        self.response: Any = None
        self.closed = False
        try:
            self._greet(settings, make_context, location, handshake)
        except BaseException:
            self.close()
            raise

    def _greet(self, settings: Settings, make_context: ContextFactory, location: str, handshake: Any) -> None:
        deadline = time.monotonic() + settings.connect_timeout_s
        self._context = make_context(self.version, False)
        hello = make_serializer(settings.serializer or "serpent", self._context)
        message = connect_message(
            self.session, hello, self.version, self.object_id, handshake, settings, CallOptions()
        )
        try:
            self._limit_waiting(deadline)
            self._send(message)
            answer = self._receive(deadline)
        except builtins.TimeoutError as error:
            text = f"cannot connect to {location}: no answer within {settings.connect_timeout_s:g} s"
            raise TimeoutError(text, outcome=Outcome.NOT_SENT) from error
        except OSError as error:
            text = f"connection to {location} lost during the handshake: {reason_of(error)}"
            raise ConnectionClosedError(text, outcome=Outcome.NOT_SENT) from error
        self.session.receive(answer)
        welcome = read_welcome(answer, self.version, location, settings, self._context)
        self.metadata, self.response = welcome.metadata, welcome.response
        self._context = make_context(self.version, Feature.TYPED in self.grant)
        self._sock.settimeout(None)

    @property
    def grant(self) -> Grant:
        """What was agreed with the peer."""
        return self.session.grant

    @property
    def own(self) -> bool:
        """Whether the peer keeps the types of all values."""
        return self.session.grant.bits & Feature.TYPED != 0

    def serializer(self, name: str) -> Serializer:
        """The serializer of that name for this peer."""
        serializer = self._serializers.get(name)
        if serializer is None:
            serializer = self._serializers[name] = make_serializer(name, self._context)
        return serializer

    def still_there(self) -> bool:
        """Whether the idle connection is open: a peer that has nothing to answer is silent unless it leaves."""
        return not self._poll.poll(0)

    @property
    def inherited(self) -> bool:
        """Whether another process made this connection, which goes on using it after a fork."""
        return self._process != os.getpid()

    def send_oneway(self, message: Message, timeout_s: float | None = None) -> None:
        """Send a call that has no answer. Errors have outcome NotSent; the connection is closed."""
        self.session.invoke(None, message)
        try:
            if timeout_s is not None:
                self._sock.settimeout(timeout_s)
            self._send(message)
            if timeout_s is not None:
                self._sock.settimeout(None)
        except BaseException as error:
            raise self._finished(error, Outcome.NOT_SENT) from _cause(error)

    def call(self, message: Message, timeout_s: float | None) -> Message:
        """Send a call and wait for its RESULT.

        Raises:
            CommunicationError: with its outcome; the connection is closed.
        """
        self.session.invoke(self, message)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        outcome = Outcome.NOT_SENT
        try:
            if deadline is not None:
                self._limit_waiting(deadline)
            self._send(message)
            outcome = Outcome.UNKNOWN
            answer = self._receive(deadline)
            while self.session.receive(answer) is None:
                answer = self._receive(deadline)
            if deadline is not None:
                self._sock.settimeout(None)
        except BaseException as error:
            raise self._finished(error, outcome) from _cause(error)
        return answer

    def _limit_waiting(self, deadline: float) -> None:
        self._sock.settimeout(max(deadline - time.monotonic(), 1e-6))

    def _finished(self, error: BaseException, outcome: Outcome) -> BaseException:
        """Whatever breaks a call, an interrupt included, finishes the connection. What to raise instead."""
        self.close()
        if isinstance(error, builtins.TimeoutError):
            return TimeoutError(f"the call took too long ({outcome.value})", outcome=outcome)
        if isinstance(error, OSError):
            return ConnectionClosedError(f"connection lost: {reason_of(error)}", outcome=outcome)
        if isinstance(error, CommunicationError) and error.outcome is None:
            error.outcome = outcome
        return error

    def _send(self, message: Message) -> None:
        body = message.body
        if len(body) <= JOIN_BELOW or self._hmac_key is not None:
            self._sock.sendall(self._codec.encode(message, hmac_key=self._hmac_key))
            return
        head = self._codec.encode_head(message, len(body))
        sent = self._sock.sendmsg([head, body])
        if sent < len(head):
            self._sock.sendall(head[sent:])
            sent = len(head)
        self._sock.sendall(memoryview(body)[sent - len(head) :])

    def _receive(self, deadline: float | None = None) -> Message:
        decoder, sock = self._decoder, self._sock
        event = decoder.next_event()
        while event is None:
            if deadline is not None:
                self._limit_waiting(deadline)
            place = decoder.wanted_buffer()
            if place is None:
                data = sock.recv(RECEIVE_BYTES)
                count = len(data)
                decoder.feed(data)
            else:
                count = sock.recv_into(place)
                decoder.received(count)
            if not count:
                decoder.eof()
                raise ConnectionClosedError("the peer closed the connection")
            event = decoder.next_event()
        assert type(event) is Message, "a client's decoder collects everything"
        return event

    def close(self) -> None:
        """Close; a thread waiting in this connection gets a ConnectionClosedError."""
        self.closed = True
        if not self.inherited:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def _cause(error: BaseException) -> BaseException | None:
    """What an error that `_finished` made is raised from; one that goes on as it is has no cause."""
    return error if isinstance(error, OSError) else None
