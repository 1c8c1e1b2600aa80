"""The commonest turn of a connection in one step: a usual request has come, is answered at once, and nothing follows.

The leader tries this before `take_turn`, whose coroutines cost 4 % of a small call (both ends counted).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..transport.connection import Event
from ..wire.message import Message, MessageType
from .execute import SLOW_BYTES
from .small import Unusual, Waiting, run_small

if TYPE_CHECKING:
    from .crew import Worker
    from .peer import Peer

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
    """Take a usual request, and answer it; and the next ones, as long as the poller goes on with them.

    None: the turn is over, and the worker has given the reading back. Whatever goes wrong is for `take_turn` to say.
    """
    connection, poller = peer.connection, peer.poller
    if peer.ended or peer.finishing or peer.kept is not None or peer.loan is not None or connection.decoder.data:
        return UNTOUCHED
    if not (peer.takes_small and peer.session.settled):
        return UNTOUCHED
    try:
        while True:
            message = poller.receive(peer)
            if message is not None:
                if type(message) is not Message or message.type != _INVOKE or len(message.body) > SLOW_BYTES:
                    return Begun(message)
                peer.session.last_seq = message.seq
                arrived = run_small(peer, worker, message)
                if arrived is not None:
                    return Begun(message, arrived)
                if connection.decoder.data or not connection.flush_nowait():
                    return UNTOUCHED
            if peer.finishing or connection.ended or connection.broken or connection.pending:
                return UNTOUCHED
            if message is None or not poller.goes_on(peer, peer.crew.is_alone):
                break
        worker.reads = None
        poller.listen(peer)
    except BaseException as error:
        return Begun(error=error)
    return None
