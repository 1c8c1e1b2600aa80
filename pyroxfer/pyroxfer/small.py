"""Small files travel whole, many in one call: reading one, and packing many into batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from .digest import digest_of
from .errors import SourceChangedError
from .names import printable
from .offer import FileEntry, bounded_mtime
from .store.base import WholeFiles
from .store.rooted import translated

SMALL: Final = 256 * 1024
"""A file of at most this size travels whole in one call: measured over loopback, opening a transfer and committing it
takes as long as moving 256 KiB."""
BATCH_BYTES: Final = 4 * 1024 * 1024
BATCH_FILES: Final = 512
"""One call carries at most so many bytes and files (and folders): what one worker thread handles in one visit."""


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A whole file in memory, with the digest of exactly these bytes."""

    data: bytes
    digest: str
    mode: int
    mtime_ns: int


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
            data = b"" if before.st_size > SMALL else _read_up_to(fd, SMALL + 1)
            after = os.fstat(fd)
    finally:
        os.close(fd)
    if len(data) != before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise SourceChangedError(f"{printable(path)}: changed while it was being sent; send it again")
    return SmallFile(data, digest_of(data, algorithm), before.st_mode & 0o777, bounded_mtime(before.st_mtime_ns))


def _read_up_to(fd: int, most: int) -> bytes:
    data = b""
    while len(data) < most and (more := os.read(fd, most - len(data))):
        data += more
    return data


def batches(entries: Iterable[FileEntry]) -> Iterator[list[FileEntry]]:
    """Small files and folders packed into lists for one call each, in order; other entries must not be among them."""
    batch: list[FileEntry] = []
    weight = 0
    for entry in entries:
        if batch and (weight + entry.size > BATCH_BYTES or len(batch) >= BATCH_FILES):
            yield batch
            batch, weight = [], 0
        batch.append(entry)
        weight += entry.size
    if batch:
        yield batch
