"""Sending large bodies in pieces, in turns with everything else on a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from ..wire.pieces import MAX_BODIES, Outgoing
from .connection import Connection

PER_TURN: Final = 4
"""Pieces in a row that need no wait before other tasks get a turn."""


def _never() -> bool:
    return False


class TurnSender:
    """Hands the pieces of large bodies to a connection, one after another.

    Each sender waits until everything that was queued before has left, so the tasks that send on one connection take
    turns by themselves, and a small message waits for one piece of each large one at most.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._free = list(range(MAX_BODIES))
        self._room = trio.Semaphore(MAX_BODIES)

    async def send(self, outgoing: Outgoing, unwanted: Callable[[], bool] = _never) -> None:
        """Send a whole message.

        Args:
            unwanted: asked before each piece; when it says so the peer is told that the rest will not come.

        Raises:
            ConnectionClosedError: the peer is gone.

        When cancelled, the rest is not sent, and the peer is told so with the next flush.
        """
        async with self._room:
            number = self._free.pop()
            try:
                await self._send_as(number, outgoing, unwanted)
            finally:
                self._free.append(number)

    async def _send_as(self, number: int, outgoing: Outgoing, unwanted: Callable[[], bool]) -> None:
        connection = self._connection
        if unwanted():
            return
        connection.queue_encoded(outgoing.begin(number))
        in_a_row = 0
        try:
            while not outgoing.complete and not unwanted():
                end = connection.queue_encoded(*outgoing.next())
                if outgoing.complete:
                    outgoing.end = end
                in_a_row += 1
                if not connection.flush_nowait():
                    in_a_row = 0
                    await connection.flush()
                elif in_a_row >= PER_TURN:
                    in_a_row = 0
                    await trio.lowlevel.checkpoint()
        finally:
            if not outgoing.complete and not connection.broken:
                connection.queue_encoded(outgoing.drop())
