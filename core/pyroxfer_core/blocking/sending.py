"""Sending on a connection that any number of threads use."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..errors import CommunicationError, ConnectionClosedError, Outcome, ProtocolError
from ..wire.message import Body, Message
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
            self.let_go_if_over()
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
            if self._link.closed:
                self._link.let_go()
        return seq

    def let_go_if_over(self) -> None:
        """This thread does not send any more; the connection may have been closed meanwhile."""
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
                self.let_go_if_over()

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
            self.let_go_if_over()

    def item(self, message: Message) -> None:
        """Send an item of a stream, in pieces when it is large. Errors as `signal`."""
        if self._link.takes_pieces and len(message.body) > MAX_PIECE:
            self._link.in_pieces().send(Outgoing(message, self._codec), None, None)
        else:
            self.signal(message)

    def aside(self, message: Message) -> None:
        """Send a small message of our own, unless a thread is sending a request: then there is no need to.

        Never waits: a finalizer, and the thread that reads for all, must not wait for one that waits for the peer.

        Raises:
            ConnectionClosedError: the peer takes nothing any more.
            OSError: the connection is lost.
        """
        data = self._encode(message, hmac_key=self._hmac_key)
        held: list[bool] = []
        try:
            if not self._try_to_hold(held):
                return
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return  # it takes nothing at all at the moment
        finally:
            if True in held:
                self.lock.release()
                self.let_go_if_over()
        if sent != len(data):
            raise ConnectionClosedError(f"{self._link.location} takes nothing any more")

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
            self.let_go_if_over()
