"""Running digest and count of one file, taken from the bytes themselves.

Blocks may arrive in any order and ``splice`` never shows its bytes, so the digest follows the contiguous beginning of
the file: straight from a block in memory when it is the next one, otherwise through the page cache.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from blake3 import blake3

from .errors import IntegrityError, PeerError, SourceChangedError
from .offer import ALGORITHMS, End
from .runs import MAX_RUNS, Range, Run, covered, gaps

MOST_EARLY: Final = 2
"""Blocks that may wait in memory for the one before them: as many as a transfer has threads that bring them."""
MOST_PIECES: Final = 2 * MAX_RUNS
"""Ranges of one file apart from each other: what an earlier attempt left, and as many again for blocks under way.
Each new block is compared with all of them."""
PIECE: Final = 1024 * 1024
"""Bytes read and hashed at a time: BLAKE3 needs long pieces for its vector code, the L2 cache short ones."""


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


def new_hash(algorithm: str) -> _Hash:
    """A fresh hash object; both kinds release the interpreter lock while they work.

    Raises:
        PeerError: the algorithm is not on offer.
    """
    if algorithm == "blake3":
        return blake3()
    if algorithm == "sha256":
        return hashlib.sha256()
    raise PeerError(f"the digest '{algorithm[:40]}' is not on offer here")


def choose_algorithm(theirs: object) -> str:
    """The best digest that both ends have.

    Raises:
        PeerError: there is none.
    """
    if isinstance(theirs, (list, tuple)):
        for algorithm in ALGORITHMS:
            if algorithm in theirs:
                return algorithm
    raise PeerError("the two ends have no digest in common")


def digest_of(data: bytes | memoryview, algorithm: str) -> str:
    """Digest of bytes in memory, as hexadecimal text."""
    running = new_hash(algorithm)
    running.update(memoryview(data))
    return running.hexdigest()


class PrefixDigest:
    """Digest of the contiguous beginning of a file that is still being read or written.

    With a ``step`` it notes the digest of the beginning at every multiple of it. Its blocking methods may be called
    from any worker thread; they exclude each other.
    """

    def __init__(self, algorithm: str, fd: int | None, step: int = 0) -> None:
        self.fd = fd
        self.marks: deque[Run] = deque()
        """Beginnings noted and not taken away yet."""
        self._hash = new_hash(algorithm)
        self._lock = threading.Lock()
        self._hashed = 0
        self._early: dict[int, memoryview] = {}
        self.step = step

    @property
    def hashed(self) -> int:
        """How many bytes from the beginning are in the digest."""
        return self._hashed

    def offer(self, offset: int, data: memoryview) -> bool:
        """Take a block from memory when it is the next one, and keep it for its turn when it came a little early.
        False when it is left for ``catch_up``."""
        with self._lock:
            if offset == self._hashed:
                self._take(data)
                self._take_early()
            elif offset > self._hashed:
                if len(self._early) >= MOST_EARLY:
                    return False
                self._early[offset] = data
            return True

    def _take_early(self) -> None:
        while self._early:
            offset = min(self._early)
            if offset > self._hashed:
                return
            data = self._early.pop(offset)
            if offset == self._hashed:  # else it was read meanwhile
                self._take(data)

    def _take(self, data: memoryview) -> None:
        while self.step and (room := self.step - self._hashed % self.step) <= len(data):
            self._hash.update(data[:room])
            self._hashed += room
            self.marks.append(Run(0, self._hashed, self._hash.hexdigest()))
            data = data[room:]
        if data:
            self._hash.update(data)
            self._hashed += len(data)

    def catch_up(self, end: int) -> None:
        """Read and digest up to offset ``end`` of the file.

        Raises:
            SourceChangedError: the file ends before.
            OSError: it cannot be read.
        """
        with self._lock:
            if self._hashed >= end:
                return
            if self.fd is None:
                raise IntegrityError("bytes of a pipe are missing")
            buffer = memoryview(bytearray(min(PIECE, end - self._hashed)))
            while self._hashed < end:
                count = os.preadv(self.fd, [buffer[: min(PIECE, end - self._hashed)]], self._hashed)
                if count == 0:
                    raise SourceChangedError("the file became shorter while it was read")
                self._take(buffer[:count])
            self._take_early()

    def end(self) -> End:
        """Count and digest of what was taken so far."""
        with self._lock:
            return End(self._hashed, self._hash.hexdigest())


def digest_of_range(fd: int, algorithm: str, offset: int, length: int) -> str:
    """Digest of part of a file, read now.

    Raises:
        SourceChangedError: the file ends before.
        OSError: it cannot be read.
    """
    running, end = new_hash(algorithm), offset + length
    buffer = memoryview(bytearray(min(PIECE, length)))
    while offset < end:
        count = os.preadv(fd, [buffer[: min(PIECE, end - offset)]], offset)
        if count == 0:
            raise SourceChangedError("the file became shorter while it was read")
        running.update(buffer[:count])
        offset += count
    return running.hexdigest()


class Coverage:
    """Which ranges of a file have been taken, and how far it is complete from the beginning.

    A range is reserved before it is written and complete afterwards; no byte is taken twice, or the digest could
    speak of other bytes than the file holds.
    """

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._prefix = 0
        self._complete: dict[int, int] = {}
        self._reserved: dict[int, int] = {}

    @property
    def prefix(self) -> int:
        """Everything before this offset is complete."""
        return self._prefix

    @property
    def done(self) -> int:
        """Bytes complete, wherever they are."""
        return self._prefix + sum(end - start for start, end in self._complete.items())

    def missing(self) -> list[Range]:
        """What is neither complete nor reserved, of a file of known size."""
        taken = [Run(0, self._prefix, "")]
        taken += [
            Run(start, end - start, "")
            for ranges in (self._complete, self._reserved)
            for start, end in ranges.items()
        ]
        return gaps(self._size or 0, covered(taken))

    @property
    def busy(self) -> bool:
        """Some range is reserved and not complete."""
        return bool(self._reserved)

    def keep(self, ranges: Sequence[Range]) -> None:
        """Begin with these ranges, in order and apart, complete already."""
        for offset, length in ranges:
            self.reserve(offset, length)
            self.complete(offset, length)

    def reserve(self, offset: int, length: int) -> None:
        """Take the range for one writer.

        Raises:
            PeerError: it reaches over the agreed size, a byte of it was taken before, or there are too many pieces.
        """
        end = offset + length
        if offset < 0 or length < 0 or (self._size is not None and end > self._size):
            raise PeerError(f"a block at {offset} reaches over the agreed size")
        taken = offset < self._prefix or any(
            start < end and offset < stop
            for ranges in (self._complete, self._reserved)
            for start, stop in ranges.items()
        )
        if taken and length:
            raise PeerError(f"the block at {offset} was sent twice")
        if len(self._complete) + len(self._reserved) >= MOST_PIECES:
            raise PeerError(f"the blocks leave more than {MOST_PIECES} gaps; send them more nearly in order")
        if length:
            self._reserved[offset] = end

    def complete(self, offset: int, length: int) -> None:
        """The reserved range, or its first ``length`` bytes, is written."""
        end = self._reserved.pop(offset, None)
        if end is None or not length:
            return
        self._complete[offset] = offset + length
        if offset + length < end:
            self._reserved[offset + length] = end
        while self._prefix in self._complete:
            self._prefix = self._complete.pop(self._prefix)

    def release(self, offset: int) -> None:
        """Give up a reservation that starts at ``offset``: its writer failed."""
        self._reserved.pop(offset, None)
