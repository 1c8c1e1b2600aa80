"""The receiving end of one file: blocks written in any order, and the receiver's own count and digest."""

from __future__ import annotations

import os
from typing import Final, Protocol

import trio

from .digest import Coverage, PrefixDigest
from .errors import IntegrityError, PeerError, TransferError, from_os_error
from .names import printable
from .offer import End
from .source import HASH_TURN
from .store.rooted import translated
from .store.staged import Staged
from .tasks import Usage, in_thread

FOLLOW_LAG: Final = 4 * 1024 * 1024
"""Bytes that may wait before the follower visits a worker thread: few hops, and still warm in the cache."""


class Sink(Protocol):
    """What a channel needs of the receiving end."""

    @property
    def fd(self) -> int | None:
        """A descriptor for zero-copy receiving, or None when blocks must come in order."""

    @property
    def received(self) -> int:
        """Bytes written so far."""

    async def write_block(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write one block; each byte once."""


class FileSink:
    """A staged file being received. Owns the staged file until ``publish``."""

    def __init__(self, staged: Staged, size: int | None, algorithm: str) -> None:
        self.staged = staged
        self.size = size
        self.algorithm = algorithm
        self._coverage = Coverage(size)
        self._digest = PrefixDigest(algorithm, staged.fd)
        self._moved = trio.lowlevel.ParkingLot()
        self.usage = Usage()

    @property
    def fd(self) -> int:
        return self.staged.fd

    @property
    def received(self) -> int:
        return self._coverage.done

    async def write_block(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write one block at its place and digest it when it is the next one.

        Raises:
            PeerError: the block reaches over the agreed size, or a byte of it came before.
            NoSpaceError: the disk is full.

        Cancelling waits for the write to end.
        """
        view = memoryview(data)
        self._coverage.reserve(offset, len(view))
        written = 0
        try:
            with self.usage:
                await in_thread(self._write, offset, view)
                written = len(view)
        finally:
            self.complete(offset, written)

    def _write(self, offset: int, view: memoryview) -> None:
        self.staged.write(offset, view)
        self._digest.offer(offset, view)

    def reserve(self, offset: int, length: int) -> None:
        """Take a range for a writer that moves the bytes itself, into ``fd``.

        Raises:
            PeerError: as ``write_block``.
        """
        self._coverage.reserve(offset, length)

    def complete(self, offset: int, length: int) -> None:
        """The first ``length`` bytes of the range reserved at ``offset`` are written; 0 gives the range up."""
        self._coverage.complete(offset, length)
        self._moved.unpark_all()

    async def follow(self, end: int) -> None:
        """Digest behind the writers until offset ``end`` is reached; runs beside them as a task of its own."""
        while self._digest.hashed < end:
            ready = self._coverage.prefix
            if ready - self._digest.hashed >= min(FOLLOW_LAG, end - self._digest.hashed):
                await in_thread(self._digest.catch_up, min(ready, self._digest.hashed + HASH_TURN))
            else:
                await self._moved.park()

    async def end(self) -> End:
        """Own count and digest of everything that is there without a gap."""
        await trio.lowlevel.checkpoint()
        with self.usage, translated(self.staged.path):
            while self._digest.hashed < self._coverage.prefix:
                goal = min(self._digest.hashed + HASH_TURN, self._coverage.prefix)
                await in_thread(self._digest.catch_up, goal)
            return self._digest.end()

    async def verify(self, theirs: End) -> End:
        """Compare the sender's numbers with this end's own.

        Raises:
            PeerError: a writer is still at work.
            IntegrityError: count or digest differ.
        """
        if self.usage.busy or self._coverage.busy:
            raise PeerError(f"{printable(self.staged.path)}: blocks are still being written")
        own = await self.end()
        check_equal(own, theirs, self.staged.path)
        if self._coverage.done != own.size:
            raise IntegrityError(f"{printable(self.staged.path)}: there are gaps in what arrived")
        return own

    async def publish(self, if_exists: str, durability: str, mtime_ns: int | None) -> str:
        """Flush and put in place; returns the final path. Errors as ``Staged.publish``."""
        await self.usage.finish()
        return await in_thread(self.staged.publish, if_exists, durability, mtime_ns)

    async def discard(self) -> None:
        """Remove the partial file; after ``publish`` nothing happens. Runs to its end even when cancelled."""
        if self.staged.fd < 0:
            return
        with trio.CancelScope(shield=True):
            await self.usage.finish()
            await in_thread(self.staged.discard)


class PipeSink:
    """Standard output, or another pipe, being written in order; its bytes cannot be taken back."""

    fd: int | None = None

    def __init__(self, fd: int, path: str, algorithm: str) -> None:
        self.path = path
        self._pipe = fd
        self._digest = PrefixDigest(algorithm, None)

    @property
    def received(self) -> int:
        return self._digest.hashed

    async def write_block(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write the next block.

        Raises:
            PeerError: it is not the next one.
            TransferError: nobody reads the pipe any more.
        """
        if offset != self._digest.hashed:
            raise PeerError("the peer sent blocks out of order into a pipe")
        await trio.to_thread.run_sync(self._write, offset, memoryview(data), abandon_on_cancel=True)

    def _write(self, offset: int, view: memoryview) -> None:
        self._digest.offer(offset, view)
        try:
            while view:
                view = view[os.write(self._pipe, view) :]
        except BrokenPipeError:
            raise TransferError("nobody reads the output any more") from None
        except OSError as error:
            raise from_os_error(error, "the output") from error

    async def verify(self, theirs: End) -> End:
        """Compare the sender's numbers with this end's own.

        Raises:
            IntegrityError: count or digest differ; the bytes are out already.
        """
        await trio.lowlevel.checkpoint()
        own = self._digest.end()
        check_equal(own, theirs, self.path)
        return own


def check_equal(own: End, theirs: End, path: str) -> None:
    """Compare two ends of one transfer.

    Raises:
        IntegrityError: count or digest differ.
    """
    if own.size != theirs.size:
        raise IntegrityError(
            f"{printable(path)}: {own.size} bytes arrived, {theirs.size} were sent; nothing was kept, send it again"
        )
    if own.digest != theirs.digest:
        raise IntegrityError(f"{printable(path)}: the digests differ; nothing was kept, send it again")
