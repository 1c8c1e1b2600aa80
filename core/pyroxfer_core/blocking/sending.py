"""Sending on a connection that any number of threads use."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..errors import CommunicationError, ConnectionClosedError, Outcome, ProtocolError, PyroError
from ..wire.message import Body, Message, MessageType
from ..wire.pieces import MAX_PIECE, Outgoing
from ..wire.plain import PlainCalls
from ..wire.scattered import JOIN_BELOW, buffers_of
from .connect import send_buffers, send_by
from .waiting import Waiter, as_ours, lost_between_calls

if TYPE_CHECKING:
    from .link import BlockingLink

CANCEL_CHECK_S: Final = 0.001
CANCEL_GRACE_S: Final = 1.0
"""How long giving up a call may take: another thread may be sending at that moment."""
MOST_ASIDE: Final = 1_000
"""Messages that wait for a thread that sends. A peer that makes us say more, and takes nothing, is given up."""


class Sending:
    """The sending half of a link: one message at a time, except for large requests, which leave in pieces."""

    def __init__(self, link: BlockingLink, hmac_key: bytes | None) -> None:
        self._link = link
        self._sock = link.sock
        self._session = link.session
        self._reading = link.reading
        self._codec = link.codec
        self._encode = link.codec.encode
        self._hmac_key = hmac_key
        self.lock = threading.Lock()
        """Held by the thread that sends."""
        self._asides: deque[Message] = deque()
        """What is to leave when no thread sends."""

    # --- requests ----------------------------------------------------------------------------------------------

    def greet(self, message: Message, until: float) -> None:
        """Send a message of the handshake. Errors as `send_by`."""
        send_by(self._sock, self._encode(message, hmac_key=self._hmac_key), until)

    def post(self, waiter: Waiter | None, message: Message, deadline: float | None) -> None:
        """Send a call.

        Args:
            waiter: gets its answer; None when there is none.
            deadline: on the monotonic clock.

        Raises:
            CommunicationError: it was not sent (outcome NotSent).
        """
        large = self._link.large
        if large is not None and large.active:
            large.announce(message)
        try:
            outgoing = self._post(waiter, message, deadline)
        finally:
            self.tidy()
        if outgoing is not None:
            self._link.in_pieces().send(outgoing, waiter, deadline)

    def _post(self, waiter: Waiter | None, message: Message, deadline: float | None) -> Outgoing | None:
        """Send a call; one that shares the connection with others, who need the lock, is to be sent then."""
        large = self._link.large
        with self.lock:
            if large is not None and large.active:
                large.arrived(message)
            self._reading.check_line()
            numbered = False
            try:
                self._session.invoke(waiter, message)
                numbered = True
                small = len(message.body) <= JOIN_BELOW or self._hmac_key is not None
                data = self._encode(message, hmac_key=self._hmac_key) if small else self._head(message)
            except BaseException as error:
                if numbered or (waiter is not None and self._session.pending.get(message.seq) is waiter):
                    self._session.forget(message)
                self._refuse(error)
                raise
            try:
                if isinstance(data, Outgoing):
                    return data
                if not small:
                    send_buffers(self._sock, [data, *buffers_of(message.body)], deadline)
                elif deadline is None:
                    self._sock.sendall(data)
                else:
                    send_by(self._sock, data, deadline)
            except BaseException as error:
                raise self._spoiled(message.seq, error) from error
        return None

    def post_plain(self, waiter: Waiter, calls: PlainCalls, body: bytes) -> int | None:
        """`post` a plain call, in fewer steps.

        Returns:
            Its number; None if it was not sent: the first message has more to say.
        """
        session, data = self._session, b""
        try:
            with self.lock:
                self._reading.check_line()
                if not session.settled:
                    return None
                try:
                    seq = session.number(waiter, calls.serializer)
                    data = calls.request(seq, body)
                    self._sock.sendall(data)
                except BaseException as error:
                    if data:
                        raise self._spoiled(session.seq, error) from error
                    if session.pending.get(session.seq) is waiter:
                        session.drop(session.seq)
                    self._refuse(error)
                    raise
        finally:
            self.tidy()
        return seq

    def tidy(self) -> None:
        """This thread does not send any more: what was put aside leaves, and a connection that is over is let go."""
        if self._asides:
            self._send_asides()
        if self._link.closed:
            self._link.let_go()

    def _refuse(self, error: BaseException) -> None:
        """A request could not be numbered or written: nothing of it has left."""
        if isinstance(error, ProtocolError) and self._link.closed:  # by another thread, just now
            raise lost_between_calls() from error
        if isinstance(error, CommunicationError):
            error.outcome = Outcome.NOT_SENT

    def _spoiled(self, seq: int, error: BaseException) -> BaseException:
        """Half a request spoils the stream, whatever stopped it: the connection is closed. What to raise for it."""
        if isinstance(error, BlockingIOError):
            error = self._reading.silence()
        self._session.pending.pop(seq, None)
        self._link.fail(ConnectionClosedError("the connection broke while a request was leaving"))
        return as_ours(error, "call", Outcome.NOT_SENT)

    def _head(self, message: Message) -> bytes | Outgoing:
        if self._link.takes_pieces and len(message.body) > MAX_PIECE:
            return self._link.in_pieces().leave(message)
        return self._codec.encode_head(message, len(message.body))

    def cancel(self, seq: int) -> bool:
        """Tell the peer to stop a call; whether that was possible within `CANCEL_GRACE_S`."""
        data = self._encode(self._session.cancel(seq), hmac_key=self._hmac_key)
        until = time.monotonic() + CANCEL_GRACE_S
        held: list[bool] = []
        try:
            while not self._try_to_hold(held):
                if time.monotonic() > until:
                    return False
                time.sleep(CANCEL_CHECK_S)
            return self._sock.send(data, socket.MSG_DONTWAIT) == len(data)
        except OSError:
            return False
        finally:
            if True in held:
                self.lock.release()
                self.tidy()

    def while_free(self, act: Callable[[], bool]) -> bool:
        """Do something while nobody sends, and give what it says; False when somebody does, and it is not done."""
        held: list[bool] = []
        try:
            return self._try_to_hold(held) and act()
        finally:
            if True in held:
                self.lock.release()

    def _try_to_hold(self, held: list[bool]) -> bool:
        """Take the lock, unless another thread has it; ``held`` knows of it, wherever an interrupt comes."""
        held.extend(map(self.lock.acquire, (False,)))  # a step that no interrupt divides
        return held[-1]

    # --- messages of other kinds -------------------------------------------------------------------------------

    def signal(self, message: Message) -> None:
        """Send a small message of our own that must not be left out.

        Raises:
            ConnectionClosedError: the connection is gone.
        """
        try:
            with self.lock:
                if len(message.body) <= JOIN_BELOW:
                    self._sock.sendall(self._encode(message, hmac_key=self._hmac_key))
                else:
                    head = self._codec.encode_head(message, len(message.body))
                    send_buffers(self._sock, [head, *buffers_of(message.body)], None)
        except BaseException as error:
            self._link.fail(ConnectionClosedError("the connection broke while a message was leaving"))
            raise as_ours(error, "message", Outcome.UNKNOWN) from error
        finally:
            self.tidy()

    def item(self, message: Message) -> None:
        """Send an item of a stream, in pieces when it is large. Errors as `signal`."""
        if self._link.takes_pieces and len(message.body) > MAX_PIECE:
            self._link.in_pieces().send(Outgoing(message, self._codec), None, None)
        else:
            self.signal(message)

    def aside(self, message: Message) -> None:
        """Send a small message of our own, or a one-way call; while a thread sends, it is left to that. Never waits.

        A finalizer, and the thread that reads for all, must not wait for one that waits for the peer. Nothing is
        raised: a connection that is lost, or whose peer takes nothing any more, is closed.
        """
        if len(self._asides) < MOST_ASIDE:
            self._asides.append(message)
        else:
            self._link.fail(self._takes_nothing())
        self.tidy()

    def _send_asides(self) -> None:
        while self._asides and self.while_free(self._send_one_aside):
            pass

    def _send_one_aside(self) -> bool:
        """Send the first of what was put aside. False: that is all for now."""
        if self._link.closed:
            self._asides.clear()
        if not self._asides:  # another thread has sent it just now
            return False
        message = self._asides[0]
        try:
            if message.type == MessageType.INVOKE:
                self._session.invoke(None, message)
            data = self._encode(message, hmac_key=self._hmac_key)
            if self._sock.send(data, socket.MSG_DONTWAIT) != len(data):
                raise self._takes_nothing()
        except BlockingIOError:  # it takes nothing at all at the moment: who sends next takes this along
            self._session.postpone(message)
            return False
        except (PyroError, OSError) as error:
            self._link.fail(error)
        self._asides.popleft()
        return True

    def _takes_nothing(self) -> ConnectionClosedError:
        return ConnectionClosedError(f"{self._link.location} takes nothing any more")

    def buffers(self, buffers: list[Body]) -> None:
        """Send encoded messages.

        Raises:
            ConnectionClosedError: the connection is lost.
        """
        self._send_one_after_another(lambda: buffers)

    def serves(self, location: str) -> None:
        """Tell the peer that objects at this location may be called on this connection. Errors as `buffers`."""
        self._send_one_after_another(
            # written as it leaves: it may confirm the features, which the first message must do
            lambda: [self._encode(self._session.serves(location), hmac_key=self._hmac_key)]
        )

    def _send_one_after_another(self, write: Callable[[], list[Body]]) -> None:
        try:
            with self.lock:
                buffers = write()
                try:
                    send_buffers(self._sock, buffers, None)
                except BaseException as error:
                    self._link.fail(ConnectionClosedError("the connection broke while an answer was leaving"))
                    raise as_ours(error, "answer") from error
        finally:
            self.tidy()
