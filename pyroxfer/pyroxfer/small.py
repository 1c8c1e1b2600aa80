"""Small files travel whole, many in one call: reading one, and packing many into batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from .digest import digest_of
from .errors import PeerError, SourceChangedError
from .many import UNFLUSHED_WORKERS, WORKERS
from .names import printable
from .offer import FileEntry, SmallEnd, bounded_mtime
from .store.base import WholeFiles
from .store.rooted import translated

SMALL: Final = 256 * 1024
"""A file of at most this size travels whole in one call: measured over loopback, opening a transfer and committing it
takes as long as moving 256 KiB."""
BATCH_BYTES: Final = 4 * 1024 * 1024
BATCH_FILES: Final = 512
"""One call carries at most so many bytes and files (and folders): what one worker thread handles in one visit."""
NEAR_BATCH_BYTES: Final = 2 * 1024 * 1024
"""On a short line, which is full anyway. Measured: more calls cost more below, fresh memory and cold caches above."""
FAR_S: Final = 0.02
"""A call that does nothing and takes longer crosses a line that two near batches would not fill, be it as wide as a
gigabit a second; or the machine is busy, and then it does not matter much."""


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A whole file in memory, with count and digest of exactly these bytes."""

    data: bytes
    end: SmallEnd


def read_small(files: WholeFiles, path: str, algorithm: str) -> SmallFile:
    """Read a small file whole. Blocking.

    Raises:
        SourceChangedError: it is not small (any more), or changed while it was read.
        TransferError: what the store said.
    """
    fd = files.open_file(path)
    try:
        with translated(path):
            before = os.fstat(fd)
            data = b"" if before.st_size > SMALL else _read_whole(fd, before.st_size)
            after = os.fstat(fd)
    finally:
        os.close(fd)
    if len(data) != before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise SourceChangedError(f"{printable(path)}: changed while it was being sent; send it again")
    digest, mode = digest_of(data, algorithm), before.st_mode & 0o777
    return SmallFile(data, SmallEnd(len(data), digest, mode, bounded_mtime(before.st_mtime_ns)))


def _read_whole(fd: int, size: int) -> bytes:
    """What there is of ``size`` bytes, and one more when the file is longer; one call when it is not shorter."""
    data = os.read(fd, size + 1)
    while len(data) < size and (more := os.read(fd, size + 1 - len(data))):
        data += more
    return data


def cut(data: bytes | bytearray | memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """The files that lie one after another in ``data``.

    Raises:
        PeerError: the sizes are those of more or of fewer bytes.
    """
    if sum(sizes) != len(data):
        raise PeerError("the bytes of the files are more or fewer than their sizes say")
    view, found, position = memoryview(data), [], 0
    for size in sizes:
        found.append(view[position : position + size])
        position += size
    return found


def batch_limits(round_trip_s: float, durability: str) -> tuple[int, int]:
    """Bytes of one batch, and how many batches may be under way at once.

    Several wait together for a long line, or for a disk to flush. Where there is nothing to wait for, one is read or
    written while another is on the line: more threads would only hand the interpreter to each other at every file.
    """
    if round_trip_s >= FAR_S:
        return BATCH_BYTES, WORKERS
    return NEAR_BATCH_BYTES, WORKERS if durability != "none" else UNFLUSHED_WORKERS


def batches(entries: Iterable[FileEntry], most_bytes: int = BATCH_BYTES) -> Iterator[list[FileEntry]]:
    """Small files and folders packed into lists for one call each, in order; other entries must not be among them."""
    batch: list[FileEntry] = []
    weight = 0
    for entry in entries:
        if batch and (weight + entry.size > most_bytes or len(batch) >= BATCH_FILES):
            yield batch
            batch, weight = [], 0
        batch.append(entry)
        weight += entry.size
    if batch:
        yield batch
