"""Several block calls in flight at once: the credit window of the channels that move blocks in calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ..offer import Ticket
from ..source import Source
from ..tasks import open_flat_nursery
from .base import Acknowledged

WINDOW: Final = 4
"""Block calls in flight: blocks of 1 MiB then take at most 4 MiB at each end, and no round trip is waited for."""

SendBlock = Callable[[int, bytes], Awaitable[None]]
"""Sends the block at an offset and returns when the receiver has written it."""
FetchBlock = Callable[[int, int], Awaitable[int]]
"""Fetches the block at an offset, of a length, and returns when it is written; the number of bytes."""


async def push_blocks(source: Source, block_size: int, send: SendBlock, acknowledged: Acknowledged) -> None:
    """Read the source in order and send its blocks, ``WINDOW`` of them in flight."""
    reading = trio.Lock()
    position = 0
    ended = False

    async def worker() -> None:
        nonlocal position, ended
        while True:
            async with reading:
                offset = position
                data = b"" if ended else await source.read_block(offset, block_size)
                position += len(data)
                ended = ended or len(data) < block_size
            if not data:
                return
            await send(offset, data)
            acknowledged(len(data))

    async with open_flat_nursery() as nursery:
        for _ in range(WINDOW):
            nursery.start_soon(worker)


async def pull_blocks(
    ticket: Ticket, block_size: int, window: int, fetch: FetchBlock, acknowledged: Acknowledged
) -> None:
    """Fetch every block of a file of known size, ``window`` of them in flight."""
    size = ticket.size or 0
    offsets = iter(range(0, size, block_size))

    async def worker() -> None:
        for offset in offsets:
            acknowledged(await fetch(offset, min(block_size, size - offset)))

    async with open_flat_nursery() as nursery:
        for _ in range(window):
            nursery.start_soon(worker)
