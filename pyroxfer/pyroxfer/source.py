"""The sending end of one file: blocks to move, and the sender's own count and digest."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from typing import Final, Protocol, Self

import trio

from .digest import PrefixDigest, digest_of_range
from .errors import SourceChangedError
from .names import printable
from .offer import End, bounded_mtime
from .runs import Range
from .store.rooted import translated
from .tasks import OwnThreads, Usage, in_thread, wait_for

HASH_TURN: Final = 16 * 1024 * 1024
"""Bytes digested per visit of a worker thread: some milliseconds, so cancelling is prompt and hops cost nothing."""


async def catch_up(digest: PrefixDigest, end: int, threads: OwnThreads) -> None:
    """Digest up to an offset in turns, so that a cancel is answered soon. Errors as ``PrefixDigest.catch_up``."""
    while digest.hashed < end:
        await threads.run(digest.catch_up, min(digest.hashed + HASH_TURN, end))


class Source(Protocol):
    """What a channel needs of the sending end."""

    @property
    def fd(self) -> int | None:
        """A descriptor for zero-copy sending, or None when there is none."""

    @property
    def size(self) -> int | None:
        """Bytes to send, or None when only the end will tell."""

    async def read_block(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``; fewer than ``length`` only at the end."""

    async def digest_all(self) -> None:
        """Digest what can be digested now."""

    async def digests(self, ranges: Sequence[Range]) -> list[str]:
        """The digest of each of these ranges, empty where there is none."""

    async def digest_of(self, place: Range) -> str:
        """The digest of one range by itself."""

    async def end(self) -> End:
        """Own count and digest, once everything was read."""


class FileSource:
    """A regular file being sent. Owns its descriptor.

    Every byte is digested once: by ``read_block`` as it passes, or by ``digest_all`` beside a zero-copy send.
    """

    def __init__(self, fd: int, path: str, algorithm: str, origin: str = "") -> None:
        self.fd: int = fd
        self.path = path
        self.origin = origin
        self._before = os.fstat(fd)
        self.size: int = self._before.st_size
        self.mode = self._before.st_mode & 0o777
        self.mtime_ns = bounded_mtime(self._before.st_mtime_ns)
        self._algorithm = algorithm
        self._threads = OwnThreads()
        self._digest = PrefixDigest(algorithm, fd)
        self.usage = Usage()

    async def read_block(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``: ``length`` of them, fewer only at the end of the file as it was when opened.

        Raises:
            SourceChangedError: the file became shorter.
        """
        with self.usage, translated(self.path):
            return await self._threads.run(self._read_block, offset, min(length, self.size - offset))

    def _read_block(self, offset: int, length: int) -> bytes:
        data = os.pread(self.fd, max(length, 0), offset)
        while len(data) < length:
            more = os.pread(self.fd, length - len(data), offset + len(data))
            if not more:
                raise self._changed()
            data += more
        if not self._digest.offer(offset, memoryview(data)) and offset <= self._digest.hashed + HASH_TURN:
            self._digest.catch_up(offset + len(data))  # so many came before their turn that some were left
        return data

    async def digest_all(self) -> None:
        """Digest what has not been, in turns, so that a cancel is answered soon.

        Raises:
            SourceChangedError: the file became shorter.
        """
        with self.usage, translated(self.path):
            await catch_up(self._digest, self.size, self._threads)

    async def digests(self, ranges: Sequence[Range]) -> list[str]:
        """The digest of each of these ranges, as the file is now; empty for one that reaches over its end.

        Beginnings in growing order cost one pass over the longest, which also counts for ``end``; not beside
        ``digest_all``.

        Raises:
            SourceChangedError: the file became shorter.
        """
        found = []
        with self.usage, translated(self.path):
            running = self._digest
            for offset, length in ranges:
                if offset + length > self.size:
                    found.append("")
                elif offset:
                    found.append(await self.digest_of(Range(offset, length)))
                else:
                    if running.hashed > length:
                        running = PrefixDigest(self._algorithm, self.fd)
                    await catch_up(running, length, self._threads)
                    found.append(running.end().digest)
        return found

    async def digest_of(self, place: Range) -> str:
        """The digest of one range by itself, as the file is now; whatever else is being digested.

        Raises:
            SourceChangedError: the file became shorter.
        """
        with self.usage, translated(self.path):
            return await self._threads.run(digest_of_range, self.fd, self._algorithm, *place)

    async def end(self) -> End:
        """Digest the rest and compare the file with what it was when opened.

        Raises:
            SourceChangedError: size, modification time or identity differ: the bytes sent may be a mixture.
        """
        await self.digest_all()
        self.check_unchanged()
        return self._digest.end()

    def check_unchanged(self) -> None:
        """Compare the file with what it was when opened.

        Raises:
            SourceChangedError: size, modification time or identity differ, or there are bytes beyond its size.
        """
        before, now = self._before, os.fstat(self.fd)
        if (before.st_size, before.st_mtime_ns, before.st_ino) != (now.st_size, now.st_mtime_ns, now.st_ino):
            raise self._changed()
        if os.pread(self.fd, 1, self.size):  # in /proc and the like, where every file says it is empty
            raise SourceChangedError(f"{printable(self.path)}: holds more than its size says; send it through a pipe")

    def _changed(self) -> SourceChangedError:
        return SourceChangedError(f"{printable(self.path)}: changed while it was being sent; send it again")

    async def aclose(self) -> None:
        """Close the descriptor once nobody reads; a second time does nothing. Runs to its end even when cancelled."""
        with trio.CancelScope(shield=True):
            await self.usage.finish()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class PipeSource:
    """Standard input, or another pipe, being sent: read once, in order, its size known only at the end."""

    fd: int | None = None
    size: int | None = None
    mode: int = 0o666
    mtime_ns: int | None = None
    origin: str = ""

    def __init__(self, fd: int, path: str, algorithm: str) -> None:
        self.path = path
        self._pipe = fd
        self._digest = PrefixDigest(algorithm, None)

    async def read_block(self, offset: int, length: int) -> bytes:
        """The next ``length`` bytes, fewer only at the end; ``offset`` is where the last block ended.

        Raises:
            TransferError: it cannot be read.

        Cancelling leaves a thread behind that waits for the pipe; it ends with the process at the latest.
        """
        data = bytearray()
        while len(data) < length:
            part = await trio.to_thread.run_sync(self._read, length - len(data), abandon_on_cancel=True)
            if not part:
                break
            data += part
        await in_thread(self._digest.offer, offset, memoryview(data))
        return bytes(data)

    def _read(self, most: int) -> bytes:
        with translated(self.path):
            while True:
                try:
                    return os.read(self._pipe, most)
                except BlockingIOError:  # whoever made the pipe does not want to wait in it
                    wait_for(self._pipe, select.POLLIN)

    async def digest_all(self) -> None:
        """Nothing is left to digest: every block was taken as it passed."""
        await trio.lowlevel.checkpoint()

    async def digests(self, ranges: Sequence[Range]) -> list[str]:
        """Nothing is known of what comes."""
        await trio.lowlevel.checkpoint()
        return [""] * len(ranges)

    async def digest_of(self, place: Range) -> str:
        """Nothing is known of what comes."""
        await trio.lowlevel.checkpoint()
        return ""

    async def end(self) -> End:
        """Count and digest of what was read."""
        await trio.lowlevel.checkpoint()
        return self._digest.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to let go of: the descriptor belongs to the process."""
