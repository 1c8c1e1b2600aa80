"""Room for the large answers of a connection: a client that asks for many and reads none must not fill the memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from ..errors import ConnectionClosedError
from ..transport.connection import Connection

ROOM: Final = 15 * 512 * 1024
"""Bytes that large answers to one client may hold; one alone may be larger. Less than what stops the reading, so that
small calls go on."""


class AnswerRoom:
    """What the large answers of a connection hold, from before they are made until they have left.

    Args:
        flush_soon: sees that what is queued leaves although nobody waits for it.
    """

    __slots__ = ("_connection", "_flush_soon", "_freed", "_next", "_taken")

    def __init__(self, connection: Connection, flush_soon: Callable[[], None]) -> None:
        self._connection = connection
        self._flush_soon = flush_soon
        self._taken = 0
        """Bytes of answers that are being made, or leave in pieces; of others the connection knows."""
        self._freed = trio.Event()
        self._next = trio.Lock()
        """Of whoever waits for room: the others wait behind it, in order."""

    @property
    def held(self) -> int:
        """Bytes that are taken, or wait to leave; a piece that is leaving counts as both."""
        return self._taken + self._connection.queued - self._connection.sent

    def take(self, size: int) -> None:
        """An answer holds so many bytes from now on."""
        self._taken += size

    def free(self, size: int) -> None:
        """The end of `take`: it has left, or the connection counts its bytes."""
        self._taken -= size
        self._freed.set()

    @asynccontextmanager
    async def making(self, size: int) -> AsyncIterator[None]:
        """See `CallContext.room_for`."""
        async with self._next:
            await self._wait_for(size)
            self.take(size)
        try:
            yield
        finally:
            self.free(size)

    async def _wait_for(self, size: int) -> None:
        while (held := self.held) and held + size > ROOM:
            if self._connection.broken:
                raise ConnectionClosedError(f"connection to {self._connection.peer} is broken")
            if self._taken:  # what is made now has to leave, too
                self._freed = trio.Event()
                await self._freed.wait()
            else:
                await self._flush()

    async def _flush(self) -> None:
        try:
            await self._connection.flush()
        except trio.Cancelled:
            if not self._connection.broken:  # others may count on who was sending
                self._flush_soon()
            raise
