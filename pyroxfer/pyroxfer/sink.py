"""The receiving end of one file: blocks written in any order, and the receiver's own count and digest."""

from __future__ import annotations

import math
import os
import select
import threading
from collections.abc import Sequence
from typing import Final, Protocol, TypeVar, TypeVarTuple

import trio

from .digest import Coverage, PrefixDigest, digest_of_range
from .errors import IntegrityError, LostError, PeerError, TransferError, from_os_error
from .names import printable
from .offer import End
from .runs import MAX_RUNS, UNKNOWN, Range, Run, covered, step_for
from .source import HASH_TURN, catch_up
from .store.base import StagedFile
from .store.rooted import translated
from .tasks import OwnThreads, Usage, wait_for

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

FOLLOW_LAG: Final = 4 * 1024 * 1024
"""Bytes that may wait before the follower visits a worker thread: few hops, and still warm in the cache."""
NOTE_BYTES: Final = 32 * 1024 * 1024
NOTE_S: Final = 1.0
"""The journal is written when so many bytes came since the last time, or so much time went by: what a killed receiver
loses, against what flushing costs."""
LEAST_KEPT: Final = 1024 * 1024
"""Less than this is sent again sooner than it is talked about."""


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

    def __init__(self, staged: StagedFile, size: int | None, algorithm: str, durability: str = "data") -> None:
        self.staged = staged
        self.size = size
        self.algorithm = algorithm
        self.resumed = 0
        """Bytes kept from an earlier attempt."""
        self.superseded = False
        """Somebody else goes on with a copy: there is nothing to keep."""
        self._flushes = durability != "none"
        self._coverage = Coverage(size)
        self._step = step_for(size) if staged.keeps and size is not None else 0
        self._digest = PrefixDigest(algorithm, staged.fd, self._step)
        self._noted = 0
        self._noted_at = -math.inf
        self._noting = False
        self._doubted: Sequence[Run] = ()
        self._recalled: PrefixDigest | None = None
        self._moved = trio.lowlevel.ParkingLot()
        self._threads = OwnThreads()
        self._writing = threading.Lock()
        """The kernel lets one thread at a time write to a file, and those that wait for it there burn their core."""
        self.usage = Usage()

    @property
    def fd(self) -> int:
        return self.staged.fd

    @property
    def received(self) -> int:
        return self._coverage.done

    async def recall(self) -> list[Run]:
        """What an earlier attempt left, as far as its bytes still have the digests that were noted of them; and what
        stands under the final name, digested now."""
        if not self.staged.found or self.size is None:
            return []
        with self.usage, translated(self.staged.path):
            there = min(self.size, os.fstat(self.staged.basis).st_size)
            noted = {run for run in self.staged.found if run.end <= there}
            beginnings = sorted((run for run in noted if not run.start), key=lambda run: run.length)
            running = PrefixDigest(self.algorithm, self.staged.basis)
            good = []
            for run in beginnings:
                await catch_up(running, run.length, self._threads)
                good += _confirmed(run, running.end().digest)
            reach = good[-1].length if good else 0
            self._recalled = running
            for run in sorted(noted, key=lambda run: run.start):
                if run.start and run.end > reach:
                    good += _confirmed(run, await self._digest_of(self.staged.basis, run))
        return good[-MAX_RUNS:]

    async def _digest_of(self, fd: int, run: Run) -> str:
        return await self._threads.run(digest_of_range, fd, self.algorithm, run.start, run.length)

    async def _is_true(self, fd: int, run: Run) -> bool:
        return await self._digest_of(fd, run) == run.digest

    async def keep(self, runs: Sequence[Run], *, doubt: bool = False) -> None:
        """Begin with these of the recalled runs and nothing else of what was there.

        With ``doubt`` they are digested once more at the end: somebody may have been writing when they were recalled.
        Before the first block.
        """
        ranges, in_place = covered(runs), self.staged.basis == self.staged.fd
        with self.usage:
            await self._threads.run(self.staged.adopt, ranges)
        self._coverage.keep(ranges)
        self.resumed = self._coverage.done
        known, self._recalled = self._recalled, None
        if known is not None and in_place and known.hashed == self._coverage.prefix:
            known.step, self._digest = self._step, known
        self._noted = self._coverage.prefix
        if doubt:
            self._doubted = runs
        with self.usage, translated(self.staged.path):
            await catch_up(self._digest, self._coverage.prefix, self._threads)
        self._digest.marks.clear()

    def missing(self) -> list[Range]:
        """What is still to come of a file of known size."""
        return self._coverage.missing()

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
                await self._threads.run(self._write, offset, view)
                written = len(view)
        finally:
            self.complete(offset, written)
        await self.note_progress()

    def _write(self, offset: int, view: memoryview) -> None:
        with self._writing:
            self.staged.write(offset, view)
        if not self._digest.offer(offset, view):  # so many came before their turn that some were left
            self._digest.catch_up(min(self._coverage.prefix, self._digest.hashed + HASH_TURN))
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

    async def note_progress(self) -> None:
        """Note in the journal how far the file is whole, when enough has come since the last time. Nothing happens
        while another task is at it."""
        fresh = self._digest.hashed - self._noted
        if not self._step or self._noting or not self._digest.marks:
            return
        if fresh < NOTE_BYTES and trio.current_time() - self._noted_at < NOTE_S:
            return
        self._noting = True
        try:
            with self.usage:
                await self._threads.run(self._note)
        finally:
            self._noting = False
            self._noted_at = trio.current_time()

    def _note(self) -> None:
        runs = [self._digest.marks.popleft() for _ in range(len(self._digest.marks))]
        if runs:
            self.staged.note(runs, flush=self._flushes)
            self._noted = runs[-1].length

    async def prove(self, run: Run) -> None:
        """Compare the bytes of a run that was written with the sender's digest of it.

        Raises:
            LostError: they differ.
        """
        with self.usage, translated(self.staged.path):
            if not await self._is_true(self.staged.fd, run):
                raise LostError(f"{printable(self.staged.path)}: a stripe was damaged on the way; try again")

    async def follow(self) -> None:
        """Digest behind the writers of a file of known size; runs beside them as a task of its own, until the end of
        the file or until it is cancelled."""
        size = self.size or 0
        while self._digest.hashed < size:
            ready, hashed = self._coverage.prefix, self._digest.hashed
            if ready - hashed >= min(FOLLOW_LAG, size - hashed):
                await self._threads.run(self._digest.catch_up, min(ready, hashed + HASH_TURN))
                await self.note_progress()
            else:
                await self._moved.park()

    async def end(self) -> End:
        """Own count and digest of everything that is there without a gap."""
        await trio.lowlevel.checkpoint()
        with self.usage, translated(self.staged.path):
            await catch_up(self._digest, self._coverage.prefix, self._threads)
            return self._digest.end()

    async def verify(self, theirs: End) -> End:
        """Compare the sender's numbers with this end's own.

        Raises:
            PeerError: a writer is still at work.
            IntegrityError: count or digest differ, or what was taken over has changed since.
        """
        if self._coverage.busy:
            raise PeerError(f"{printable(self.staged.path)}: blocks are still being written")
        own = await self.end()
        check_equal(own, theirs, self.staged.path)
        if self._coverage.done != own.size:
            raise IntegrityError(f"{printable(self.staged.path)}: there are gaps in what arrived")
        await self._look_again()
        return own

    async def _look_again(self) -> None:
        """Digest what was taken over from somebody else once more.

        Raises:
            IntegrityError: it has changed since.
        """
        with self.usage, translated(self.staged.path):
            running = PrefixDigest(self.algorithm, self.staged.fd)
            for run in sorted(self._doubted, key=lambda run: run.end):
                if not run.start:
                    await catch_up(running, run.length, self._threads)
                equal = await self._is_true(self.staged.fd, run) if run.start else running.end().digest == run.digest
                if not equal:
                    raise IntegrityError(f"{printable(self.staged.path)}: somebody else wrote into it; send it again")

    async def publish(self, size: int, if_exists: str, durability: str, mtime_ns: int | None) -> str:
        """Flush and put in place; returns the final path. Errors as ``StagedFile.publish``."""
        await self.usage.finish()
        return await self._threads.run(self.staged.publish, size, if_exists, durability, mtime_ns)

    async def suspend(self) -> int:
        """Keep what is there without a gap for a later attempt, once nobody writes any more; so many bytes are kept.

        What is too little to be kept is removed, like a file that cannot be sent again. After ``publish`` nothing
        happens. Runs to its end even when cancelled.
        """
        kept = 0
        with trio.CancelScope(shield=True):
            await self.usage.finish()
            if self.staged.fd >= 0:
                kept = await self._threads.run(self._suspend)
        return kept

    def _suspend(self) -> int:
        prefix = self._coverage.prefix
        if self.superseded:
            self.staged.discard()
            return 0
        try:
            if self._step and prefix >= LEAST_KEPT:
                self._digest.catch_up(prefix)
                end, marks = self._digest.end(), self._digest.marks
                if end.size > (marks[-1].length if marks else self._noted):
                    marks.append(Run(0, end.size, end.digest))
                self._note()
        except (OSError, TransferError):
            pass  # the disk is full or broken: what was noted before still counts
        finally:
            self.staged.suspend()
        return self._noted

    async def discard(self) -> None:
        """Remove the partial file; after ``publish`` nothing happens. Runs to its end even when cancelled."""
        with trio.CancelScope(shield=True):
            await self.usage.finish()
            if self.staged.fd >= 0:
                await self._threads.run(self.staged.discard)


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
                try:
                    view = view[os.write(self._pipe, view) :]
                except BlockingIOError:  # whoever made the pipe does not want to wait in it
                    wait_for(self._pipe, select.POLLOUT)
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


def _confirmed(run: Run, digest: str) -> list[Run]:
    """The run with the digest that its bytes have now, unless another one was noted."""
    return [Run(run.start, run.length, digest)] if run.digest in (UNKNOWN, digest) else []


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
