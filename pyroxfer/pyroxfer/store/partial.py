"""Partial files that outlive their transfer: finding one, taking it over, its journal beside it. Blocking.

.pyroxfer-<16 digits>            the bytes; its lock says that somebody is at work on it
.pyroxfer-<16 digits>.journal    what of them is worth keeping; its name follows from the final name and the origin
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from blake3 import blake3

from ..journal import MAX_BYTES, Heading, Journal, Writer, read_journal
from ..names import JOURNAL_SUFFIX, PRIVATE_PREFIX, is_partial
from ..runs import Run

PATIENCE_S: Final = 1.0
"""How long whoever takes a partial file over waits for its holder in another process to let go of it."""
_POLL_S: Final = 0.05
_OPEN: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def journal_name(name: str, origin: str) -> str:
    """Name of the journal of a file that comes from ``origin``."""
    return f"{PRIVATE_PREFIX}{blake3(f'{origin}/{name}'.encode()).hexdigest()[:16]}{JOURNAL_SUFFIX}"


class JournalFile:
    """An open journal that is being appended to."""

    def __init__(self, folder_fd: int, name: str, fd: int, writer: Writer, lease: int, length: int) -> None:
        self._folder_fd = folder_fd
        self._name = name
        self._fd = fd
        self._writer = writer
        self._length = length
        self.lease = lease

    @classmethod
    def create(cls, folder_fd: int, name: str, temporary: str, heading: Heading, lease: int) -> Self:
        """A new journal, in the place of any that has the name."""
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder_fd)
        try:
            writer = Writer()
            journal = cls(folder_fd, name, fd, writer, lease, 0)
            journal._append(writer.heading(heading, lease))
            os.rename(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder_fd)
            raise
        return journal

    @classmethod
    def resume(cls, folder_fd: int, name: str, fd: int, known: Journal) -> Self:
        """Go on with a journal, under a new lease; what is not whole at its end is cut off."""
        os.ftruncate(fd, known.length)
        journal = cls(folder_fd, name, fd, Writer(known.check), known.lease + 1, known.length)
        journal._append(journal._writer.lease(journal.lease))
        return journal

    def note(self, runs: Sequence[Run], *, flush: bool) -> None:
        """Append runs whose bytes are flushed already; nothing when the journal is full."""
        records = self._writer.runs(runs, self.lease)
        if self._length + len(records) > MAX_BYTES:
            return
        self._append(records)
        if flush:
            os.fdatasync(self._fd)

    def _append(self, records: bytes) -> None:
        rest = memoryview(records)
        while rest:
            count = os.pwrite(self._fd, rest, self._length)
            self._length += count
            rest = rest[count:]

    def remove(self) -> None:
        """Remove it, unless somebody else has put another in its place; then close it."""
        with contextlib.suppress(OSError):
            if _is_named(self._folder_fd, self._name, self._fd):
                os.unlink(self._name, dir_fd=self._folder_fd)
        self.close()

    def close(self) -> None:
        """Let go of it; twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _is_named(folder_fd: int, name: str, fd: int) -> bool:
    """Whether the open file is the one that has the name."""
    there, ours = os.stat(name, dir_fd=folder_fd, follow_symlinks=False), os.fstat(fd)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


@dataclass(slots=True)
class Found:
    """A partial file of an earlier attempt. ``held`` is false when somebody else is still at work on it."""

    slot: str
    """Name of the journal."""
    journal_fd: int
    journal: Journal
    data_fd: int
    held: bool

    def close(self) -> None:
        """Let go of both files."""
        os.close(self.journal_fd)
        os.close(self.data_fd)


def read_whole(fd: int) -> Journal | None:
    """The journal in an open file, None when it is none."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        return None
    return read_journal(os.pread(fd, status.st_size, 0))


def find(folder_fd: int, name: str, origin: str, patience_s: float) -> Found | None:
    """What an earlier attempt to put a file from ``origin`` under ``name`` left; None when nothing can be used."""
    slot = journal_name(name, origin)
    try:
        journal_fd = os.open(slot, _OPEN, dir_fd=folder_fd)
    except OSError:
        return None
    found = _open_data(folder_fd, slot, journal_fd, name, origin)
    if found is None:
        os.close(journal_fd)
        with contextlib.suppress(OSError):  # nobody can go on with it
            os.unlink(slot, dir_fd=folder_fd)
        return None
    found.held = lock(found.data_fd, patience_s) is True
    if found.held and not _still_there(folder_fd, found):
        found.close()
        return None
    return found


def _open_data(folder_fd: int, slot: str, journal_fd: int, name: str, origin: str) -> Found | None:
    journal = read_whole(journal_fd)
    if journal is None or (journal.heading.name, journal.heading.origin) != (name, origin):
        return None
    if not is_partial(journal.heading.data):
        return None
    try:
        data_fd = os.open(journal.heading.data, _OPEN, dir_fd=folder_fd)
    except OSError:
        return None
    status = os.fstat(data_fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid != os.geteuid():
        os.close(data_fd)  # somebody put another file there
        return None
    return Found(slot, journal_fd, journal, data_fd, held=False)


def _still_there(folder_fd: int, found: Found) -> bool:
    """Whether both files have their names still: who held the lock may have finished while we waited for it."""
    with contextlib.suppress(OSError):
        if _is_named(folder_fd, found.slot, found.journal_fd):
            return _is_named(folder_fd, found.journal.heading.data, found.data_fd)
    return False


def lock(fd: int, patience_s: float = 0.0) -> bool | None:
    """Take the lock of a partial file; whether it was to be had within the time. None where there are no locks."""
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_POLL_S)
        except OSError:
            return None
        else:
            return True
