"""The journal of a partial file: which runs of it were written and flushed, with their digests. Bytes only, no files.

    magic, then records: one letter, u16 length, payload, 16 bytes of check

    H    heading, JSON: whose partial file this is
    L    u64             a lease begins: whoever writes from here on took the file over
    R    u64 start, u64 length, u64 lease, 32 bytes of digest

A record's check is the beginning of the BLAKE3 digest of the check before it and the record, so records can neither
be lost in the middle nor change places. Records are only ever appended; reading ends at the first that is not
whole. What a journal says is a hint: nobody uses a run without digesting the file's bytes again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from blake3 import blake3

from .runs import Run

MAGIC: Final = b"pyroxfer journal 1\n"
MAX_BYTES: Final = 4 * 1024 * 1024
"""A journal is never longer; one that is full is not written any further."""
CHECK_BYTES: Final = 16

_HEAD: Final = struct.Struct(">cH")
_LEASE: Final = struct.Struct(">Q")
_RUN: Final = struct.Struct(">QQQ32s")


@dataclass(frozen=True, slots=True)
class Heading:
    """Whose partial file it is."""

    name: str
    """Final name of the file, without its folder."""
    origin: str
    """The sender's word for where the bytes come from."""
    data: str
    """Name of the partial file, beside the journal."""
    mode: int
    """Permission bits that it was made with."""


@dataclass(frozen=True, slots=True)
class Journal:
    """What could be read of a journal."""

    heading: Heading
    lease: int
    runs: tuple[Run, ...]
    length: int
    """Bytes up to the end of the last whole record."""
    check: bytes
    """Of the last whole record."""


class Writer:
    """Makes the records of one journal, in order."""

    def __init__(self, check: bytes = MAGIC) -> None:
        self._check = check

    def _record(self, kind: bytes, payload: bytes) -> bytes:
        body = _HEAD.pack(kind, len(payload)) + payload
        self._check = _check(self._check, body)
        return body + self._check

    def heading(self, heading: Heading, lease: int) -> bytes:
        """The beginning of a journal."""
        return MAGIC + self._record(b"H", json.dumps(asdict(heading)).encode()) + self.lease(lease)

    def lease(self, number: int) -> bytes:
        """A lease begins."""
        return self._record(b"L", _LEASE.pack(number))

    def runs(self, runs: Iterable[Run], lease: int) -> bytes:
        """Runs that are written and flushed."""
        return b"".join(
            self._record(b"R", _RUN.pack(run.start, run.length, lease, bytes.fromhex(run.digest))) for run in runs
        )


def _check(before: bytes, body: bytes) -> bytes:
    return blake3(before + body).digest()[:CHECK_BYTES]


def _records(data: bytes) -> Iterable[tuple[bytes, bytes, int, bytes]]:
    """Every whole record: kind, payload, the offset behind it, its check."""
    position, check = len(MAGIC), MAGIC
    while position + _HEAD.size <= len(data):
        kind, length = _HEAD.unpack_from(data, position)
        end = position + _HEAD.size + length
        check = _check(check, data[position:end])
        if data[end : end + CHECK_BYTES] != check:
            return
        yield kind, data[position + _HEAD.size : end], end + CHECK_BYTES, check
        position = end + CHECK_BYTES


def read_journal(data: bytes) -> Journal | None:
    """What is whole of a journal; None when not even the heading is."""
    if not data.startswith(MAGIC):
        return None
    heading, lease, runs, length, last = None, 0, [], 0, b""
    for kind, payload, end, check in _records(data):
        if heading is None:
            heading = _heading(payload) if kind == b"H" else None
            if heading is None:
                return None
        elif kind == b"L" and len(payload) == _LEASE.size:
            (lease,) = _LEASE.unpack(payload)
        elif kind == b"R" and len(payload) == _RUN.size:
            start, size, _, digest = _RUN.unpack(payload)
            runs.append(Run(start, size, digest.hex()))
        length, last = end, check
    return None if heading is None else Journal(heading, lease, tuple(runs), length, last)


def _heading(payload: bytes) -> Heading | None:
    try:
        fields: Any = json.loads(payload)
        heading = Heading(**fields)
    except (ValueError, TypeError):
        return None
    texts = (heading.name, heading.origin, heading.data)
    if not all(isinstance(text, str) for text in texts) or not isinstance(heading.mode, int):
        return None
    return heading
