"""Large messages on a plain socket: requests that leave in pieces, answers that come in pieces."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..client.large import LargeAnswers
from ..errors import ConnectionClosedError, Outcome, TimeoutError
from ..wire import codec_for
from ..wire.message import Body, Message
from ..wire.pieces import MAX_BODIES, Outgoing
from .connect import send_counted
from .tls import BlockingTls
from .waiting import Waiter, as_ours

if TYPE_CHECKING:
    from .link import BlockingLink

CHECK_S: Final = 0.00002
"""How often a large request looks whether a small one has got its turn."""
MAX_COURTESY_S: Final = 0.005
"""How long it waits for that at most: the thread of the small one may have been interrupted."""
NUMBER_CHECK_S: Final = 0.001
GRACE_S: Final = 1.0
"""How long ending a piece that is leaving when the deadline passes may take, and telling the peer that the rest will
not come: half a piece would cost the connection, and with it the calls of others."""


class LargeMessages:
    """Both ways of one connection. A request is sent by the thread that waits for its answer.

    Before each piece it lets those go first who say that they want to send: a lock alone would be taken again by the
    thread that has just released it.
    """

    def __init__(self, link: BlockingLink, limit: int) -> None:
        self._link = link
        self._codec = codec_for(link.version)
        self._answers = LargeAnswers(limit, link.session.pending)
        self.place_of = self._answers.place_of
        self._free = list(range(MAX_BODIES))
        self._waiting: dict[object, None] = {}
        """Who wants to send beside the large requests."""
        self.active = 0
        """Large requests that are leaving."""

    def take(self, message: Message) -> Message | None:
        """See `LargeAnswers.take`."""
        return self._answers.take(message)

    def announce(self, message: Message) -> None:
        """Somebody is about to wait for the lock of sending."""
        self._waiting[id(message)] = None

    def arrived(self, message: Message) -> None:
        """It has got the lock."""
        self._waiting.pop(id(message), None)

    def leave(self, message: Message) -> Outgoing:
        """A request as one to be sent in pieces. Errors as `Codec.encode`."""
        self._link.session.postpone(message)
        return Outgoing(message, self._codec, self._link.session.confirm)

    def send(self, outgoing: Outgoing, waiter: Waiter | None, deadline: float | None) -> None:
        """Send a request in pieces; it ends early when its answer comes before.

        Raises:
            CommunicationError: with outcome NotSent; the connection is closed if the peer holds half of a piece,
                which a deadline or an interrupt leaves behind only when the peer takes nothing for a second more, or
                (an interrupt under TLS) when it is not known how much has left.
        """
        number: int | None = None
        self.active += 1
        try:
            number = self._take_number(deadline)
            self._send_as(number, outgoing, waiter, deadline)
        except BaseException as error:
            if not outgoing.begun:
                self._link.session.forget(outgoing.message)
            elif waiter is not None:
                waiter.abandoned = True
            raise as_ours(error, "call", Outcome.NOT_SENT) from error
        finally:
            self.active -= 1
            if number is not None:
                self._free.append(number)
            self._link.sending.tidy()

    def _take_number(self, deadline: float | None) -> int:
        """A number for a body, which no other incomplete one has."""
        while True:
            try:
                return self._free.pop()
            except IndexError:  # all are taken by large requests of other threads
                if self._link.closed:
                    raise ConnectionClosedError("the connection was lost") from None
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError("the call waited too long for its turn") from None
                time.sleep(NUMBER_CHECK_S)

    def _send_as(self, number: int, outgoing: Outgoing, waiter: Waiter | None, deadline: float | None) -> None:
        link, until = self._link, None if deadline is None else deadline + GRACE_S
        try:
            self._send_now(outgoing, lambda: [outgoing.begin(number)], until)
            while not outgoing.complete and not (waiter is not None and waiter.settled):
                link.sending.tidy()
                self._let_others_go_first(outgoing)
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError("the call took too long: its request could not leave in time")
                self._send_now(outgoing, outgoing.next, until)
        except BaseException:
            if outgoing.complete and waiter is not None:  # an interrupt, after the last byte
                link.give_up(waiter, outgoing.message.seq)
            raise
        finally:
            if outgoing.begun and not outgoing.complete and not link.closed:
                self._send_now(outgoing, lambda: [outgoing.drop()], time.monotonic() + GRACE_S)

    def _send_now(self, outgoing: Outgoing, make: Callable[[], list[Body]], deadline: float | None) -> None:
        link = self._link
        with link.sending.lock:
            self.arrived(outgoing.message)
            if link.closed:
                raise ConnectionClosedError("the connection was lost while a request was leaving")
            buffers: list[Body] = []
            sent: list[int] = []
            try:
                buffers = make()
                send_counted(link.sock, buffers, deadline, sent)
            except BaseException as error:  # half a piece spoils the stream, whatever stopped it
                if isinstance(error, OSError) or not self._send_rest(buffers, sent):
                    link.fail(ConnectionClosedError("the connection broke while a request was leaving"))
                raise

    def _send_rest(self, buffers: list[Body], sent: list[int]) -> bool:
        """After an interrupt: whether the piece has left whole after all. Under TLS it is not known what has left."""
        if not buffers or isinstance(self._link.sock, BlockingTls):
            return False
        try:
            send_counted(self._link.sock, buffers, time.monotonic() + GRACE_S, sent)
        except BaseException:  # one interrupt is being raised already
            return False
        return True

    def _let_others_go_first(self, outgoing: Outgoing) -> None:
        until = time.monotonic() + MAX_COURTESY_S
        waiting = self._waiting
        while waiting and time.monotonic() < until:
            time.sleep(CHECK_S)
        waiting.clear()
        if self.active > 1:
            self.announce(outgoing.message)
