"""A file on its way into the store: written under a random hidden name, published under the final one. Blocking."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Final

from ..errors import ExistsError
from ..journal import Heading
from ..names import MAX_COMPONENT_BYTES, PRIVATE_PREFIX, printable
from ..runs import Range, Run
from .partial import PATIENCE_S, Found, JournalFile, find, journal_name, lock
from .rooted import translated
from .space import Reservation

_RENAME_NOREPLACE: Final = 1
"""From linux/fs.h."""
_NO_RENAME: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_NO_COPY: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
COPY_TURN: Final = 16 * 1024 * 1024
LONGEST_SUFFIX: Final = 16
"""Characters of a name behind its last dot; more is no kind of file, and would leave no room for a number."""
MAX_RENAME_TRIES: Final = 1000
"""``name (1)`` to ``name (1000)``; a folder with more needs another look."""


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def link_without_replacing(temporary: str, name: str, folder_fd: int) -> None:
    """Give a file its final name, in place of the temporary one, unless the name is taken.

    renameat2(2) does it in one step; where the file system does not know how, a hard link and an unlink.

    Raises:
        FileExistsError: the name is taken.
        OSError: the file system can do neither.
    """
    source, target = os.fsencode(temporary), os.fsencode(name)
    if _libc().renameat2(folder_fd, source, folder_fd, target, _RENAME_NOREPLACE) == 0:
        return
    number = ctypes.get_errno()
    if number not in _NO_RENAME:
        raise OSError(number, os.strerror(number), name)
    os.link(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd, follow_symlinks=False)
    os.unlink(temporary, dir_fd=folder_fd)


def numbered(name: str, number: int) -> str:
    """``report.txt`` as ``report (2).txt``, cut so that it still fits into one component."""
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
    if len(suffix) > LONGEST_SUFFIX:
        stem, suffix = name, ""
    ending = f" ({number}){suffix}"
    room = MAX_COMPONENT_BYTES - len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore") + ending


class Staged:
    """One partial file. It owns its descriptors until ``publish``, ``suspend`` or ``discard``; its lock says that
    it is alive. Where the bytes come from an origin that can send them again, a journal beside it keeps what is
    written."""

    def __init__(
        self, folder_fd: int, path: str, mode: int, sync_folders: Callable[[], None], origin: str = ""
    ) -> None:
        """Create the partial file in the folder, or take up an earlier one; takes over ``folder_fd`` when it
        succeeds."""
        self.path = path
        self.fd = -1
        self.found: tuple[Run, ...] = ()
        self.basis = -1
        self.keeps = bool(origin)
        self._folder_fd = folder_fd
        self._name = PurePosixPath(path).name
        self._mode = self._made_with = mode & 0o777
        self._origin = origin
        self._sync_folders = sync_folders
        self.room: Reservation | None = None
        """Its promise of space, which ends with it."""
        self._journal: JournalFile | None = None
        self._lease = 1
        found = find(folder_fd, self._name, origin, PATIENCE_S) if origin else None
        if found is None:
            self._create()
        elif found.held:
            self._take_up(found)
        else:
            self._copy_from(found)

    def _create(self) -> None:
        self._temporary = f"{PRIVATE_PREFIX}{secrets.token_hex(8)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mode = self._mode | stat.S_IRUSR | stat.S_IWUSR if self.keeps else self._mode
        self.fd = self.basis = os.open(self._temporary, flags, mode, dir_fd=self._folder_fd)
        self._made_with = mode
        lock(self.fd)  # a file system without locks: age decides about leftovers

    def _take_up(self, found: Found) -> None:
        """Go on in the file itself."""
        slot = journal_name(self._name, self._origin)
        try:
            self._journal = JournalFile.resume(self._folder_fd, slot, found.journal_fd, found.journal)
        except BaseException:
            found.close()
            raise
        self._temporary = found.journal.heading.data
        self.fd = self.basis = found.data_fd
        self.found = found.journal.runs
        self._made_with = found.journal.heading.mode

    def _copy_from(self, found: Found) -> None:
        """Begin anew beside somebody who does not let go; the next journal takes the place of theirs."""
        os.close(found.journal_fd)
        try:
            self._create()
        except BaseException:
            os.close(found.data_fd)
            raise
        self.basis, self.found, self._lease = found.data_fd, found.journal.runs, found.journal.lease + 1

    def build_on(self, fd: int) -> None:
        """Let another file be what the first bytes are taken from; takes over its descriptor."""
        if self.found:
            os.close(fd)
        else:
            self.basis = fd

    def adopt(self, ranges: Sequence[Range]) -> None:
        """Take these ranges of the basis over; nothing else of it stays."""
        with translated(self.path):
            if self.basis != self.fd:
                for offset, length in ranges:
                    copy_range(self.basis, self.fd, offset, length)
                os.close(self.basis)
                self.basis = self.fd
            self._trim(sum(ranges[-1]) if ranges else 0)

    def _trim(self, size: int) -> None:
        if os.fstat(self.fd).st_size > size:
            os.ftruncate(self.fd, size)

    def note(self, runs: Sequence[Run], *, flush: bool) -> None:
        """Note runs as written, after flushing the bytes when asked. The first time makes the journal."""
        with translated(self.path):
            if flush:
                os.fdatasync(self.fd)
            if self._journal is None:
                heading = Heading(self._name, self._origin, self._temporary, self._made_with)
                temporary = f"{PRIVATE_PREFIX}{secrets.token_hex(8)}"
                slot = journal_name(self._name, self._origin)
                self._journal = JournalFile.create(self._folder_fd, slot, temporary, heading, self._lease)
            self._journal.note(runs, flush=flush)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` at ``offset``.

        Raises:
            NoSpaceError: the disk, the quota or the size limit is reached.
        """
        if self.room is not None and not self.keeps:  # what can be sent again has a size, and was promised it
            self.room.grow(offset + len(data))
        with translated(self.path):
            while data:
                count = os.pwrite(self.fd, data, offset)
                data, offset = data[count:], offset + count

    def publish(self, size: int, if_exists: str, durability: str, mtime_ns: int | None) -> str:
        """Flush, then put the file in place under its final name, in one step. Returns the path it got.

        Nothing but ``replace`` and ``resume`` ever overwrites. Whatever goes wrong, the partial file is still there
        for ``discard``.

        Raises:
            ExistsError: the name is taken.
            NoSpaceError: flushing found no space.
        """
        if self.room is not None:
            self.room.grow(size)
        with translated(self.path):
            self._trim(size)
            if self._made_with != self._mode:
                os.fchmod(self.fd, self._mode & ~umask())
            if mtime_ns is not None:
                os.utime(self.fd, ns=(mtime_ns, mtime_ns))
            if durability == "data":
                os.fdatasync(self.fd)
            elif durability == "full":
                os.fsync(self.fd)
            name = self._put_in_place(if_exists)
        if durability == "full":
            self._sync_folders()
        self._forget_journal()
        self._close()
        return str(PurePosixPath(self.path).with_name(name))

    def _put_in_place(self, if_exists: str) -> str:
        if if_exists in ("replace", "resume"):
            os.rename(self._temporary, self._name, src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd)
            return self._name
        names = [self._name]
        if if_exists == "rename":
            names += [numbered(self._name, number) for number in range(1, MAX_RENAME_TRIES + 1)]
        for name in names:
            with contextlib.suppress(FileExistsError):
                link_without_replacing(self._temporary, name, self._folder_fd)
                return name
        raise ExistsError(f"{printable(self.path)}: already exists")

    def _forget_journal(self) -> None:
        if self._journal is not None:
            self._journal.remove()
            self._journal = None

    def suspend(self) -> None:
        """Let go of it. It stays for a later attempt if anything was noted of it, and is removed otherwise."""
        if self.fd < 0:
            return
        if self._journal is None:
            self.discard()
        else:
            self._close()

    def discard(self) -> None:
        """Remove the partial file. Nothing happens after ``publish``, ``suspend`` or a second time."""
        if self.fd < 0:
            return
        with contextlib.suppress(OSError):  # somebody tidied the folder, or the folder is gone
            os.unlink(self._temporary, dir_fd=self._folder_fd)
        self._forget_journal()
        self._close()

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.close()
        if self.room is not None:
            self.room.release()
        if self.basis != self.fd:
            os.close(self.basis)
        os.close(self.fd)
        os.close(self._folder_fd)
        self.fd = self.basis = self._folder_fd = -1


def copy_range(source: int, target: int, offset: int, length: int) -> None:
    """Copy part of a file to the same place of another; less where the source ends."""
    while length > 0:
        try:
            count = os.copy_file_range(source, target, min(length, COPY_TURN), offset, offset)
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
            count = os.pwrite(target, os.pread(source, min(length, COPY_TURN), offset), offset)
        if count == 0:
            return
        offset, length = offset + count, length - count


def umask() -> int:
    """The process's mask, without changing it for a moment as umask(2) must."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o077
