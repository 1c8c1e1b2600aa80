"""The rooted local store: every path is relative to one held folder and can never leave it. Blocking.

Components are opened one by one without following links, so a link inside the root leads nowhere, whatever a
neighbour does to the folders meanwhile. The root itself may be a link: the operator chose it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Final

from ..errors import DeniedError, NoSpaceError
from ..names import is_partial, printable, split_file_path, split_path
from ..offer import FileEntry, bounded_mtime
from .rooted import kind_of, open_folder, open_regular, open_root, translated
from .staged import Staged

LOCKED_GRACE_S: Final = 60.0
"""A partial file younger than this is left alone even when its lock is free: its owner may be about to take it."""
UNLOCKED_AGE_S: Final = 24 * 3600.0
"""Where the file system has no locks, a partial file is left over when nobody wrote to it for a day."""


class LocalStore:
    """Files below one folder.

    Raises (every method that takes a path):
        NameRefusedError: the path leaves the root, leads through a link, or is not portable.
        NotFoundError, DeniedError, NoSpaceError, ExistsError, TransferError: what the system said.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root_fd = open_root(root)

    def close(self) -> None:
        """Let go of the root. Open files and partial files stay usable."""
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def stat(self, path: str) -> FileEntry:
        """The entry of one path, its own path in it; links are reported, not followed."""
        parts = split_path(path)
        with translated(path), self._folder(parts[:-1]) as folder:
            status = os.stat(parts[-1] if parts else ".", dir_fd=folder, follow_symlinks=False)
        return _entry("/".join(parts), status)

    def list(self, path: str) -> list[FileEntry]:
        """The entries directly in a folder, by name; paths are relative to that folder."""
        with translated(path), self._folder(split_path(path)) as folder:
            return list(_scan(folder))

    def walk(self, path: str) -> Iterator[FileEntry]:
        """Everything below a folder; each folder before what it holds, paths relative to ``path``.

        Links come as ``link`` and are not entered; a folder that may not be read comes again as ``unreadable``.
        No descriptor is held between two entries.
        """
        base = split_path(path)
        waiting: list[tuple[str, ...]] = [()]
        while waiting:
            below = waiting.pop()
            try:
                with self._folder((*base, *below)) as folder:
                    entries = list(_scan(folder))
            except OSError as error:
                if not below:
                    with translated(path):
                        raise error
                yield FileEntry("/".join(below), "unreadable")
                continue
            for entry in entries:
                yield FileEntry("/".join((*below, entry.path)), entry.kind, entry.size, entry.mode, entry.mtime_ns)
            waiting += [(*below, entry.path) for entry in reversed(entries) if entry.kind == "folder"]

    def open_file(self, path: str) -> int:
        """A read-only descriptor of a regular file, owned by the caller."""
        parts = split_file_path(path)
        with translated(path), self._folder(parts[:-1]) as folder:
            return open_regular(folder, parts[-1])

    def make_folder(self, path: str) -> None:
        """Make the folder and its parents, as far as they are missing."""
        with translated(path):
            os.close(open_folder(self._root_fd, split_path(path), create=True))

    def stage(self, path: str, size: int | None, mode: int) -> Staged:
        """Begin a file: its parents are made, its space is looked up, a random hidden file beside it is open.

        Raises:
            NoSpaceError: ``size`` bytes are not free now.
        """
        parts = split_file_path(path)
        with translated(path):
            folder = open_folder(self._root_fd, parts[:-1], create=True)
            try:
                _check_space(folder, size, path)
                return Staged(folder, "/".join(parts), mode, lambda: self._sync(parts[:-1]))
            except BaseException:
                os.close(folder)
                raise

    def remove(self, path: str) -> None:
        """Remove a file, a link, or an empty folder."""
        parts = split_path(path)
        if not parts:
            raise DeniedError("the folder served is not removed")
        with translated(path), self._folder(parts[:-1]) as folder:
            if stat.S_ISDIR(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
                os.rmdir(parts[-1], dir_fd=folder)
            else:
                os.unlink(parts[-1], dir_fd=folder)

    def clean_leftovers(self) -> Iterator[int]:
        """Remove partial files whose owner is gone, everywhere below the root; how many there were, by folder."""
        yield self._clean_folder(())
        for entry in self.walk(""):
            if entry.kind == "folder":
                yield self._clean_folder(tuple(entry.path.split("/")))

    def _clean_folder(self, parts: Sequence[str]) -> int:
        removed = 0
        with contextlib.suppress(OSError), self._folder(parts) as folder, os.scandir(folder) as entries:
            for name in [entry.name for entry in entries if is_partial(entry.name)]:
                with contextlib.suppress(OSError):  # not ours to remove: the others may be
                    removed += _remove_leftover(folder, name)
        return removed

    @contextlib.contextmanager
    def _folder(self, parts: Sequence[str]) -> Iterator[int]:
        folder = open_folder(self._root_fd, parts)
        try:
            yield folder
        finally:
            os.close(folder)

    def _sync(self, parts: Sequence[str]) -> None:
        """Flush the names of the folder and of every folder above it: some may have been made just now."""
        with translated("/".join(parts)):
            for depth in range(len(parts), -1, -1):
                with self._folder(parts[:depth]) as folder:
                    os.fsync(folder)


def _check_space(folder_fd: int, size: int | None, path: str) -> None:
    status = os.fstatvfs(folder_fd)
    free = status.f_bavail * status.f_frsize
    if size is not None and size > free:
        raise NoSpaceError(f"{printable(path)}: {size} bytes are needed and {free} are free at the receiver")


def _scan(folder_fd: int) -> Iterator[FileEntry]:
    """The entries of an open folder, by name, without partial files."""
    with os.scandir(folder_fd) as entries:
        for entry in sorted(entries, key=lambda item: item.name):
            if is_partial(entry.name):
                continue
            try:
                entry.name.encode()
                status = entry.stat(follow_symlinks=False)
            except UnicodeEncodeError:
                yield FileEntry(printable(entry.name), "unreadable")
            except OSError:
                continue  # removed since the folder was read
            else:
                yield _entry(entry.name, status)


def _entry(path: str, status: os.stat_result) -> FileEntry:
    kind = kind_of(status.st_mode)
    size = status.st_size if kind == "file" else 0
    return FileEntry(path, kind, size, status.st_mode & 0o777, bounded_mtime(status.st_mtime_ns))


def _remove_leftover(folder_fd: int, name: str) -> bool:
    """Remove one partial file if nobody owns it any more."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder_fd)
    try:
        age = time.time() - os.fstat(fd).st_ctime
        oldest = LOCKED_GRACE_S
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            oldest = UNLOCKED_AGE_S
        if age < oldest:
            return False
        os.unlink(name, dir_fd=folder_fd)
        return True
    finally:
        os.close(fd)
