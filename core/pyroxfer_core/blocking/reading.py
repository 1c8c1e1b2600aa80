"""Waiting for what comes on a connection that any number of threads use."""

from __future__ import annotations

import builtins
import select
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ..client.heartbeat import QUESTIONS, silent
from ..errors import CommunicationError, ConnectionClosedError, Outcome, PyroError, TimeoutError
from ..wire import Decoder
from ..wire.message import Message
from ..wire.plain import PlainCalls
from ..wire.session import heartbeat
from .connect import limit_silence, wait_for
from .duty import ReadingDuty
from .intake import Intake
from .tls import BlockingTls
from .waiting import Waiter, lost_between_calls

if TYPE_CHECKING:
    from .link import BlockingLink


class Poll(Protocol):
    """Tells whether something came on a connection."""

    def poll(self, milliseconds: int, /) -> object: ...


class Reading:
    """The reading half of a link: whichever thread finds nobody reading reads for all.

    Args:
        link: gets every message by its `take`, and the end of the connection by its `fail`.
    """

    def __init__(self, link: BlockingLink, decoder: Decoder) -> None:
        self._link = link
        self._session = link.session
        self._intake = Intake(link.sock, decoder, link.take, link.fail)
        self.ended = False
        """The peer closed the connection during the handshake."""
        self.duty = ReadingDuty()
        self.poll: Poll
        self._wait_for_bytes: Callable[[float | None], None]
        if isinstance(link.sock, BlockingTls):
            self.poll = link.sock
            self._wait_for_bytes = link.sock.wait_readable
        else:
            self._wait_for_bytes = partial(wait_for, link.sock, select.POLLIN)
            self.poll = select.poll()
            self.poll.register(link.sock, select.POLLIN)
        self._heartbeat_s = 0.0
        """How long a peer of ours may owe an answer before it is asked; 0: it is not asked."""
        self._unanswered = 0
        """Questions in a row to which nothing came."""

    def over(self) -> None:
        """The connection was closed."""
        self._intake.over()

    # --- waiting for an answer ---------------------------------------------------------------------------------

    def wait(self, waiter: Waiter, seq: int, deadline: float | None) -> Message:
        """Wait for the answer to a call that was sent.

        Args:
            deadline: on the monotonic clock.

        Raises:
            CommunicationError: with its outcome.
        """
        try:
            self._until_settled(waiter, deadline)
        except BaseException as error:
            self._stop_waiting(waiter, seq, error)
        if waiter.reply is None:
            raise waiter.error or ConnectionClosedError("the connection was lost", outcome=Outcome.UNKNOWN)
        return waiter.reply

    def wait_plain(self, waiter: Waiter, calls: PlainCalls, seq: int) -> bytes | Message:
        """`wait`, in fewer steps as long as nobody else reads and just the plain answer comes: then its body."""
        body = None
        try:
            try:
                if self.duty.take(waiter):
                    body = self._intake.receive_plain(calls, seq, self._session.drop)
            finally:
                self._settle(waiter)
        except BlockingIOError:
            pass  # a long silence, of which `wait` makes something
        except BaseException as error:
            self._stop_waiting(waiter, seq, error)
        if body is None:
            return self.wait(waiter, seq, None)
        if self._session.going_away and not self._session.pending:
            self._link.close()
        return body

    def _settle(self, waiter: Waiter) -> None:
        """End a wait, however it ends. Twice is fine."""
        self.duty.settle(waiter)
        if self._link.closed:
            self._link.let_go()

    def _stop_waiting(self, waiter: Waiter, seq: int, error: BaseException) -> None:
        """What becomes of a call whose wait ended with this error, which is raised unless the answer is there."""
        if isinstance(error, PyroError | OSError):
            if not isinstance(error, builtins.TimeoutError):
                self._link.fail(error)
            elif not waiter.settled:
                self._link.give_up(waiter, seq)
                text = f"the call took too long ({Outcome.UNKNOWN.value})"
                raise TimeoutError(text, outcome=Outcome.UNKNOWN) from None
        else:
            self._settle(waiter)  # the interrupt may have come before it was done above
            self._link.give_up(waiter, seq)
            raise error

    def listen(self, listener: Waiter, deadline: float | None) -> None:
        """Wait until something has come for who is among the `BlockingLink.readers`.

        Args:
            deadline: on the monotonic clock.

        Raises:
            TimeoutError: nothing came in time.
            ConnectionClosedError: the connection is gone.
        """
        try:
            self._until_settled(listener, deadline)
        except (PyroError, OSError) as error:
            if not isinstance(error, builtins.TimeoutError):
                self._link.fail(error)
            elif not listener.settled:
                raise TimeoutError("the next item took too long", outcome=Outcome.UNKNOWN) from None
        except BaseException:
            self._settle(listener)  # the interrupt may have come before it was done above
            raise
        if listener.reply is None:
            raise listener.error or ConnectionClosedError("the connection was lost", outcome=Outcome.UNKNOWN)

    def _until_settled(self, waiter: Waiter, deadline: float | None) -> None:
        try:
            while waiter.reply is None and waiter.error is None:
                if self.duty.take(waiter):
                    self._read_for_all(waiter, deadline)
                else:
                    self.duty.follow(waiter, deadline)
        finally:
            self._settle(waiter)

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

    # --- reading while nobody waits ----------------------------------------------------------------------------

    def receive_one(self, deadline: float) -> Message:
        """The answer to the handshake, which nothing can follow; whole by ``deadline``, however it drips in.

        Raises:
            builtins.TimeoutError: it did not come in time.
            ConnectionClosedError: the peer closed the connection; `ended` says so, too.
            ProtocolError: it did so in the middle of a message, or what came is not the protocol.
            OSError: the connection is lost.
        """
        answer = self._intake.receive_one(lambda: self._wait_for_bytes(deadline))
        if answer is None:
            self.ended = True
            self._intake.decoder.eof()
            raise ConnectionClosedError("the peer closed the connection")
        return answer

    def check_line(self) -> None:
        """See that the connection is still there, before a request leaves.

        Raises:
            ConnectionClosedError: it is not (outcome NotSent).
        """
        if self.duty.reader is None and self.poll.poll(0):
            self.look()
        if self._link.closed or self._session.going_away:
            raise lost_between_calls()

    def look(self) -> None:
        """Take what came while nobody was reading: the answer to an abandoned call, a goodbye, or the end."""
        reader = Waiter()
        try:
            if not self._link.closed and self.duty.take(reader):
                while not self._link.closed and self.poll.poll(0):
                    self._intake.receive()
        except (PyroError, OSError) as error:
            self._link.fail(error)
        finally:
            self._settle(reader)

    def read_on(self) -> None:
        """Read as long as the connection lives; for a thread of its own."""
        reader = Waiter()
        try:
            while not self._link.closed:
                if self.duty.take(reader):
                    self._read_for_all(reader, None)
                else:
                    self.duty.follow(reader, None)
        except (PyroError, OSError) as error:
            self._link.fail(error)
        finally:
            self._settle(reader)

    # --- a peer that says nothing ------------------------------------------------------------------------------

    def watch(self, heartbeat_s: float) -> None:
        """Ask a peer that owes an answer for a sign of life, as often as this."""
        self._heartbeat_s = heartbeat_s
        limits = heartbeat_s, heartbeat_s * (QUESTIONS + 1)
        sock = self._link.sock
        if isinstance(sock, BlockingTls):
            sock.limit_silence(*limits)
        else:
            limit_silence(sock, *limits)

    def heard(self) -> None:
        """The peer gave a sign of life."""
        self._unanswered = 0

    def silence(self) -> CommunicationError:
        """The error of who waited for the peer as long as one may."""
        return silent(self._link.location, self._heartbeat_s)

    def _heard_nothing(self) -> None:
        """The time for a sign of life is over: ask, or give the peer up after a few questions.

        Raises:
            ConnectionClosedError: it is given up.
        """
        self._link.sending.tidy()
        if not self._session.pending and not self._link.readers.waiting:
            return
        if self._unanswered >= QUESTIONS:
            raise self.silence()
        self._unanswered += 1
        self._link.sending.aside(heartbeat())
