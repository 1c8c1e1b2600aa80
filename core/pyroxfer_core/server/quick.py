"""The commonest turn of a connection in one step: usual requests have come, and are answered at once.

The leader tries this before `take_turn`, whose coroutines cost 4 % of a small call (both ends counted).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from ..transport.connection import Event
from ..wire.message import Message, MessageType
from .execute import SLOW_BYTES
from .small import Unusual, Waiting, run_small

if TYPE_CHECKING:
    from .crew import Worker
    from .peer import Peer

TAKE_AT_ONCE: Final = 64
"""Requests that came together before other connections get their turn."""
ANSWERS_AT_ONCE: Final = 8 if len(os.sched_getaffinity(0)) > 1 else TAKE_AT_ONCE
"""Answers that leave together while more requests are worked on, so that who gets them goes on at the same time.

Otherwise two ends with many calls in flight wait for each other by turns: 64 at once were 1.6 to 1.9 times as many
calls on two cores. On one core that is nothing but more calls of the system, and cost 2 to 8 %.
"""
FLUSH_AT: Final = 64 * 1024
"""Bytes of answers that leave before more is taken, or others add theirs."""
_INVOKE: Final = MessageType.INVOKE


class Begun:
    """A turn that is not over, and goes on with `take_turn`.

    Args:
        message: what was received, and is not answered.
        arrived: what became of it so far, if it is a request.
        error: what the connection ends with.
    """

    __slots__ = ("_arrived", "_error", "_message")

    def __init__(
        self,
        message: Event | None = None,
        arrived: Unusual | Waiting | None = None,
        error: BaseException | None = None,
    ) -> None:
        self._message, self._arrived, self._error = message, arrived, error

    def take(self) -> tuple[Event | None, Unusual | Waiting | None]:
        """Hand message and what became of it over, once; or raise the error."""
        message, arrived, error = self._message, self._arrived, self._error
        self._message = self._arrived = self._error = None
        try:
            if error is not None:
                raise error
        finally:
            del error  # which knows this frame
        return message, arrived


UNTOUCHED: Final = Begun()
"""Nothing was taken, or what was taken is answered."""


def took_turn(peer: Peer, worker: Worker) -> Begun | None:
    """Take the usual requests that have come, and answer them; and the next, as long as the poller goes on with it.

    None: the turn is over, and the worker has given the reading back. Whatever goes wrong is for `take_turn` to say.
    """
    connection, session, poller = peer.connection, peer.session, peer.poller
    if peer.ended or peer.finishing or peer.kept is not None or peer.loan is not None:
        return UNTOUCHED
    if not (peer.takes_small and session.settled):
        return UNTOUCHED
    decoder = connection.decoder
    try:
        while True:
            taken = 0
            message = decoder.next_event() if decoder.data else None
            if message is None:
                message = poller.receive(peer)
            while message is not None:
                if type(message) is not Message or message.type != _INVOKE or len(message.body) > SLOW_BYTES:
                    return Begun(message)
                session.last_seq = message.seq
                arrived = run_small(peer, worker, message)
                if arrived is not None:
                    return Begun(message, arrived)
                taken += 1
                if not decoder.data:
                    break
                if peer.finishing or taken >= TAKE_AT_ONCE or connection.queued - connection.sent > FLUSH_AT:
                    break
                if not taken % ANSWERS_AT_ONCE and not connection.flush_nowait():
                    break
                message = decoder.next_event()
            if not connection.flush_nowait():
                return UNTOUCHED
            if peer.finishing or connection.ended or connection.broken or connection.pending:
                return UNTOUCHED
            if taken != 1 or not poller.goes_on(peer, peer.crew.is_alone):
                break
        worker.reads = None
        if message is not None and decoder.data:  # it comes back when everybody else had a turn
            poller.put_last(peer, taken)
        else:
            poller.listen(peer, max(taken, 1))  # what is not complete costs time, too
    except BaseException as error:
        return Begun(error=error)
    return None
