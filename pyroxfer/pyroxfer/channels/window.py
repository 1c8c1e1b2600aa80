"""Several block calls in flight at once: the credit window of the channels that move blocks in calls."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Final

import trio

from ..offer import Ticket
from ..pace import Pace
from ..runs import Range
from ..source import Source
from ..tasks import open_flat_nursery
from .base import Acknowledged

CREDIT: Final = 4 * 1024 * 1024
"""Bytes in flight at the beginning: enough for 1 Gbit/s over 32 ms."""
MOST_CREDIT: Final = 8 * 1024 * 1024
"""Bytes in flight at most, at each end: enough for 1 Gbit/s over 64 ms."""
LEAST_BLOCK: Final = 60 * 1024
"""Bytes of a block, however little credit there is."""
UNHINDERED: Final = 1.5
"""A block that takes less than so many times the fastest one did not wait behind others: more may be in flight."""

SendBlock = Callable[[int, bytes], Awaitable[int]]
"""Sends the block at an offset and returns when the receiver has written it; the credit that the server gives now."""
FetchBlock = Callable[[int, int], Awaitable[int]]
"""Fetches the block at an offset, of a length, and returns when it is written; the credit as above."""


class Window:
    """How many bytes may be in flight. It grows as long as blocks come back as fast as alone, which is when the line
    is long and not full, up to what the server gives."""

    def __init__(self, largest: int, credit: int, most: int = MOST_CREDIT) -> None:
        self._largest = largest
        self._most = most
        self._credit = credit
        self._size = max(self.block, min(CREDIT, credit // 2, most))
        self._flying = 0
        self._fastest = float("inf")
        self._freed = trio.lowlevel.ParkingLot()

    @property
    def size(self) -> int:
        """Bytes that may be in flight now."""
        return self._size

    @property
    def block(self) -> int:
        """Bytes of the next block: the largest one, as long as the server gives credit for it."""
        return min(self._largest, max(self._credit, LEAST_BLOCK))

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
        self._credit = credit
        self._size = max(min(self._size, credit, self._most), self.block)
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
    source: Source, ticket: Ticket, largest: int, send: SendBlock, acknowledged: Acknowledged, pace: Pace
) -> None:
    """Read what is missing of the source in order and send its blocks, of ``largest`` bytes at most, as many at once
    as the window has room for."""
    window = Window(largest, ticket.credit)
    missing = [Range(0, sys.maxsize)] if ticket.size is None else ticket.missing  # the source will tell where it ends
    async with _flights(window, acknowledged) as start:
        for offset, length in _blocks(missing, window):
            await pace.take(length)
            data = await source.read_block(offset, length)
            if data:
                await start(len(data), lambda offset=offset, data=data: send(offset, data))
            if len(data) < length:
                return


def _blocks(ranges: Sequence[Range], window: Window) -> Iterator[Range]:
    """These ranges in order, in blocks as large as the window has them when their turn comes."""
    for offset, length in ranges:
        end = offset + length
        while offset < end:
            block = Range(offset, min(window.block, end - offset))
            yield block
            offset += block.length


async def pull_blocks(
    ticket: Ticket, largest: int, fetch: FetchBlock, acknowledged: Acknowledged, pace: Pace, *, in_order: bool
) -> None:
    """Fetch what is missing of a file of known size in blocks of ``largest`` bytes at most, as many at once as the
    window has room for."""
    window = Window(largest, ticket.credit, largest if in_order else MOST_CREDIT)
    async with _flights(window, acknowledged) as start:
        for offset, length in _blocks(ticket.missing, window):
            await pace.take(length)
            await start(length, lambda offset=offset, length=length: fetch(offset, length))
