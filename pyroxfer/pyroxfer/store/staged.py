"""A file on its way into the store: written under a random hidden name, published under the final one. Blocking."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Final

from ..errors import ExistsError
from ..names import MAX_COMPONENT_BYTES, PRIVATE_PREFIX, printable
from .rooted import translated

_RENAME_NOREPLACE: Final = 1
"""From linux/fs.h."""
_NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})
MAX_RENAME_TRIES: Final = 1000
"""``name (1)`` to ``name (1000)``; a folder with more needs another look."""


def _rename_without_replacing(source: str, target: str, folder_fd: int) -> None:
    """renameat2(2), for file systems without hard links.

    Raises:
        FileExistsError: the target exists.
        OSError: the file system cannot do this either.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.renameat2(folder_fd, os.fsencode(source), folder_fd, os.fsencode(target), _RENAME_NOREPLACE)
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def numbered(name: str, number: int) -> str:
    """``report.txt`` as ``report (2).txt``, cut so that it still fits into one component."""
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
    ending = f" ({number}){suffix}"
    room = MAX_COMPONENT_BYTES - len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore") + ending


class Staged:
    """One partial file. It owns two descriptors until ``publish`` or ``discard``; its lock says that it is alive."""

    def __init__(self, folder_fd: int, path: str, mode: int, sync_folders: Callable[[], None]) -> None:
        """Create the partial file in the folder; takes over ``folder_fd`` only when it succeeds."""
        self.path = path
        self.fd = -1
        self._folder_fd = folder_fd
        self._name = PurePosixPath(path).name
        self._temporary = f"{PRIVATE_PREFIX}{secrets.token_hex(8)}"
        self._sync_folders = sync_folders
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.fd = os.open(self._temporary, flags, mode & 0o777, dir_fd=folder_fd)
        with contextlib.suppress(OSError):  # a file system without locks: age decides about leftovers
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` at ``offset``.

        Raises:
            NoSpaceError: the disk, the quota or the size limit is reached.
        """
        with translated(self.path):
            while data:
                count = os.pwrite(self.fd, data, offset)
                data, offset = data[count:], offset + count

    def publish(self, if_exists: str, durability: str, mtime_ns: int | None) -> str:
        """Flush, then put the file in place under its final name, in one step. Returns the path it got.

        Nothing but ``replace`` ever overwrites. Whatever goes wrong, the partial file is still there for ``discard``.

        Raises:
            ExistsError: the name is taken.
            NoSpaceError: flushing found no space.
        """
        with translated(self.path):
            if mtime_ns is not None:
                os.utime(self.fd, ns=(mtime_ns, mtime_ns))
            if durability == "data":
                os.fdatasync(self.fd)
            elif durability == "full":
                os.fsync(self.fd)
            name = self._put_in_place(if_exists)
        if durability == "full":
            self._sync_folders()
        self._close()
        return str(PurePosixPath(self.path).with_name(name))

    def _put_in_place(self, if_exists: str) -> str:
        if if_exists == "replace":
            os.rename(self._temporary, self._name, src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd)
            return self._name
        names = [self._name]
        if if_exists == "rename":
            names += [numbered(self._name, number) for number in range(1, MAX_RENAME_TRIES + 1)]
        for name in names:
            with contextlib.suppress(FileExistsError):
                self._link(name)
                return name
        raise ExistsError(f"{printable(self.path)}: already exists")

    def _link(self, name: str) -> None:
        """Give the file its name unless the name is taken."""
        try:
            os.link(
                self._temporary, name, src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd, follow_symlinks=False
            )
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            _rename_without_replacing(self._temporary, name, self._folder_fd)
            return
        os.unlink(self._temporary, dir_fd=self._folder_fd)

    def discard(self) -> None:
        """Remove the partial file. Nothing happens after ``publish`` or a second time."""
        if self.fd < 0:
            return
        with contextlib.suppress(OSError):  # somebody tidied the folder, or the folder is gone
            os.unlink(self._temporary, dir_fd=self._folder_fd)
        self._close()

    def _close(self) -> None:
        os.close(self.fd)
        os.close(self._folder_fd)
        self.fd = self._folder_fd = -1
