"""Several block calls in flight at once: the credit window of the channels that move blocks in calls."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final

import trio

from ..offer import Ticket
from ..pace import Pace
from ..runs import Range, pieces
from ..source import Source
from ..tasks import open_flat_nursery
from .base import Acknowledged

CREDIT: Final = 10 * 256 * 1024
"""Bytes in flight at the beginning: enough for 1 Gbit/s over 20 ms."""
MOST_CREDIT: Final = 8 * 1024 * 1024
"""Bytes in flight at most, at each end: enough for 1 Gbit/s over 64 ms."""
UNHINDERED: Final = 1.5
"""A block that takes less than so many times the fastest one did not wait behind others: more may be in flight."""

SendBlock = Callable[[int, bytes], Awaitable[int]]
"""Sends the block at an offset and returns when the receiver has written it; the credit that the server gives now."""
FetchBlock = Callable[[int, int], Awaitable[int]]
"""Fetches the block at an offset, of a length, and returns when it is written; the credit as above."""


class Window:
    """How many bytes may be in flight. It grows as long as blocks come back as fast as alone, which is when the line
    is long and not full, up to what the server gives."""

    def __init__(self, block_size: int, credit: int, most: int = MOST_CREDIT) -> None:
        self._least = block_size
        self._most = most
        self._size = max(block_size, min(CREDIT, credit // 2, most))
        self._flying = 0
        self._fastest = float("inf")
        self._freed = trio.lowlevel.ParkingLot()

    @property
    def size(self) -> int:
        """Bytes that may be in flight now."""
        return self._size

    async def enter(self, count: int) -> float:
        """Wait until so many bytes may be sent; the time to hand to ``leave``."""
        while self._flying and self._flying + count > self._size:
            await self._freed.park()
        self._flying += count
        return trio.current_time()

    def leave(self, count: int, began: float, credit: int) -> None:
        """They have arrived, and the server gives this much credit from now on."""
        took = trio.current_time() - began
        self._fastest = min(self._fastest, took)
        if took < UNHINDERED * self._fastest:
            self._size += count
        self._size = max(min(self._size, credit, self._most), self._least)
        self._flying -= count
        self._freed.unpark_all()


@contextlib.asynccontextmanager
async def _flights(window: Window, acknowledged: Acknowledged) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Starts calls, each as a task of its own once the window has room for its bytes."""
    async with open_flat_nursery() as nursery:

        async def start(count: int, call: Callable[[], Awaitable[int]]) -> None:
            began = await window.enter(count)

            async def fly() -> None:
                credit = await call()
                window.leave(count, began, credit)
                acknowledged(count)

            nursery.start_soon(fly)

        yield start


async def push_blocks(
    source: Source, ticket: Ticket, block_size: int, send: SendBlock, acknowledged: Acknowledged, pace: Pace
) -> None:
    """Read what is missing of the source in order and send its blocks, as many at once as the window has room for."""
    window = Window(block_size, ticket.credit)
    async with _flights(window, acknowledged) as start:
        for offset, length in _wanted(ticket, block_size):
            await pace.take(length)
            data = await source.read_block(offset, length)
            if data:
                await start(len(data), lambda offset=offset, data=data: send(offset, data))
            if len(data) < length:
                return


def _wanted(ticket: Ticket, block_size: int) -> Iterable[Range]:
    """The blocks to send, in order; without end when the source will tell where it ends."""
    if ticket.size is not None:
        yield from pieces(ticket.missing, block_size)
        return
    offset = 0
    while True:
        yield Range(offset, block_size)
        offset += block_size


async def pull_blocks(
    ticket: Ticket, block_size: int, fetch: FetchBlock, acknowledged: Acknowledged, pace: Pace, *, in_order: bool
) -> None:
    """Fetch every missing block of a file of known size, as many at once as the window has room for."""
    window = Window(block_size, ticket.credit, block_size if in_order else MOST_CREDIT)
    async with _flights(window, acknowledged) as start:
        for offset, length in pieces(ticket.missing, block_size):
            await pace.take(length)
            await start(length, lambda offset=offset, length=length: fetch(offset, length))
