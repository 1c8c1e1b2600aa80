"""A task beside the body of a block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def in_background(run: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run a task during the body. An error of the body comes out as it is, not in a group."""
    manager = trio.open_nursery()
    nursery = await manager.__aenter__()
    nursery.start_soon(run)
    try:
        yield
    finally:
        nursery.cancel_scope.cancel()
        await manager.__aexit__(None, None, None)
